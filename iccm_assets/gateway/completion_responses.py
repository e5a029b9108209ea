"""Read the completions of an OpenAI-compatible server, streamed or not (G7)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from iccm_assets.gateway.batching import BackendResponse, GenerationError
from iccm_assets.gateway.model_server_errors import (
    EmptyResponseError,
    FilteredResponseError,
    rejection_error,
    server_words,
)
from iccm_assets.gateway.thinking_filter import ThinkingFilter, drop_thinking_marks
from iccm_assets.models.token_streaming import TextListener
from iccm_assets.scoring.chat_responses import classify_finish_reason
from iccm_assets.scoring.reconstruction import is_blank


def parse_completion(body: bytes, secret: str = "", model: str | None = None) -> BackendResponse:
    """Read a completion without its thinking; raise ``GenerationError`` if it is none, or no answer.

    ``secret``, the API key, is never repeated. With ``model``, an answer of another model is none.
    """
    try:
        completion = json.loads(body)
        if completion.get("error"):
            raise _reported_error(completion["error"], secret)
        _check_model(completion, model)
        choice = completion["choices"][0]
        text, finish = choice["text"], choice.get("finish_reason")
        reasoning = _has_reasoning(choice)
        usage, error = completion.get("usage"), choice.get("error")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise GenerationError("the response is not a completion") from None
    if error:
        raise _reported_error(error, secret)
    if text is not None and not isinstance(text, str):
        raise GenerationError("the completion has no text")
    answer, thinking = drop_thinking_marks(text or "")
    is_complete = _check_answer(answer, finish, thinking, reasoning)
    return BackendResponse(answer, *_read_usage(usage), is_complete)


def _check_model(completion: dict[str, object], model: str | None) -> None:
    """Raise ``GenerationError`` if a server says that another model than this one has answered."""
    if model is not None and (stated := completion.get("model") or model) != model:
        raise GenerationError(f"the server answered with model {server_words(str(stated))}, not {model}")


def _reported_error(error: object, secret: str) -> GenerationError:
    """Classify an error in the body of a response with status 200; its code may be the status meant."""
    code = error.get("code") if isinstance(error, dict) else None
    is_status = isinstance(code, int | str) and str(code).isascii() and str(code).isdigit()
    status = int(str(code)[:4]) if is_status else 200
    return rejection_error(
        status if 400 <= status < 600 else 200, {}, json.dumps({"error": error}).encode(), secret
    )


def _has_reasoning(choice: dict[str, object]) -> bool:
    """Whether a server sends the thinking in a field of its own."""
    return any(choice.get(name) for name in ("reasoning_content", "reasoning"))


def _check_answer(answer: str, finish: object, thinking: ThinkingFilter, has_reasoning: bool) -> bool:
    """Return whether an answer is complete; raise ``GenerationError`` if it was withheld or has no text."""
    kind = classify_finish_reason(finish)
    reason = f"finish_reason {server_words(str(finish))!r}"
    if kind == "filtered":
        raise FilteredResponseError(f"content filter: {reason}")
    if kind == "failed":
        raise GenerationError(f"the model failed: {reason}")
    if is_blank(answer):
        cause = "only thinking, " if thinking.has_thinking or has_reasoning else ""
        raise EmptyResponseError(f"empty answer: {cause}{reason}")
    return kind != "cut" and not thinking.is_thinking


def _read_usage(usage: object) -> tuple[int | None, int | None]:
    """Return the numbers of generated tokens and of those read, None where they are not stated."""
    counts = usage if isinstance(usage, dict) else {}
    numbers = [counts.get(name) for name in ("completion_tokens", "prompt_tokens")]
    output, source = (number if isinstance(number, int) and number >= 0 else None for number in numbers)
    return output, source


class LineBuffer:
    """Splits the chunks of a stream into lines, each byte once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def split(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that end in this chunk."""
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*self._parts, line]).rstrip(b"\r")
            self._parts.clear()
        if rest:
            self._parts.append(rest)


class CompletionStream:
    """Reads the server-sent events of a streamed completion."""

    def __init__(self, listener: TextListener, secret: str = "", model: str | None = None) -> None:
        self._listener, self._secret, self._model = listener, secret, model
        self._thinking, self._has_reasoning = ThinkingFilter(), False
        self._texts: list[str] = []
        self._pieces = 0
        self._finish: object = None
        self._usage: object = None

    def read(self, line: bytes) -> bool:
        """Read one line; return whether it is the last one."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        try:
            event = json.loads(data)
            if event.get("error"):
                raise _reported_error(event["error"], self._secret)
            _check_model(event, self._model)
            self._usage = event.get("usage") or self._usage
            [choice] = event.get("choices") or [{"text": ""}]
            text, self._finish = choice.get("text") or "", choice.get("finish_reason") or self._finish
            self._has_reasoning = self._has_reasoning or _has_reasoning(choice)
            if choice.get("error"):
                raise _reported_error(choice["error"], self._secret)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise GenerationError("the response is not a stream of completions") from None
        if not isinstance(text, str):
            raise GenerationError("the completion has no text")
        if text:
            self._pieces += 1
            self._pass_on(self._thinking.feed(text))
        return False

    def _pass_on(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._listener(text, self._pieces)

    def response(self) -> BackendResponse:
        """Return the whole response; raises ``GenerationError`` if the stream broke off."""
        if self._finish is None:
            raise GenerationError("the stream of the server broke off")
        self._pass_on(self._thinking.finish())
        answer = "".join(self._texts)
        is_complete = _check_answer(answer, self._finish, self._thinking, self._has_reasoning)
        output, source = _read_usage(self._usage)
        return BackendResponse(answer, self._pieces if output is None else output, source, is_complete)

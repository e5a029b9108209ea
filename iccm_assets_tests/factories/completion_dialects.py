"""Completions of model servers, streamed if asked for, and the errors that servers answer with (G7)."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from iccm_assets.models.generation import LoadedModel
from iccm_assets.models.token_streaming import decode
from iccm_assets_tests.factories.chat_dialects import Dialect, Reply

TEXT = "The function `add` shall return the sum."
TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, you requested 5000 tokens in the messages."
)


def completes(text: str | None, finish: str | None = "stop", **choice: Any) -> Dialect:
    """Answer with a completion, or with a stream of its words."""

    def answer(request: dict[str, Any], earlier: int) -> Reply:
        usage = {"prompt_tokens": 9, "completion_tokens": 12}
        if not request.get("stream"):
            choices = [{"text": text, "finish_reason": finish, **choice}]
            document = {"object": "text_completion", "choices": choices, "usage": usage}
            return Reply(document, headers={"Content-Type": "application/json"})
        pieces = re.findall(r"\s*\S{1,5}|\s+", text or "")
        events: list[dict[str, Any]] = [{"choices": [{"text": piece}]} for piece in pieces]
        events.append({"choices": [{"text": "", "finish_reason": finish, **choice}]})
        events.append({"choices": [], "usage": usage})
        return streamed(*events)

    return answer


def streamed(*events: dict[str, Any], end: str = "data: [DONE]\n\n") -> Reply:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
    return Reply(body.encode(), headers={"Content-Type": "text/event-stream"})


def streams(*events: dict[str, Any]) -> Dialect:
    return lambda request, earlier: streamed(*events)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Dialect:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": {"message": message, "type": "invalid_request_error", "code": code}}
    return lambda request, earlier: Reply(body, status, {"Content-Type": "application/json", **names})


def alternately(*dialects: Dialect) -> Dialect:
    """Answer by each dialect in turn."""
    return lambda request, earlier: dialects[earlier % len(dialects)](request, earlier)


def runs(loaded: LoadedModel, *, takes_ids: bool = True, counts: bool = True) -> Dialect:
    """Run a model as vLLM does: on token ids, or on a text with the tokenizer's own special tokens."""

    def answer(request: dict[str, Any], earlier: int) -> Reply:
        prompt = request["prompt"]
        if isinstance(prompt, list) and not takes_ids:
            return error(400, "prompt: a string is expected")(request, earlier)
        ids = prompt if isinstance(prompt, list) else loaded.tokenizer(prompt)["input_ids"]
        tokens = loaded.model.generate(torch.tensor([ids]), max_new_tokens=request["max_tokens"])[0]
        written = tokens[len(ids) :].tolist()
        ends = torch.tensor(loaded.model.generation_config.eos_token_id).reshape(-1).tolist()
        ended = written[-1] in (*ends, loaded.encoder.end_token_id)
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)} if counts else {}
        text, model = decode(loaded.tokenizer, written), request["model"]
        choice = {"text": text, "finish_reason": "stop" if ended else "length"}
        if request.get("stream"):
            middle = len(text) // 2
            pieces = [{"text": text[:middle]}, choice | {"text": text[middle:]}]
            events = [{"model": model, "choices": [piece]} for piece in pieces]
            return streamed(*events, {"model": model, "choices": [], "usage": usage})
        return Reply({"object": "text_completion", "model": model, "choices": [choice], "usage": usage})

    return answer

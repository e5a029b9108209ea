"""Chat responses: read the answer of a chat completion; pure functions, no I/O (O1, O3).

Servers differ in the shape of the content and in the words for why a model stopped. Whatever cannot be a
complete answer raises `InvalidResponse`, because no answer is better than a wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iccm_assets.scoring.reconstruction import is_blank

# Servers name "the model stopped on its own" differently. Any other word means the same, unless it matches
# a pattern below, but then only a closed code block shows that the answer is complete.
_ENDED = re.compile(
    r"(?:finish_?reason_?)?(?:stop(?:ped|_sequence|_token)?|eos(?:_token)?|eot|end(?:_turn|_of_text|ed)?"
    r"|complete[d]?|finish(?:ed)?|done|normal|success)"
)
# Patterns of finish reasons, and the kind of end they name; the first match counts (`ERROR_LIMIT`).
_UNFINISHED = (
    (
        "cut",
        re.compile(r"length|max_\w{0,20}tokens?|limit|window|truncat|incomplete|not_finished|pause|budget"),
    ),
    (
        "filtered",
        re.compile(
            r"filter|safety|sensitive|recitation|blocklist|blocked|prohibited|spii|guardrail|moderation|toxic"
            r"|refus|harm|policy|censor|copyright"
        ),
    ),
    ("tool calls", re.compile(r"tool|function")),
    (
        "failed",
        re.compile(
            r"error|abort|cancel|fail|interrupt|insufficient|overload|time_?out|unavailable|crash|disconnect"
        ),
    ),
)
# Error codes of an account that has to be paid for: waiting does not help.
_OUT_OF_CREDIT = re.compile(
    r"insufficient_(?:user_)?(?:quota|balance|credit|funds?)|billing|balance|credit|arrear|payment"
    r"|exceeded_current_quota"
)
_FENCE_MARKS = ("```", "~~~")
_FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_DROPPED_PARTS = re.compile(r"think|reason|tool|function|image|audio|file|search|citation")


class InvalidResponse(Exception):
    """An unusable response, with its reason.

    ``endpoint_works``: only this answer is unusable, and ``answer`` is its text. ``max_retries``: how many
    retries make sense at most (None: the settings decide). ``retry_after_seconds``: the seconds of a
    `Retry-After`.
    """

    def __init__(
        self,
        reason: str,
        *,
        endpoint_works: bool = False,
        max_retries: int | None = None,
        retry_after_seconds: float | None = None,
        answer: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason, self.endpoint_works, self.max_retries = reason, endpoint_works, max_retries
        self.retry_after_seconds, self.answer = retry_after_seconds, answer


@dataclass(frozen=True)
class ChatAnswer:
    """The text of an answer; ``ended`` means that the server says that the model stopped on its own."""

    text: str
    ended: bool


def read_answer(body: bytes) -> ChatAnswer:
    """Return the answer in a chat completion.

    Raises:
        InvalidResponse: not a completion or a failed one (worth a retry), an empty one (worth one retry), or
            a cut, filtered or refused one (not worth it).
    """
    try:
        response: Any = json.loads(body)  # reads a byte order mark, too
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(f"the response is not JSON ({type(error).__name__}): {body[:80]!r}") from None
    choice, message = _first_choice(response, body)
    ended = _check_finish_reason(choice)
    if refusal := _find_refusal(message):
        raise InvalidResponse(f"refused: {refusal}", endpoint_works=True, max_retries=0)
    text = join_parts(message.get("content"))
    if is_blank(text):
        text = join_parts(choice.get("text"))
    if is_blank(text):
        raise InvalidResponse(_describe_empty(message), endpoint_works=True, max_retries=1)
    return ChatAnswer(text, ended)


def _first_choice(response: Any, body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first choice and its message; it has none in the shape of legacy completions."""
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        message = choice.get("message") or choice.get("delta") or {}
        has_text = isinstance(choice.get("text"), str)
        says_something = any((message, has_text, choice.get("finish_reason"), choice.get("error")))
        if isinstance(message, dict) and says_something:
            return choice, message
    raise InvalidResponse(
        f"the response is not a chat completion: {body[:80]!r}",
        max_retries=0 if is_out_of_credit(body) else None,
    )


def join_parts(content: object) -> str:
    """Return the text of a message's content: a text, or the text parts of a list, without thinking.

    Parts continue each other, but the line of a code fence stays a line of its own.
    """
    pieces: list[str] = []
    head, fences = "", 0  # the first characters of the last line; the fence lines so far
    for part in _text_parts(content):
        ends_fence = head in _FENCE_MARKS and fences % 2 == 0
        if ends_fence or (head and part.lstrip(" ").startswith(_FENCE_MARKS)):
            pieces.append("\n")
            head = ""
        fences += len(_FENCE_LINE.findall(part if not head else part.partition("\n")[2]))
        pieces.append(part)
        is_same_line = "\n" not in part
        head = ((head if is_same_line else "") + part[part.rfind("\n") + 1 :].lstrip())[:3]
    return "".join(pieces)


def is_out_of_credit(body: bytes) -> bool:
    """Whether an error says that the account has no quota or credit left."""
    try:
        response: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    error = response.get("error", response) if isinstance(response, Mapping) else None
    if not isinstance(error, Mapping):
        return False
    return any(_OUT_OF_CREDIT.search(str(error.get(name)).lower()) for name in ("code", "type", "status"))


def describe_error_body(body: bytes) -> str:
    """Return the code and the message of an error response in a known shape, else its text."""
    text = body.decode("utf-8", "replace")
    try:
        response: Any = json.loads(body)
    except (ValueError, RecursionError):
        return text
    error = (response.get("error") or response) if isinstance(response, Mapping) else response
    if not isinstance(error, Mapping):
        return error if isinstance(error, str) else text
    if error.get("message") is None:
        detail = error.get("detail")
        return detail if isinstance(detail, str) else text
    return f"{error.get('code') or error.get('type') or 'error'}: {error['message']}"


def classify_finish_reason(reason: object) -> str:
    """Return how a model stopped: `ended`, `cut`, `filtered`, `tool calls`, `failed`; empty if not known."""
    word = str(reason or "").strip().lower()
    if _ENDED.fullmatch(word):
        return "ended"
    return next((kind for kind, pattern in _UNFINISHED if pattern.search(word)), "")


def _check_finish_reason(choice: Mapping[str, Any]) -> bool:
    """Return whether the model stopped on its own, False if the server does not say.

    Raises:
        InvalidResponse: the answer is cut, filtered or a tool call, or the model failed.
    """
    reason, error = choice.get("finish_reason") or choice.get("native_finish_reason"), choice.get("error")
    if isinstance(error, Mapping) and error:
        raise InvalidResponse(f"the model failed: {_describe(error)}")
    kind = classify_finish_reason(reason)
    if kind == "ended":
        return True
    if kind == "failed":
        raise InvalidResponse(f"the model failed: finish_reason {reason!r}")
    if kind:
        raise InvalidResponse(
            f"not finished: {kind}, finish_reason {reason!r}", endpoint_works=True, max_retries=0
        )
    return False


def _text_parts(content: object) -> Iterator[str]:
    """Yield the texts of a content, whatever its shape; parts of thinking, tools and images have none."""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping) and not _DROPPED_PARTS.search(str(part.get("type", "")).lower()):
            text = part.get("text", part.get("content"))
            # {"type": "text", "text": {"value": …}}
            yield from _text_parts(text.get("value") if isinstance(text, Mapping) else text)


def _find_refusal(message: Mapping[str, Any]) -> str:
    """Return the refusal of a message or of one of its parts; empty if there is none."""
    parts = message.get("content")
    refusals = [message.get("refusal")]
    refusals += (
        [part.get("refusal") for part in parts if isinstance(part, Mapping)]
        if isinstance(parts, list)
        else []
    )
    return next((str(refusal) for refusal in refusals if refusal), "")


def _describe_empty(message: Mapping[str, Any]) -> str:
    if message.get("tool_calls") or message.get("function_call"):
        return "the answer is a tool call without text"
    thinking = message.get("reasoning_content") or message.get("reasoning")
    return "the answer is empty" + (", there is only reasoning" if thinking else "")


def _describe(error: Mapping[str, Any]) -> str:
    return f"{error.get('code') or error.get('type') or 'error'}: {str(error.get('message'))[:200]}"

"""Chat responses: extract the implementation from a chat completion; pure functions, no I/O (O1).

Strict on purpose, because no answer is better than a wrong one: a response must be complete and marked as
finished, and contain exactly one code block that is the implementation. Everything else raises
`InvalidResponse`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

# Servers name "the model stopped on its own" differently; any other reason means a truncated text.
FINISH_REASONS = ("stop", "eos_token", "stop_sequence", "end_turn")
PYTHON_TAGS = frozenset({"", "python", "python3", "py", "py3"})
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})\s*(?P<tag>[^\s`]*)[^`]*")
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class InvalidResponse(Exception):
    """An unusable response, with its reason.

    ``endpoint_works``: only this answer is unusable. ``max_retries``: how many retries make sense at most
    (None: the settings decide). ``retry_after_seconds``: the seconds of a `Retry-After`.
    """

    def __init__(
        self,
        reason: str,
        *,
        endpoint_works: bool = False,
        max_retries: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.endpoint_works, self.max_retries, self.retry_after_seconds = (
            reason,
            endpoint_works,
            max_retries,
            retry_after_seconds,
        )


def extract_content(body: bytes) -> str:
    """Return the text of a finished chat completion.

    Raises:
        InvalidResponse: not a completion (worth a retry), or a cut, filtered or refused one (not worth it).
    """
    try:
        response: Any = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(f"the response is not JSON ({type(error).__name__}): {body[:80]!r}") from None
    match response:
        case {"choices": [{"message": {**message}, **choice}, *_]}:
            pass
        case _:
            raise InvalidResponse(f"the response is not a chat completion: {body[:80]!r}")
    if message.get("refusal"):
        raise InvalidResponse(f"refused: {message['refusal']}", endpoint_works=True, max_retries=0)
    if choice.get("finish_reason") not in FINISH_REASONS:
        raise InvalidResponse(
            f"not finished: finish_reason {choice.get('finish_reason')!r}", endpoint_works=True, max_retries=0
        )
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise InvalidResponse("the answer is empty", endpoint_works=True, max_retries=1)
    return content


def extract_code(content: str) -> str:
    """Return the implementation in an answer: a closed code block that parses and defines something.

    Reasoning (`<think>…</think>`) is not part of the answer, and blocks that define nothing, such as an
    example of use, do not count.

    Raises:
        InvalidResponse: no such block, several different ones, or an answer that stops inside a block.
    """
    answer = content.rpartition("</think>")[2]
    if "<think>" in answer:
        raise InvalidResponse(
            "the answer stops inside the model's reasoning", endpoint_works=True, max_retries=1
        )
    blocks = list(_code_blocks(answer))
    codes = {code for tag, code in blocks if tag in PYTHON_TAGS and _is_implementation(code)}
    if len(codes) == 1:
        return codes.pop()
    if codes:
        raise InvalidResponse(
            f"{len(codes)} different implementations in one answer", endpoint_works=True, max_retries=1
        )
    problem = "no code block is Python that defines something" if blocks else "no code block in the answer"
    raise InvalidResponse(f"{problem}: {answer.strip()[:80]!r}", endpoint_works=True, max_retries=1)


def _code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (tag, code) of every fenced code block; CommonMark's rule decides where one ends."""
    fence, tag, lines = "", "", list[str]()
    for line in text.splitlines(keepends=True):
        mark = _FENCE.fullmatch(line.rstrip("\r\n"))
        if not fence:
            if mark:
                fence, tag, lines = mark["fence"], mark["tag"].lower(), []
        elif mark and not mark["tag"] and mark["fence"][0] == fence[0] and len(mark["fence"]) >= len(fence):
            yield tag, "".join(lines)
            fence = ""
        else:
            lines.append(line)
    if fence:
        raise InvalidResponse("the answer stops inside a code block", endpoint_works=True, max_retries=1)


def _is_implementation(code: str) -> bool:
    """Whether the code is Python that defines a function or class; prose does not parse."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _DEFINES) for node in ast.walk(tree))

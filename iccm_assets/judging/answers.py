"""What counts as an answer of a chat endpoint: pure, and strict on purpose (O1).

Rather nobody's answer than the wrong one: a reply must be whole, say that it is finished, and hold one
code block that is the implementation. Everything else is a `Flaw`, and the member is missing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

# Servers differ in the word for "the model ended by itself"; any other reason means a piece is missing.
FINISHED = ("stop", "eos_token", "stop_sequence", "end_turn")
PYTHON_TAGS = frozenset({"", "python", "python3", "py", "py3"})
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})\s*(?P<tag>[^\s`]*)[^`]*")
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class Flaw(Exception):
    """Why an endpoint gave no answer.

    ``alive``: the endpoint works, only this answer is unusable. ``retries``: how often asking again is
    worth it (None: as often as the settings allow). ``wait``: seconds the endpoint asked to be left alone.
    """

    def __init__(
        self, reason: str, *, alive: bool = False, retries: int | None = None, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.alive, self.retries, self.wait = reason, alive, retries, wait


def content_of(body: bytes) -> str:
    """The text of a chat completion that says it is finished.

    Raises:
        Flaw: not a completion (worth asking again), or one that was cut, filtered or refused (not worth it).
    """
    try:
        reply: Any = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Flaw(f"the reply is not JSON ({type(error).__name__}): {body[:80]!r}") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Flaw(f"the reply is no chat completion: {body[:80]!r}")
    if message.get("refusal"):
        raise Flaw(f"refused: {message['refusal']}", alive=True, retries=0)
    if choice.get("finish_reason") not in FINISHED:
        raise Flaw(f"not finished: finish_reason {choice.get('finish_reason')!r}", alive=True, retries=0)
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise Flaw("an empty answer", alive=True, retries=1)
    return content


def code_of(content: str) -> str:
    """The one implementation in an answer: a closed code block that parses and defines something.

    What a model thought aloud (`<think>…</think>`) is not part of its answer; a second block that defines
    nothing, an example of use, does not count.

    Raises:
        Flaw: no such block, several different ones, or an answer that stops inside a block.
    """
    spoken = content.rpartition("</think>")[2]
    if "<think>" in spoken:
        raise Flaw("the answer stops while the model thinks", alive=True, retries=1)
    blocks = list(_blocks(spoken))
    found = list(dict.fromkeys(code for tag, code in blocks if tag in PYTHON_TAGS and _implements(code)))
    if len(found) == 1:
        return found[0]
    if found:
        raise Flaw(f"{len(found)} different implementations in one answer", alive=True, retries=1)
    what = "no code block is Python that defines something" if blocks else "no code block in the answer"
    raise Flaw(f"{what}: {spoken.strip()[:80]!r}", alive=True, retries=1)


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """(tag, code) of every fenced block, by CommonMark's rule for its end."""
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
        raise Flaw("the answer stops inside a code block", alive=True, retries=1)


def _implements(code: str) -> bool:
    """Python that defines a function or class; prose in a fence does not parse, a call defines nothing."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _DEFINES) for node in ast.walk(tree))

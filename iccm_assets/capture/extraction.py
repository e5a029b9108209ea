"""From a conversation's messages to the source asked about and the requirements accepted (C3).

Messages are ``[{role, content}]``, content a string or a list of blocks. Whatever else is found is
skipped, and where nothing is left the answer is None, never an exception (M3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# What follows the marks is taken whole: a second run of blanks would make hostile lines take quadratic time.
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(?!`)([^\r\n]*)")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
# Not "Shall I go on?", "we shall see" or talk about the word "shall".
_SHALL = re.compile(
    r"(?<![\"'`“‘])(?<!\bi )(?<!\bwe )(?<!\byou )\bshall\b(?![\"'`”’]|\s{1,8}(?:i|we|you)\b)", re.IGNORECASE
)
# A fence of these languages holds prose: requirements may stand in it, source code does not count as them.
_PROSE = {"", "text", "txt", "plaintext", "md", "markdown", "requirements"}


@dataclass(frozen=True)
class Message:
    """One readable message: who said what."""

    role: str
    text: str


@dataclass(frozen=True)
class Fence:
    """A fenced code block: its language, lower case, and its content without the final newline."""

    language: str
    content: str


def messages_of(content: object) -> list[Message]:
    """The readable messages of a conversation's ``content``, in order; empty for anything else."""
    if not isinstance(content, list):
        return []
    found = []
    for entry in content:
        if isinstance(entry, Mapping) and isinstance(role := entry.get("role"), str):
            text = _text_of(entry.get("content"))
            if text is not None:
                found.append(Message(role.strip().lower(), text))
    return found


def source_of(messages: object, metadata: object) -> str | None:
    """The code the developer asked about (C3), or None.

    ``metadata.source_code`` as it is, where present; else the last fenced code block of the user before
    the first requirements answer, or before the end where there is no such answer.
    """
    given = _given(metadata, "source_code")
    if given is not None:
        return given
    last = None
    for message in messages_of(messages):
        if message.role == "assistant" and _statements(message.text) is not None:
            break
        if message.role == "user":
            for fence in fences(message.text):
                last = fence.content if fence.content.strip() else last
    return last


def requirements_of(messages: object, metadata: object) -> str | None:
    """The requirements the developer accepted (C3), or None.

    ``metadata.requirements`` as it is, where present; else the last assistant message holding "shall"
    statements. Statements in program code do not count; a fence of text or markdown that holds them
    stands for the message when nothing outside does.
    """
    given = _given(metadata, "requirements")
    if given is not None:
        return given
    last = None
    for message in messages_of(messages):
        if message.role == "assistant":
            last = _statements(message.text) or last
    return last


def has_statements(text: str) -> bool:
    """Whether a text holds a "shall" statement, outside of program code."""
    return _statements(text) is not None


def fences(text: str) -> Iterator[Fence]:
    """The fenced code blocks of a markdown text; one that is never closed ends with the text."""
    for fence, _ in _parts(text):
        if fence is not None:
            yield fence


def _given(metadata: object, name: str) -> str | None:
    value = metadata.get(name) if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) and value.strip() else None


def _text_of(content: object) -> str | None:
    """A message's own words: tool calls, tool results, pictures and thoughts are somebody else's."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif isinstance(block, Mapping) and block.get("type", "text") == "text":
            text = block.get("text")
            if isinstance(text, str):
                texts.append(text)
    return "\n".join(texts) if texts else None


def _statements(text: str) -> str | None:
    """The requirements in an assistant message: the whole message, or the prose fence holding them."""
    fenced = None
    for fence, outside in _parts(text):
        if fence is None and _SHALL.search(outside):
            return text.strip()
        if fence is not None and fence.language in _PROSE and _SHALL.search(fence.content):
            fenced = fence.content.strip()
    return fenced


@dataclass(frozen=True)
class _Opening:
    """The line that opened a fence."""

    indentation: int
    marks: str
    info: str


def _parts(text: str) -> Iterator[tuple[Fence | None, str]]:
    """A markdown text cut into fences ``(fence, "")`` and what lies between them ``(None, text)``."""
    lines: list[str] = []
    opened: _Opening | None = None
    in_list = False
    for line in text.split("\n"):
        if opened is None and (opened := _opening(line, in_list)):
            yield None, "\n".join(lines)
            lines = []
        elif opened is not None and _closes(line, opened):
            yield _fence(opened, lines), ""
            opened, lines = None, []
        else:
            lines.append(line)
            in_list = in_list or (opened is None and _LIST_ITEM.match(line) is not None)
    if opened is None:
        yield None, "\n".join(lines)
    else:
        yield _fence(opened, lines), ""


def _opening(line: str, in_list: bool) -> _Opening | None:
    """Four blanks before the marks are code by indentation, except under the items of a list."""
    mark = _FENCE.fullmatch(line.rstrip("\r"))
    if mark is None or ("`" in mark[2] and "`" in mark[3]):
        return None
    indentation = len(mark[1].expandtabs(4))
    return _Opening(indentation, mark[2], mark[3].strip()) if indentation < 4 or in_list else None


def _closes(line: str, opened: _Opening) -> bool:
    mark = _FENCE.fullmatch(line.rstrip("\r"))
    if mark is None or mark[3].strip() or len(mark[1].expandtabs(4)) > opened.indentation + 3:
        return False
    return mark[2][0] == opened.marks[0] and len(mark[2]) >= len(opened.marks)


def _fence(opened: _Opening, lines: list[str]) -> Fence:
    """Its lines lose the indentation the fence itself has, where they have it."""
    words = opened.info.split()
    inside = (_dedented(line.rstrip("\r"), opened.indentation) for line in lines)
    return Fence(words[0].lower() if words else "", "\n".join(inside))


def _dedented(line: str, indentation: int) -> str:
    stripped = line.lstrip(" ")
    return line[min(len(line) - len(stripped), indentation) :]

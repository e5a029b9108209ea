"""From a conversation's messages to the source asked about and the requirements accepted (C3).

Messages are ``[{role, content}]``, content a string or a list of blocks. Whatever else is found is
skipped, and where nothing is left the answer is None, never an exception (M3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^`\r\n]*)$")
_SHALL = re.compile(r"\bshall\b", re.IGNORECASE)
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


def _parts(text: str) -> Iterator[tuple[Fence | None, str]]:
    """A markdown text cut into fences ``(fence, "")`` and what lies between them ``(None, text)``."""
    lines: list[str] = []
    opened: tuple[str, str] | None = None
    for line in text.split("\n"):
        mark = _FENCE.match(line.rstrip("\r"))
        if opened is None and mark:
            yield None, "\n".join(lines)
            opened, lines = (mark[1], mark[2].strip()), []
        elif opened is not None and mark and _closes(mark, opened[0]):
            yield _fence(opened[1], lines), ""
            opened, lines = None, []
        else:
            lines.append(line)
    if opened is None:
        yield None, "\n".join(lines)
    else:
        yield _fence(opened[1], lines), ""


def _closes(mark: re.Match[str], opening: str) -> bool:
    return mark[1][0] == opening[0] and len(mark[1]) >= len(opening) and not mark[2].strip()


def _fence(info: str, lines: list[str]) -> Fence:
    words = info.split()
    return Fence(words[0].lower() if words else "", "\n".join(line.rstrip("\r") for line in lines))

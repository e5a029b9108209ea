"""Extract the source and the accepted requirements from a conversation's messages.

Messages are ``[{role, content}]``, content a string or a list of blocks. Anything else is skipped, and
without a match the result is None, never an exception. (C3, M3)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# The text after the marks matches as a whole: a second run of spaces would take quadratic time.
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(?!`)([^\r\n]*)")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
# Not "Shall I go on?", "we shall see" or talk about the word "shall".
_SHALL = re.compile(
    r"(?<![\"'`“‘])(?<!\bi )(?<!\bwe )(?<!\byou )\bshall\b(?![\"'`”’]|\s{1,8}(?:i|we|you)\b)", re.IGNORECASE
)
# A fence of these languages holds prose, which may be requirements; program code never counts as such.
_PROSE = {"", "text", "txt", "plaintext", "md", "markdown", "requirements"}


@dataclass(frozen=True)
class ChatMessage:
    """One readable message and its role."""

    role: str
    text: str


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block: its language, lower case, and its content without the final newline."""

    language: str
    content: str


def parse_messages(content: object) -> list[ChatMessage]:
    """Parse the readable messages of a conversation's ``content``, in order; empty for anything else."""
    entries = [entry for entry in _as_list(content) if isinstance(entry, Mapping)]
    texts = ((entry.get("role"), _message_text(entry.get("content"))) for entry in entries)
    return [
        ChatMessage(role.strip().lower(), text)
        for role, text in texts
        if isinstance(role, str) and text is not None
    ]


def extract_source(messages: object, metadata: object) -> str | None:
    """Extract the source code that the requirements are for, or None. (C3)

    ``metadata.source_code`` unchanged, where present; else the last fenced code block of the user before the
    first answer with requirements, or before the end where there is no such answer.
    """
    source = _metadata_text(metadata, "source_code")
    for message in parse_messages(messages) if source is None else ():
        if message.role == "assistant" and has_shall_statement(message.text):
            break
        if message.role == "user":
            for fence in code_blocks(message.text):
                source = fence.content if fence.content.strip() else source
    return source


def extract_requirements(messages: object, metadata: object) -> str | None:
    """Extract the requirements that the developer accepted, or None. (C3)

    ``metadata.requirements`` unchanged, where present; else the last assistant message with "shall"
    statements. Statements in program code do not count. If only a fence of text or markdown has statements,
    its content is the requirements.
    """
    requirements = _metadata_text(metadata, "requirements")
    for message in parse_messages(messages) if requirements is None else ():
        if message.role == "assistant":
            requirements = _find_statements(message.text) or requirements
    return requirements


def has_shall_statement(text: str) -> bool:
    """Whether a text holds a "shall" statement, outside of program code."""
    return _find_statements(text) is not None


def code_blocks(text: str) -> Iterator[CodeBlock]:
    """Return the fenced code blocks of a markdown text; one that is never closed ends with the text."""
    return (fence for fence, _ in _split_fences(text) if fence is not None)


def _metadata_text(metadata: object, name: str) -> str | None:
    value = metadata.get(name) if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) and value.strip() else None


def _message_text(content: object) -> str | None:
    """Return a message's own text, without tool calls, tool results, images and reasoning."""
    if isinstance(content, str):
        return content
    blocks = [{"text": block} if isinstance(block, str) else block for block in _as_list(content)]
    texts = (
        block.get("text")
        for block in blocks
        if isinstance(block, Mapping) and block.get("type", "text") == "text"
    )
    own_texts = [text for text in texts if isinstance(text, str)]
    return "\n".join(own_texts) if own_texts else None


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _find_statements(text: str) -> str | None:
    """Return the requirements in an assistant message: the whole message, or the prose fence with them."""
    fenced = None
    for fence, outside in _split_fences(text):
        if fence is None and _SHALL.search(outside):
            return text.strip()
        if fence is not None and fence.language in _PROSE and _SHALL.search(fence.content):
            fenced = fence.content.strip()
    return fenced


def _split_fences(text: str) -> Iterator[tuple[CodeBlock | None, str]]:
    """Split a markdown text into fences ``(fence, "")`` and the text between them ``(None, text)``."""
    lines: list[str] = []
    opening: re.Match[str] | None = None
    in_list = False
    for line in text.split("\n"):
        marks = _FENCE.fullmatch(line.rstrip("\r"))
        if marks and opening is None and _opens(marks, in_list):
            yield None, "\n".join(lines)
            opening, lines = marks, []
        elif marks and opening is not None and _closes(marks, opening):
            yield _fence(opening, lines), ""
            opening, lines = None, []
        else:
            lines.append(line)
            in_list = in_list or (opening is None and _LIST_ITEM.match(line) is not None)
    yield (None, "\n".join(lines)) if opening is None else (_fence(opening, lines), "")


def _indentation(marks: re.Match[str]) -> int:
    return len(marks[1].expandtabs(4))


def _opens(marks: re.Match[str], in_list: bool) -> bool:
    """Whether the marks open a fence: after four spaces they are indented code, except in a list."""
    return not ("`" in marks[2] and "`" in marks[3]) and (in_list or _indentation(marks) < 4)


def _closes(marks: re.Match[str], opening: re.Match[str]) -> bool:
    if marks[3].strip() or _indentation(marks) > _indentation(opening) + 3:
        return False
    return marks[2][0] == opening[2][0] and len(marks[2]) >= len(opening[2])


def _fence(opening: re.Match[str], lines: list[str]) -> CodeBlock:
    """Build the block; its lines lose the indentation of the fence."""
    language: str = next(iter(opening[3].lower().split()), "")
    prefix = re.compile(f" {{0,{_indentation(opening)}}}")
    return CodeBlock(language, "\n".join(prefix.sub("", line.rstrip("\r"), count=1) for line in lines))

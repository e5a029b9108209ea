"""Fenced code blocks of a markdown text, as people and models write them.

Beyond CommonMark: a fence may open behind words on a line, if one closes later; and one that no line of its
own closes ends where a line ends with its marks or has words behind them, else with the text. Linear in the
text's length. (C3)
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

# The text after the marks matches as a whole: a second run of spaces would take quadratic time.
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(?!`)([^\r\n]*)")
_MARKS = re.compile(r"`{3,}")
_TAG = re.compile(r"[\w+#.{}:/-]{0,60}[ \t\r]*")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
_LANGUAGE = re.compile(r"[\w+#-]+")
_EXTENSION = re.compile(r"[\w./-]*?\.(\w{1,10})(?:[:,{].*)?")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block: its language, lower case, and its content without the final newline."""

    language: str
    content: str


@dataclass(frozen=True)
class _Opening:
    indentation: int
    marks: str
    info: str


def language_set(names: str) -> frozenset[str]:
    """Return the languages of fences that a text names, separated by spaces."""
    return frozenset(names.split())


def code_blocks(text: str) -> Iterator[CodeBlock]:
    """Return the fenced code blocks of a markdown text; one that is never closed ends with the text."""
    return (segment for segment in split_fences(text) if isinstance(segment, CodeBlock))


def split_fences(text: str) -> Iterator[CodeBlock | str]:
    """Split a markdown text into its fenced blocks and the texts between them, in order."""
    all_lines = text.split("\n")
    last_marks = max((i for i, line in enumerate(all_lines) if line.rstrip().endswith("```")), default=-1)
    start, recovering = 0, False
    while start < len(all_lines):
        stop = yield from _scan(all_lines, start, last_marks, recovering)
        start, recovering = stop, True


def _scan(
    lines: list[str], first: int, last_marks: int, recovering: bool
) -> Generator[CodeBlock | str, None, int]:
    """Yield segments from line ``first`` on; return where to go on.

    A block that no line of its own closes is read again: in ``recovering``, marks at the end of a line close.
    """
    block: list[str] = []
    opening: _Opening | None = None
    opened_at, in_list = first, False
    for index in range(first, len(lines)):
        line = lines[index].rstrip("\r")
        if opening is not None:
            if (end := _find_end(line, opening, recovering)) is None:
                block.append(lines[index])
            else:
                yield _build(opening, [*block, *end[0]])
                opening, block = None, end[1]
            continue
        words, next_opening = _opens(line, in_list, index < last_marks)
        if next_opening is None:
            block.append(lines[index])
            in_list = in_list or _LIST_ITEM.match(line) is not None
            continue
        yield "\n".join([*block, words] if words else block)
        opening, block, opened_at = next_opening, [], index
    if opening is None:
        yield "\n".join(block)
        return len(lines)
    if not recovering and any(_ends_with(line, opening) or _begins_with(line, opening) for line in block):
        return opened_at
    yield _build(opening, block)
    return len(lines)


def _opens(line: str, in_list: bool, closes_later: bool) -> tuple[str, _Opening | None]:
    """Return the words before the fence that a line opens, and the opening.

    After four spaces the marks are indented code, except in a list.
    """
    if marks := _FENCE.fullmatch(line):
        opening = _Opening(len(marks[1].expandtabs(4)), marks[2], marks[3])
        is_fence = not ("`" in marks[2] and "`" in marks[3]) and (in_list or opening.indentation < 4)
        return "", opening if is_fence else None
    if closes_later and "```" in line:
        runs = list(_MARKS.finditer(line))
        if len(runs) == 1 and _TAG.fullmatch(line, runs[0].end()):
            return line[: runs[0].start()], _Opening(0, runs[0][0], line[runs[0].end() :])
    return "", None


def _find_end(line: str, opening: _Opening, recovering: bool) -> tuple[list[str], list[str]] | None:
    """Return what of a line that ends the block belongs to it and what to the text behind it, else None."""
    if _closes(line, opening):
        return [], []
    if recovering and _ends_with(line, opening):
        return [line.rstrip()[: -len(opening.marks)]], []
    if recovering and _begins_with(line, opening):
        return [], [line.lstrip(" \t`")]
    return None


def _closes(line: str, opening: _Opening) -> bool:
    marks = _FENCE.fullmatch(line)
    if marks is None or marks[3].strip() or len(marks[1].expandtabs(4)) > opening.indentation + 3:
        return False
    return marks[2][0] == opening.marks[0] and len(marks[2]) >= len(opening.marks)


def _ends_with(line: str, opening: _Opening) -> bool:
    return opening.marks[0] == "`" and line.rstrip().endswith(opening.marks)


def _begins_with(line: str, opening: _Opening) -> bool:
    return line.lstrip(" \t").startswith((f"{opening.marks} ", f"{opening.marks}, ", f"{opening.marks}. "))


def _build(opening: _Opening, lines: list[str]) -> CodeBlock:
    """Build the block; its lines lose the indentation of the fence."""
    prefix = re.compile(f" {{0,{opening.indentation}}}")
    content = "\n".join(prefix.sub("", line.rstrip("\r"), count=1) for line in lines)
    return CodeBlock(_parse_language(opening.info), content)


def _parse_language(info: str) -> str:
    """Return the language of an info string: of ``{.python}``, ``python:rate.py`` and ``rate.py`` too."""
    word = next(iter(info.lower().split()), "").lstrip("{.=")
    if extension := _EXTENSION.fullmatch(word):
        name = extension[1]
        return word.split(".")[0] if name.isdigit() else name
    match = _LANGUAGE.match(word)
    return match[0] if match else ""

"""Find the code in a message: fences, tags, unfenced and indented code, and files. (C3)"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from iccm_assets.capture.code_recognition import (
    CodeKind,
    CodeNames,
    classify_block,
    find_definition,
    find_names,
    is_code_line,
)
from iccm_assets.capture.fences import CodeBlock, split_fences
from iccm_assets.capture.messages import ChatMessage, FilePart, remove_line_numbers

# From the clearest place for code to the least clear.
MARKED, UNFENCED, READ, INLINE = range(4)
_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>code|pre|source|source_code|source-code|snippet|python|file|document"
    r"|document_content|typescript|javascript|selection|ide_selection)\b[^<>\n]{0,300}>",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"^> ?", re.MULTILINE)
_QUOTED_FENCE = re.compile(r"^> ?(?:```|~~~)", re.MULTILINE)
# What an editor says around the lines that are selected in it.
_SELECTION = re.compile(
    r"\s*The user selected [^\n]{1,500}:\n|\n\s*This may or may not be related [^\n]{1,200}\s*$"
)
_LINE_BREAK = re.compile(r"<br\s{0,3}/?>", re.IGNORECASE)
_SPAN = re.compile(r"(?<!`)(`{1,3})([^`\n]{8,2000})\1(?!`)")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_MIN_UNFENCED_LINES = 3  # without a definition


@dataclass(frozen=True)
class CodeCandidate:
    """Text that may be the source. ``rank``: how clearly its place marks it as code, best first."""

    text: str
    kind: CodeKind
    rank: int
    language: str = ""
    path: str = ""

    @cached_property
    def names(self) -> CodeNames:
        """What it defines and binds."""
        return find_names(self.text)

    @cached_property
    def identifiers(self) -> frozenset[str]:
        """Every identifier in it."""
        return find_identifiers(self.text)

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path.replace("\\", "/")).name


def find_identifiers(text: str) -> frozenset[str]:
    """Return the identifiers of a text."""
    return frozenset(_IDENTIFIER.findall(text))


def find_candidates(message: ChatMessage, edited: Collection[str] = ()) -> list[CodeCandidate]:
    """Return the code and the tests in a message, in order; nothing else.

    ``edited``: the paths of files that were shown before, of which what a tool writes is a new version.
    """
    text = _QUOTED.sub("", message.text) if _QUOTED_FENCE.search(message.text) else message.text
    pieces = [*_text_candidates(text), *(_file_candidate(file, edited) for file in message.files)]
    return [piece for piece in pieces if piece.kind in {"code", "tests"}]


def _file_candidate(file: FilePart, edited: Collection[str]) -> CodeCandidate:
    rank = MARKED if file.action == "attached" else READ
    fenced = [segment for segment in split_fences(file.text) if isinstance(segment, CodeBlock)]
    if not file.path and len(fenced) == 1:
        return _build(fenced[0].content, fenced[0].language, rank)
    is_own = file.action == "written" and file.path not in edited
    kind = "prose" if is_own else classify_block(file.text, path=file.path)
    return CodeCandidate(file.text, kind, rank, path=file.path)


def _build(text: str, language: str, rank: int) -> CodeCandidate:
    text = remove_line_numbers(text)
    return CodeCandidate(text, classify_block(text, language), rank, language)


def _text_candidates(text: str) -> Iterator[CodeCandidate]:
    if _is_all_code(text):
        yield CodeCandidate(text, classify_block(text), MARKED)
        return
    for segment in split_fences(text):
        if isinstance(segment, CodeBlock):
            yield _build(segment.content, segment.language, MARKED)
            continue
        for piece, is_tagged in _split_tags(segment):
            if is_tagged:
                yield _build(_decode(piece), "", MARKED)
            else:
                yield from _unfenced(piece)
                yield from (
                    _build(span[2].strip(), "", INLINE)
                    for span in _SPAN.finditer(piece)
                    if find_definition(span[2].strip())
                )


def _is_all_code(text: str) -> bool:
    """Whether every line belongs to one run of code: the gateway records a request's source like this."""
    stripped = text.strip()
    if not is_code_line(stripped.split("\n", 1)[0]):
        return False
    return next((run.text for run in _unfenced(text)), "") == stripped


def _split_tags(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text into what is inside of code tags (True) and outside (False); the innermost tag counts."""
    start = 0
    opening: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if not tag["end"]:
            opening = tag
        elif opening is not None and tag["name"].lower() == opening["name"].lower():
            yield text[start : opening.start()], False
            yield text[opening.end() : tag.start()], True
            start, opening = tag.end(), None
    if opening is not None:
        yield text[start : opening.start()], False
        yield text[opening.end() :], True
    else:
        yield text[start:], False


def _decode(text: str) -> str:
    """Return the code in a tag: entities and line breaks decoded, without the line breaks around it."""
    if "<br" in text.lower():
        text = _LINE_BREAK.sub("\n", text)
    if "&lt;" in text or "&gt;" in text or "&amp;" in text or "&quot;" in text:
        text = html.unescape(text)
    text = text.replace("\r\n", "\n")
    if "The user selected " in text[:200]:
        text = _SELECTION.sub("", text)
    return textwrap.dedent(text.strip("\n")).rstrip()


def _unfenced(text: str) -> Iterator[CodeCandidate]:
    """Yield runs of code lines in prose: with a definition, or long enough to be no accident."""
    for run in _code_runs(text.replace("\r\n", "\n").split("\n")):
        lines = [line.strip() for line in run if line.strip()]
        has_definition = any(find_definition(line[:300]) for line in lines)
        if has_definition or sum(map(is_code_line, lines)) >= _MIN_UNFENCED_LINES:
            yield _build(textwrap.dedent("\n".join(run)).strip("\n").rstrip(), "", UNFENCED)


def _code_runs(lines: list[str]) -> Iterator[list[str]]:
    """Yield lines of code with what follows them: blank lines, deeper lines and the rest of a string."""
    run: list[str] = []
    margin, in_string = 0, False
    for line in lines:
        code = line.strip()
        indentation = len(line) - len(line.lstrip(" \t"))
        is_code = bool(code) and is_code_line(code)
        belongs = indentation >= margin if is_code else indentation > margin
        if run and not (in_string or not code or belongs):
            yield run
            run, in_string = [], False
        if run or is_code:
            margin = margin if run else indentation
            run.append(line)
            in_string ^= (code.count('"""') + code.count("'''")) % 2 == 1
    yield run

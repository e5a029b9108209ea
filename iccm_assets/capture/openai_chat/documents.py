"""Split a file into JSON objects: one a line, or one array or objects over several lines. (C8)

Takes time in proportion to the size of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

from iccm_assets.capture.claude_code.message_content import MalformedLineError
from iccm_assets.capture.claude_code.transcript_lines import is_blank, parse_entry, read_lines

# An array is held in memory.
MAX_DOCUMENT_BYTES = 1 << 30
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = re.compile(r"[\s,\[\]\ufeff]*")
_NOT_UTF8 = re.compile("[\\udc80-\\udcff]")  # what such bytes are decoded as

# A parsed object, or the reason why it could not be parsed.
Document = dict[str, Any] | MalformedLineError


def read_documents(stream: BinaryIO, progress: Callable[[bytes], None]) -> Iterator[Document]:
    """Yield the objects of a file; ``progress`` receives what was read."""
    is_first = True
    for raw, complete in read_lines(stream):
        progress(raw)
        if is_blank(raw.removeprefix(_BOM)):
            continue
        if is_first and _begins_document(raw):
            yield from _read_whole(raw, stream, progress)
            return
        is_first = False
        yield _parse_line(raw, complete)


def _begins_document(raw: bytes) -> bool:
    """Whether the first line begins an array, or an object over several lines."""
    text = raw.removeprefix(_BOM).strip()
    return text.startswith(b"[") or text == b"{"


def _parse_line(raw: bytes, complete: bool) -> Document:
    try:
        return parse_entry(raw) if complete else MalformedLineError("too_long")
    except MalformedLineError as error:
        return error


def _read_whole(first: bytes, stream: BinaryIO, progress: Callable[[bytes], None]) -> Iterator[Document]:
    parts, size = [first], len(first)
    while part := stream.read(1 << 20):
        progress(part)
        size += len(part)
        if size > MAX_DOCUMENT_BYTES:
            yield MalformedLineError("too_long")
            return
        parts.append(part)
    yield from _split(b"".join(parts).decode("utf-8-sig", "surrogateescape"))


def _split(text: str) -> Iterator[Document]:
    """Yield the objects of a text; after one that is broken, go on with the next that begins a line.

    That line is as far indented as the first object: it is none of its parts.
    """
    start = _skip_separators(text, 0)
    indent = text[text.rfind("\n", 0, start) + 1 : start]
    beginning = "\n{" if indent.strip() else f"\n{indent}{{"
    end = yield from _parse_objects(text, start)
    following = text.find(beginning, end) if end < len(text) else -1
    if following >= 0:
        # An error counts the lines above it: in pieces, that takes no longer than the pieces.
        for piece in text[following + len(beginning) :].split(beginning):
            yield from _parse_objects("{" + piece, 0)


def _parse_objects(text: str, position: int) -> Generator[Document, None, int]:
    """Yield the objects from a position on, up to a broken one; return where that begins."""
    decoder = json.JSONDecoder()
    while position < len(text):
        start = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield MalformedLineError("too_deep" if isinstance(error, RecursionError) else "not_json")
            return position
        if _NOT_UTF8.search(text, start, position):
            yield MalformedLineError("not_utf8")
        else:
            yield value if isinstance(value, dict) else MalformedLineError("no_object")
        position = _skip_separators(text, position)
    return position


def _skip_separators(text: str, position: int) -> int:
    match = _SEPARATORS.match(text, position)
    return position if match is None else match.end()

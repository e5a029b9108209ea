"""Files that a patch of the `apply_patch` tool writes, edits or deletes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from iccm_assets.capture.claude_code.tool_files import ToolCall

_BEGIN = "*** Begin Patch"
_END = "*** End Patch"
_FILE = re.compile(r"\*\*\* (Add|Update|Delete) File: (.{1,500})")
_MOVE = "*** Move to: "
_NO_LINE = ("*** End of File", "\\ No newline at end of file")


def parse_patch(text: str) -> list[ToolCall]:
    """Return what a patch does, one call a file; empty if the text holds no patch."""
    _, begin, rest = text.partition(_BEGIN)
    body = rest.partition(_END)[0]
    return list(_parse_files(body.split("\n"))) if begin else []


def _parse_files(lines: list[str]) -> Iterator[ToolCall]:
    starts = [number for number, line in enumerate(lines) if _FILE.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        header = _FILE.match(lines[start])
        assert header is not None
        yield _parse_file(header[1], header[2].strip(), lines[start + 1 : end])


def _parse_file(action: str, path: str, lines: list[str]) -> ToolCall:
    """Return what happens to a file; one that is deleted or moved has neither a text nor edits."""
    if action == "Add":
        return ToolCall(path, "".join(f"{line[1:]}\n" for line in lines if line.startswith("+")))
    if action == "Delete" or any(line.startswith(_MOVE) for line in lines):
        return ToolCall(path)
    return ToolCall(path, edits=tuple(_parse_edits(lines)))


def _parse_edits(lines: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield the old and the new lines of each section, with those around them."""
    old: list[str] = []
    new: list[str] = []
    for line in [*lines, "@@"]:
        if line.startswith("@@"):
            if old != new:
                yield "\n".join(old), "\n".join(new), False
            old, new = [], []
        elif not line.startswith(_NO_LINE):
            old += [line[1:]] if line[:1] in {" ", "-", ""} else []
            new += [line[1:]] if line[:1] in {" ", "+", ""} else []

"""Keep the files of a session small enough to store: the newest versions, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from iccm_assets.capture.claude_code.session_builder import Turn


def limit_files(turns: Iterable[Turn], max_chars: int) -> list[Turn]:
    """Drop files that a later version replaces before the next prompt, and the oldest above ``max_chars``."""
    limiter = _Limiter(max_chars)
    return list(reversed([limiter.limit(turn) for turn in reversed(list(turns))]))


class _Limiter:
    """Reads turns from the last to the first."""

    def __init__(self, max_chars: int) -> None:
        self._chars_left = max_chars
        self._written: set[str] = set()

    def limit(self, turn: Turn) -> Turn:
        """Return the turn with the files that are kept."""
        if isinstance(turn.content, str):
            self._written.clear()
            return turn
        content = list(reversed(list(self._kept_blocks(turn.content))))
        if turn.role == "user" and any(block.get("type") == "text" for block in content):
            self._written.clear()
        return turn if len(content) == len(turn.content) else replace(turn, content=content)

    def _kept_blocks(self, blocks: list[Any]) -> Iterator[Any]:
        for block in reversed(blocks):
            if block.get("type") != "file" or self._keeps(block):
                yield block

    def _keeps(self, part: dict[str, str]) -> bool:
        if part["action"] == "written" and part["path"] in self._written:
            return False
        if len(part["text"]) > self._chars_left:
            return False
        self._chars_left -= len(part["text"])
        if part["action"] == "written":
            self._written.add(part["path"])
        return True

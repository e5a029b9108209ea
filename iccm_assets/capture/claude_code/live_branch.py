"""Find the live branch of a session: what leads to its last message.

A transcript is only ever appended to. A prompt that is edited and sent again is a second child of the same
parent; the lines of the first one remain in the file and are dead. Other lines with several children are
artifacts of recording: results of parallel tool calls, attachments, answers written while tools run. (C3)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from iccm_assets.capture.claude_code.transcript_lines import TranscriptLine

_ROOT = -1
# Kinds of lines that the developer and the assistant write; a branch ends with one of them.
_MESSAGES = frozenset({"prompt", "queued", "answer"})
# A session may continue another one in the same file. All of them read at most so many lines of others, in
# multiples of the lines of the file.
_MAX_INHERITED_SHARE = 4


class BranchGraph:
    """The lines of one file as a graph; every method takes linear time."""

    def __init__(self, lines: Sequence[TranscriptLine]) -> None:
        self._lines = lines
        self.positions: dict[str, list[int]] = defaultdict(list)
        for position, line in enumerate(lines):
            self.positions[line.session].append(position)
        self._parents = self._link()
        self._order = list(self._parents_first())
        self._inherited_left = _MAX_INHERITED_SHARE * len(lines)
        self._session_order: dict[str, list[int]] = defaultdict(list)
        for position in self._order:
            self._session_order[lines[position].session].append(position)
        self._continued = self._find_continued()

    def find_live(self, session: str) -> list[int]:
        """Return the positions of a session's live lines, parents first, and of lines it continues."""
        own = self.positions[session]
        live = set(self._walk(session, self._find_leaf(own)))
        order = self._session_order[session]
        for position in order:
            if position not in live and self._accompanies(position, live):
                live.add(position)
        inherited = sorted(position for position in live if self._lines[position].session != session)
        return [*inherited, *(position for position in order if position in live)]

    def _link(self) -> list[int]:
        """Return the position of each line's parent.

        A line without one, or with an unknown one, follows the line above it; all lines with the same unknown
        parent follow the same line. A prompt without a parent is the first one, edited; unless no line of the
        session has a parent.
        """
        index: dict[str, int] = {}
        for position, line in enumerate(self._lines):
            if line.uuid is not None:
                index.setdefault(line.uuid, position)
        linked = {line.session for line in self._lines if line.parent is not None}
        previous: dict[str, int] = {}
        unknown: dict[str, int] = {}
        parents = []
        for position, line in enumerate(self._lines):
            above = previous.get(line.session, _ROOT)
            if line.parent is None:
                parent = _ROOT if line.is_root and line.session in linked else above
            else:
                parent = index.get(line.parent, _ROOT)
                if parent in {_ROOT, position}:
                    parent = unknown.setdefault(line.parent, above)
            parents.append(parent)
            previous[line.session] = position
        return parents

    def _parents_first(self) -> Iterator[int]:
        """Yield all positions in the order of the file, each after its parent; a cycle is cut."""
        done = bytearray(len(self._lines))
        for position in range(len(self._lines)):
            chain = []
            while position != _ROOT and not done[position]:
                done[position] = 1
                chain.append(position)
                position = self._parents[position]
            yield from reversed(chain)

    def _find_continued(self) -> bytearray:
        """Mark the lines with a message below them."""
        continued = bytearray(len(self._lines))
        for position in reversed(self._order):
            parent = self._parents[position]
            if parent != _ROOT and (continued[position] or self._lines[position].kind in _MESSAGES):
                continued[parent] = 1
        return continued

    def _find_leaf(self, own: list[int]) -> int:
        """Return the last message that nothing follows, else the last line."""
        messages = [position for position in own if self._lines[position].kind in _MESSAGES]
        leaves = [position for position in messages if not self._continued[position]]
        return next(reversed(leaves or messages or own))

    def _walk(self, session: str, position: int) -> Iterator[int]:
        """Yield the leaf and everything above it; after a cycle, the line above those already read."""
        visited: set[int] = set()
        lowest = position
        while position != _ROOT and self._inherited_left > 0:
            visited.add(position)
            yield position
            self._inherited_left -= self._lines[position].session != session
            lowest = min(lowest, position)
            position = self._parents[position]
            if position in visited:
                position = lowest - 1
                if position != _ROOT and self._lines[position].session != session:
                    return

    def _accompanies(self, position: int, live: set[int]) -> bool:
        """Whether a line beside the branch belongs to it: a rewind always begins with a prompt."""
        line, parent = self._lines[position], self._parents[position]
        if parent not in live:
            return False
        if line.kind == "answer":
            return self._lines[parent].kind == "answer"
        if line.kind in {"file", "queued"} and line.uuid is not None:
            return not self._continued[position]
        return line.uuid is None or line.kind in {"result", "link"}

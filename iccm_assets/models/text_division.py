"""Divide a long text into units (sentences, lines) and into overlapping windows of units (P2).

An embedder reads a limited number of word pieces. A longer text is compared by windows: one starts at each
unit and has at least two units and some fifty word pieces, up to the one that reaches the end. Units end
where sentences and lines end, so a change of one sentence changes only the windows around it. Windows are
small, because one differing sentence changes a window of 250 word pieces by too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# In word pieces: units are merged up to the first number and cut into parts above the second.
MIN_UNIT_PIECES = 8
MAX_UNIT_PIECES = 48
PART_PIECES = 24
MIN_WINDOW_PIECES = 48

_UNIT_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")

Positions = npt.NDArray[np.intp]


@dataclass(frozen=True)
class DividedText:
    """A text and its units.

    ``edges`` are the positions of the units' starts and of the text's end, ``pieces`` the word pieces of each
    unit. A text that the embedder reads as a whole has one unit.
    """

    text: str
    edges: tuple[int, ...]
    pieces: tuple[int, ...]

    @classmethod
    def whole(cls, text: str, pieces: int = 1) -> DividedText:
        """Return a text of one unit."""
        return cls(text, (0, len(text)), (pieces,))

    @property
    def is_long(self) -> bool:
        """Whether the text has several units, and so several windows."""
        return len(self.pieces) > 1

    def part(self, first: int, last: int) -> str:
        """Return the text of the units from ``first`` up to, without, ``last``."""
        return self.text[self.edges[first] : self.edges[last]].strip()

    def units(self) -> list[str]:
        """Return the text of each unit."""
        return [self.part(index, index + 1) for index in range(len(self.pieces))]

    def windows(self) -> list[str]:
        """Return the overlapping windows; the text itself if it is not long."""
        if not self.is_long:
            return [self.text]
        return [self.part(first, last) for first, last in self._window_bounds()]

    def _window_bounds(self) -> Iterator[tuple[int, int]]:
        ends, count = np.cumsum((0, *self.pieces)), len(self.pieces)
        lasts = np.maximum(np.searchsorted(ends, ends[:-1] + MIN_WINDOW_PIECES), np.arange(count) + 2)
        for first, last in enumerate(lasts.tolist()):
            yield first, min(last, count)
            if last >= count:
                return


def divide_text(text: str, piece_starts: Positions) -> DividedText:
    """Divide a long text; ``piece_starts`` are the positions of its word pieces, in order."""
    ends = np.fromiter((match.end() for match in _UNIT_END.finditer(text)), dtype=np.intp)
    natural = np.concatenate([[0], np.searchsorted(piece_starts, ends), [len(piece_starts)]])  # ascending
    distinct = natural[np.diff(natural, prepend=-1) > 0]
    bounds = np.array(_adjust(distinct.tolist()), dtype=np.intp)
    edges = (0, *piece_starts[bounds[1:-1]].tolist(), len(text))
    return DividedText(text, edges, tuple(np.diff(bounds).tolist()))


def _adjust(bounds: list[int]) -> list[int]:
    """Merge units that are too small with the next one, and cut units that are too large."""
    adjusted = [bounds[0]]
    for bound in bounds[1:]:
        if bound - adjusted[-1] > MAX_UNIT_PIECES:
            adjusted += range(adjusted[-1] + PART_PIECES, bound - MIN_UNIT_PIECES, PART_PIECES)
        if bound - adjusted[-1] >= MIN_UNIT_PIECES or bound == bounds[-1]:
            adjusted.append(bound)
    return adjusted

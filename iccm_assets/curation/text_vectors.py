"""Vectors of texts, one or several windows each, and the similarity of two texts (P2).

The only definition, used wherever two texts are compared: the similarity of two windows is the float64 dot
product of their unit vectors; that of two texts is the smallest similarity of a window of either text with
the most similar window of the other one, rounded to 6 decimals. For texts of one window that is the dot
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.similarity import (
    Float64,
    Matrix,
    Nearest,
    find_nearest_row,
    float32_margin,
    normalize_rows,
    round_similarities,
    similarity,
)

Positions = npt.NDArray[np.intp]

# At most this many similarities of windows are in memory at once.
_MAX_BLOCK_CELLS = 4_000_000
_BLOCK_TEXTS = 512
_BLOCK_WINDOWS = 8192


@dataclass(frozen=True)
class TextVectors:
    """The windows of n texts, one text after the other: shape (N, d), and how many each text has."""

    matrix: Matrix
    counts: Positions

    @classmethod
    def stack(cls, texts: Sequence[Matrix], dimensions: int) -> TextVectors:
        """Join the windows of each text, shape (w, d)."""
        counts = np.array([len(windows) for windows in texts], dtype=np.intp)
        empty = np.zeros((0, dimensions), dtype=np.float32)
        return cls(np.concatenate([empty, *texts]) if texts else empty, counts)

    @classmethod
    def of_single_windows(cls, matrix: Matrix) -> TextVectors:
        """Return texts of one window each."""
        return cls(matrix, np.ones(len(matrix), dtype=np.intp))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.counts)

    @cached_property
    def starts(self) -> Positions:
        """Position of the first window of each text, and the number of windows."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.intp)

    @property
    def are_single(self) -> bool:
        """Whether every text has one window."""
        return len(self.matrix) == len(self.counts)

    def windows(self, text: int) -> Matrix:
        """Return the windows of a text, shape (w, d)."""
        return self.matrix[self.starts[text] : self.starts[text + 1]]

    def part(self, start: int, end: int) -> TextVectors:
        """Return the texts from ``start`` to before ``end``, without a copy."""
        matrix = self.matrix[self.starts[start] : self.starts[min(end, len(self))]]
        return TextVectors(matrix, self.counts[start:end])

    def take(self, texts: Positions) -> TextVectors:
        """Return some of the texts, in that order."""
        counts = self.counts[texts]
        ends = np.cumsum(counts)
        offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return TextVectors(self.matrix[np.repeat(self.starts[texts], counts) + offsets], counts)

    def find_texts(self, windows: Positions) -> Positions:
        """Return the texts that these windows, in ascending order, belong to, each once."""
        if self.are_single:
            return windows
        return np.unique(np.searchsorted(self.starts, windows, side="right") - 1)

    def normalized(self) -> TextVectors:
        """Return the vectors as float64 unit vectors; raises ``InputError`` like ``normalize_rows``."""
        return TextVectors(normalize_rows(self.matrix), self.counts)


def text_similarities(windows: Matrix, others: TextVectors) -> Float64:
    """Return the similarity of a text, by its windows, with each other text; all are unit vectors."""
    texts_at_once = max(1, _MAX_BLOCK_CELLS // (len(windows) * max(1, int(others.counts.max(initial=1)))))
    if len(others) <= texts_at_once:
        return _similarities_of_block(windows, others)
    blocks = [
        _similarities_of_block(
            windows, others.take(np.arange(start, min(start + texts_at_once, len(others))))
        )
        for start in range(0, len(others), texts_at_once)
    ]
    return np.concatenate(blocks)


def _similarities_of_block(windows: Matrix, others: TextVectors) -> Float64:
    def exact(text: int) -> float:
        pairs = [[similarity(a, b) for b in others.windows(text)] for a in windows]
        return float(min(np.max(pairs, axis=1).min(), np.max(pairs, axis=0).min()))

    if not len(others):
        return np.zeros(0)
    if len(windows) == 1 and others.are_single:
        return round_similarities(others.matrix @ windows[0], exact)
    products = windows @ others.matrix.T
    starts = others.starts[:-1]
    covered = np.maximum.reduceat(products, starts, axis=1).min(axis=0)
    covering = np.minimum.reduceat(products.max(axis=0), starts)
    return round_similarities(np.minimum(covered, covering), exact)


def find_nearest(texts: TextVectors, others: TextVectors, threshold: float) -> list[Nearest | None]:
    """Return for each text its most similar text of ``others``, or None below ``threshold``.

    Both are unit vectors. Of equally similar texts the first counts. A float32 product of the first window of
    each text with all other windows proposes; float64 decides.
    """
    matches: list[Nearest | None] = [None] * len(texts)
    if len(others) == 0:
        return matches
    slack = float32_margin(texts.matrix.shape[1])
    firsts = texts.matrix[texts.starts[:-1]].astype(np.float32)
    quick = others.matrix.astype(np.float32)
    for start in range(0, len(texts), _BLOCK_TEXTS):
        block = firsts[start : start + _BLOCK_TEXTS]
        best = np.full(len(block), -np.inf, dtype=np.float32)
        # By blocks of columns: all similarities at once would not fit in memory.
        for column in range(0, len(quick), _BLOCK_WINDOWS):
            best = np.maximum(best, (block @ quick[column : column + _BLOCK_WINDOWS].T).max(axis=1))
        for offset in np.flatnonzero(best >= threshold - slack):
            text = start + int(offset)
            windows = texts.windows(text)
            # Among texts of one window, only those as similar as the best one can win.
            lowest = (
                best[offset] - 2 * slack if len(windows) == 1 and others.are_single else threshold - slack
            )
            close = others.find_texts(np.flatnonzero(quick @ firsts[text] >= lowest))
            matches[text] = find_nearest_row(close, text_similarities(windows, others.take(close)), threshold)
    return matches

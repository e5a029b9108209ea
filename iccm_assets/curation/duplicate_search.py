"""The most similar earlier text of each text: float32 products propose pairs, float64 decides (P2).

Texts are compared block by block with the vectors where they lie: no copy of a large pool is made, in
float64 least of all. Only pairs that a float32 product cannot exclude, by its error bound, are compared in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.similarity import (
    Float32,
    Float64,
    Matrix,
    float32_margin,
    normalize_rows,
    round_similarities,
    similarity,
)
from iccm_assets.curation.text_vectors import Positions, TextVectors, text_similarities

# 512 rows by 4096 columns are 8 MB in float32: they stay in the cache between product and comparison.
BLOCK_TEXTS = 512
_BLOCK_WINDOWS = 4096
_BLOCK_PAIRS = 2048
_MAX_DIRECT_CANDIDATES = 8


@dataclass(frozen=True)
class OrderedTexts:
    """Texts in the order of deduplication, with ascending positions.

    ``units`` are their windows in float32, of length 1; text k is row ``rows[k]`` of ``stored``, whose
    vectors define the similarities and may have any length.
    """

    units: TextVectors
    stored: TextVectors
    rows: Positions
    positions: Positions

    @classmethod
    def of(cls, stored: TextVectors, first_position: int = 0) -> OrderedTexts:
        """Return all texts of ``stored``; raises ``InputError`` like ``normalize_rows``."""
        rows = np.arange(len(stored))
        units = TextVectors(unit_float32(stored.matrix), stored.counts)
        return cls(units, stored, rows, rows + first_position)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.positions)

    def part(self, start: int, end: int) -> OrderedTexts:
        """Return the texts from ``start`` to before ``end``, without a copy of vectors."""
        units = self.units.part(start, end)
        return OrderedTexts(units, self.stored, self.rows[start:end], self.positions[start:end])

    def take(self, texts: Positions) -> OrderedTexts:
        """Return some of the texts, in ascending order; without a copy of vectors if they are neighbors."""
        if len(texts) and texts[-1] - texts[0] == len(texts) - 1:
            return self.part(int(texts[0]), int(texts[-1]) + 1)
        return OrderedTexts(self.units.take(texts), self.stored, self.rows[texts], self.positions[texts])


class BestMatches:
    """For each of n texts the highest similarity so far, and the position of that text: the first of equals.

    Without a match the similarity is -inf.
    """

    def __init__(self, n: int) -> None:
        self.similarities: Float64 = np.full(n, -np.inf)
        self.positions: Positions = np.full(n, -1, dtype=np.intp)

    def part(self, start: int, end: int) -> BestMatches:
        """Return a view of some of the texts."""
        view = BestMatches(0)
        view.similarities, view.positions = self.similarities[start:end], self.positions[start:end]
        return view

    def offer(self, texts: Positions, positions: Positions, similarities: Float64) -> Positions:
        """Take the better ones of some matches; return the texts whose match changes."""
        order = np.lexsort((positions, -similarities, texts))
        order = order[np.diff(texts[order], prepend=-1) != 0]
        better = self.are_better(texts[order], positions[order], similarities[order])
        order = order[better]
        changed: Positions = texts[order]
        self.similarities[changed], self.positions[changed] = similarities[order], positions[order]
        return changed

    def offer_one(self, text: int, position: int, similarity: float) -> None:
        """Take a match if it is better."""
        best = self.similarities[text]
        if similarity > best or (similarity == best and position < self.positions[text]):
            self.similarities[text], self.positions[text] = similarity, position

    def are_better(
        self, texts: Positions, positions: Positions, similarities: Float64
    ) -> npt.NDArray[np.bool_]:
        """Return which matches are better than those so far: more similar, or as similar and earlier."""
        best = self.similarities[texts]
        equal_and_earlier = (similarities == best) & (positions < self.positions[texts])
        return np.asarray((similarities > best) | equal_and_earlier)


def unit_float32(matrix: Matrix) -> Float32:
    """Return the rows in float32 with length 1: ``matrix`` itself if they are, within the margin of float32.

    Raises ``InputError`` like ``normalize_rows``.
    """
    if matrix.dtype == np.float32 and matrix.flags.c_contiguous:
        lengths = np.einsum("ij,ij->i", matrix, matrix)
        # The margin is twice the error of a product: it includes what such lengths change, as far as float32
        # can tell them from 1. NaN is no such length.
        if (np.abs(lengths - 1) <= 5e-6).all():
            return np.asarray(matrix, dtype=np.float32)
    units = np.empty(matrix.shape, dtype=np.float32)
    for start in range(0, len(matrix), _BLOCK_WINDOWS):
        block = slice(start, start + _BLOCK_WINDOWS)
        units[block] = normalize_rows(matrix[block], first_row=start)
    return units


def find_matches(
    texts: OrderedTexts,
    others: OrderedTexts,
    threshold: float,
    best: BestMatches,
    eligible: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Offer to ``best`` the matches of each text: eligible others before it, at least ``threshold`` similar.

    A pair that is not offered cannot be the best match of its text. All others are eligible by default.
    """
    if not len(others):
        return
    slack = float32_margin(texts.units.matrix.shape[1])
    for start in range(0, len(texts), BLOCK_TEXTS):
        block = texts.part(start, start + BLOCK_TEXTS)
        own = best.part(start, start + BLOCK_TEXTS)
        n_before = int(np.searchsorted(others.positions, block.positions[-1]))
        for columns, close, products in _propose(block, others.part(0, n_before), threshold - slack):
            may_win = others.positions[columns] < block.positions[close]
            if eligible is not None:
                may_win &= eligible[columns]
            may_win &= _may_win(own, close, others.positions[columns], products, slack)
            rows, columns, products = close[may_win], columns[may_win], products[may_win]
            if block.units.are_single and others.units.are_single:
                near = products >= _row_maxima(rows, products) - 2 * slack
                rows, columns = rows[near], columns[near]
            else:
                rows, columns = drop_partial_matches(block, rows, others, columns, threshold - slack)
            exact = pair_similarities(block, rows, others, columns)
            similar = exact >= threshold
            own.offer(rows[similar], others.positions[columns[similar]], exact[similar])


def _propose(
    texts: OrderedTexts, others: OrderedTexts, minimum: float
) -> Iterator[tuple[Positions, Positions, Float32]]:
    """Yield blocks of others, texts and float32 products of at least ``minimum``, by text, then by other.

    The first window of each text is compared with every window of the others.
    """
    firsts = texts.units.matrix
    if not texts.units.are_single:
        firsts = firsts[texts.units.starts[:-1]]
    matrix = others.units.matrix
    width = min(_BLOCK_WINDOWS, len(matrix))
    product = np.empty(len(firsts) * width, dtype=np.float32)
    for start in range(0, len(matrix), _BLOCK_WINDOWS):
        windows = matrix[start : start + _BLOCK_WINDOWS]
        block = product[: len(firsts) * len(windows)]
        np.matmul(firsts, windows.T, out=block.reshape(len(firsts), len(windows)))
        hits = np.flatnonzero(block >= np.float32(minimum))
        if len(hits):
            rows, columns = np.divmod(hits, len(windows))
            yield _join_windows(others, rows, columns + start, block[hits])


def _join_windows(
    others: OrderedTexts, rows: Positions, windows: Positions, products: Float32
) -> tuple[Positions, Positions, Float32]:
    """Return the others that windows belong to, each pair once with its highest product."""
    if others.units.are_single:
        return windows, rows, products
    columns = np.searchsorted(others.units.starts, windows, side="right") - 1
    first = np.flatnonzero((np.diff(rows, prepend=-1) != 0) | (np.diff(columns, prepend=-1) != 0))
    return columns[first], rows[first], np.maximum.reduceat(products, first)


def _may_win(
    best: BestMatches, texts: Positions, positions: Positions, products: Float32, slack: float
) -> npt.NDArray[np.bool_]:
    """Return which pairs may be better than the best match so far: 1 is the highest similarity."""
    so_far = best.similarities[texts]
    is_certain = (so_far >= 1) & (best.positions[texts] < positions)
    return np.asarray(~is_certain & (products + slack >= so_far))


def _row_maxima(rows: Positions, products: Float32) -> Float32:
    """Return for each pair the highest product of its row; rows ascend."""
    if not len(rows):
        return products
    starts = np.flatnonzero(np.diff(rows, prepend=-1) != 0)
    maxima = np.maximum.reduceat(products, starts)
    return np.asarray(np.repeat(maxima, np.diff(starts, append=len(rows))))


def drop_partial_matches(
    texts: OrderedTexts, rows: Positions, others: OrderedTexts, columns: Positions, minimum: float
) -> tuple[Positions, Positions]:
    """Drop the pairs of a long text that cannot match in every window of both; in float32, ordered by row.

    Many long texts begin alike: comparing all their windows in float64 would take minutes.
    """
    if texts.units.are_single:
        return rows, columns
    retained = np.ones(len(rows), dtype=bool)
    starts = np.flatnonzero(np.diff(rows, prepend=-1) != 0)
    for start, end in pairwise([*starts.tolist(), len(rows)]):
        if texts.units.counts[rows[start]] == 1 or end - start <= _MAX_DIRECT_CANDIDATES:
            continue
        candidates = columns[start:end]
        span = others.units.part(int(candidates[0]), int(candidates[-1]) + 1)
        close = texts.units.windows(int(rows[start])) @ span.matrix.T >= np.float32(minimum)
        covered = np.logical_or.reduceat(close, span.starts[:-1], axis=1).all(axis=0)
        covering = np.logical_and.reduceat(close.any(axis=0), span.starts[:-1])
        retained[start:end] = (covered & covering)[candidates - candidates[0]]
    return rows[retained], columns[retained]


def pair_similarities(
    texts: OrderedTexts, rows: Positions, others: OrderedTexts, columns: Positions
) -> Float64:
    """Return the similarity of each pair of a text and another, in float64, from the stored vectors."""
    result = np.empty(len(rows))
    are_long = (texts.units.counts[rows] > 1) | (others.units.counts[columns] > 1)
    for row in np.unique(rows[are_long]):
        pairs = np.flatnonzero(are_long & (rows == row))
        windows = normalize_rows(texts.stored.windows(int(texts.rows[row])))
        result[pairs] = text_similarities(
            windows, others.stored.take(others.rows[columns[pairs]]).normalized()
        )
    single = np.flatnonzero(~are_long)
    for start in range(0, len(single), _BLOCK_PAIRS):
        pairs = single[start : start + _BLOCK_PAIRS]
        result[pairs] = _single_similarities(
            _stored_windows(texts, rows[pairs]), _stored_windows(others, columns[pairs])
        )
    return result


def _stored_windows(texts: OrderedTexts, rows: Positions) -> Float64:
    return normalize_rows(texts.stored.matrix[texts.stored.starts[texts.rows[rows]]])


def _single_similarities(a: Float64, b: Float64) -> Float64:
    return round_similarities(np.einsum("ij,ij->i", a, b), lambda row: similarity(a[row], b[row]))

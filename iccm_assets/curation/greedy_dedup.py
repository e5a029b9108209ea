"""Greedy removal of near-duplicates (P2), pure numpy.

Rows are processed in the given order. A row is kept unless a row kept before it is at least ``threshold``
similar; else it is removed, with the most similar kept row (of equals, the earliest) and the similarity.
Similarity is defined by ``curation.text_vectors``; nothing is approximate.

Cost: one float32 product of each row's first window with all windows kept before it. 10 000 rows of one
window and 384 dimensions take about a second on two cores and 150 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.similarity import Float32, Float64, Matrix, find_nearest_row, float32_margin
from iccm_assets.curation.text_vectors import Positions, TextVectors, text_similarities
from iccm_assets.errors import InputError

Id = TypeVar("Id", bound=Hashable)

_BLOCK = 512
_MAX_DIRECT_CANDIDATES = 8


@dataclass(frozen=True)
class EmbeddedRows(Generic[Id]):
    """Ids and their vectors, shape (n, d), of any length but zero; ``greedy_dedup`` normalizes them.

    A row may have several vectors, one for each window: ``counts`` says how many.
    """

    ids: Sequence[Id]
    vectors: Matrix
    counts: Positions | None = None

    def __post_init__(self) -> None:
        windows = len(self.vectors) if self.counts is None else self.counts.sum()
        rows = len(self.vectors) if self.counts is None else len(self.counts)
        if self.vectors.ndim != 2 or windows != len(self.vectors) or len(self.ids) != rows:
            raise InputError(f"{len(self.ids)} ids with vectors of shape {self.vectors.shape}")

    def normalized(self) -> TextVectors:
        """Return the unit vectors of all windows."""
        if self.counts is None:
            return TextVectors.of_single_windows(self.vectors).normalized()
        return TextVectors(self.vectors, self.counts).normalized()


@dataclass(frozen=True)
class RemovedDuplicate(Generic[Id]):
    """A removed row, the kept row it duplicates, and their similarity (6 decimals)."""

    id: Id
    duplicate_of: Id
    similarity: float


@dataclass(frozen=True)
class DedupResult(Generic[Id]):
    """The decision on every row of ``rows``, in their order; ``existing`` rows are not included."""

    kept: list[Id]
    removed: list[RemovedDuplicate[Id]]


def greedy_dedup(
    rows: EmbeddedRows[Id],
    existing: EmbeddedRows[Id] | None,
    threshold: float,
    progress: Callable[[int], None] | None = None,
) -> DedupResult[Id]:
    """Deduplicate ``rows`` against ``existing`` and each other; ``existing`` is retained as it is.

    ``progress`` is called with the number of rows of each processed block. Raises ``InputError`` for vectors
    without a direction, of different dimensions, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold {threshold} is not in (0, 1]")
    result: DedupResult[Id] = DedupResult([], [])
    if not len(rows.ids):
        return result
    if existing is None or not len(existing.ids):
        existing = EmbeddedRows((), rows.vectors[:0])
    units = rows.normalized()
    kept = _KeptRows(existing, units, threshold)
    for start in range(0, len(units), _BLOCK):
        ids = rows.ids[start : start + _BLOCK]
        block = units.take(np.arange(start, start + len(ids)))
        for id_, duplicate in zip(ids, kept.add_block(ids, block), strict=True):
            if duplicate is None:
                result.kept.append(id_)
            else:
                result.removed.append(RemovedDuplicate(id_, *duplicate))
        if progress is not None:
            progress(len(ids))
    return result


class _KeptRows(Generic[Id]):
    """The windows of the kept rows as float64 and float32 unit vectors, in arrays with room for all rows."""

    def __init__(self, first: EmbeddedRows[Id], rows: TextVectors, threshold: float) -> None:
        if first.vectors.shape[1] != rows.matrix.shape[1]:
            raise InputError(
                f"vectors of {first.vectors.shape[1]} and of {rows.matrix.shape[1]} dimensions cannot be "
                "compared"
            )
        self.ids: list[Id] = []
        self.threshold = threshold
        self._minimum = threshold - float32_margin(rows.matrix.shape[1])  # of a product in float32
        units = first.normalized()
        self.exact: Float64 = np.empty((len(units.matrix) + len(rows.matrix), rows.matrix.shape[1]))
        self.quick: Float32 = np.empty(self.exact.shape, dtype=np.float32)
        self.counts: Positions = np.zeros(len(units) + len(rows), dtype=np.intp)
        self.n_windows = 0
        # Of equal rows only the first can ever be the match, so the others are omitted.
        distinct: set[bytes] = set()
        for row, id_ in enumerate(first.ids):
            windows = units.windows(row)
            if (key := windows.tobytes()) not in distinct:
                distinct.add(key)
                self._append(id_, windows)

    def _append(self, id_: Id, windows: Matrix) -> None:
        end = self.n_windows + len(windows)
        self.exact[self.n_windows : end] = self.quick[self.n_windows : end] = windows
        self.counts[len(self.ids)] = len(windows)
        self.n_windows = end
        self.ids.append(id_)

    def add_block(self, ids: Sequence[Id], block: TextVectors) -> list[tuple[Id, float] | None]:
        """Decide a block of rows in order: None for a kept row, else the row it duplicates and how similar.

        One float32 product compares the first window of each row with all windows kept before, another with
        the windows of the block: of those candidates, only rows that were kept count.
        """
        quick = block.matrix.astype(np.float32)
        firsts = quick[block.starts[:-1]]
        before = self._kept()
        close = np.asarray(firsts @ self.quick[: self.n_windows].T >= self._minimum)
        close_in_block = np.asarray(firsts @ quick.T >= self._minimum)
        positions = np.full(len(ids), -1)  # in the kept rows
        decisions: list[tuple[Id, float] | None] = []
        for index, id_ in enumerate(ids):
            earlier = np.flatnonzero(close_in_block[index, : block.starts[index]])
            in_block = positions[block.find_texts(earlier)]
            candidates = np.concatenate(
                [before.find_texts(np.flatnonzero(close[index])), in_block[in_block >= 0]]
            )
            if block.counts[index] > 1 and len(candidates) > _MAX_DIRECT_CANDIDATES:
                candidates = candidates[
                    self._may_match(quick[block.starts[index] : block.starts[index + 1]])[candidates]
                ]
            duplicate = self._most_similar(candidates, block.windows(index))
            if duplicate is None:
                positions[index] = len(self.ids)
                self._append(id_, block.windows(index))
            decisions.append(duplicate)
        return decisions

    def _may_match(self, windows: Float32) -> npt.NDArray[np.bool_]:
        """Return for each kept row whether it and a row can match in every window; in float32, with a margin.

        Many long texts begin alike: comparing all their windows in float64 would take minutes.
        """
        close = windows @ self.quick[: self.n_windows].T >= self._minimum
        starts = self._kept().starts[:-1]
        covered = np.asarray(np.logical_or.reduceat(close, starts, axis=1).all(axis=0))
        covering = np.logical_and.reduceat(np.asarray(close.any(axis=0)), starts)
        both: npt.NDArray[np.bool_] = covered & covering
        return both

    def _kept(self) -> TextVectors:
        return TextVectors(self.exact[: self.n_windows], self.counts[: len(self.ids)])

    def _most_similar(self, candidates: Positions, windows: Matrix) -> tuple[Id, float] | None:
        if not len(candidates):
            return None
        # The first of equals: candidates are in the order they were kept.
        exact = text_similarities(windows, self._kept().take(candidates))
        nearest = find_nearest_row(candidates, exact, self.threshold)
        return None if nearest is None else (self.ids[nearest.index], nearest.similarity)

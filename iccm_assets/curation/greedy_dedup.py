"""Greedy removal of near-duplicates (P2), pure numpy.

Rows are processed in the given order. A row is kept unless a row kept before it is at least ``threshold``
similar; else it is removed, with the most similar kept row (of equals, the earliest) and the similarity.
Similarity is defined by ``curation.similarity``; nothing is approximate.

Cost: one float32 product of each row with the rows kept before it. 10 000 rows of 384 dimensions take about a
second on two cores and 150 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.similarity import (
    Float32,
    Float64,
    Matrix,
    float32_margin,
    normalize_rows,
    similarities,
)
from iccm_assets.errors import InputError

Id = TypeVar("Id", bound=Hashable)

_BLOCK = 512


@dataclass(frozen=True)
class EmbeddedRows(Generic[Id]):
    """Ids and their vectors, shape (n, d), of any length but zero; ``greedy_dedup`` normalizes them."""

    ids: Sequence[Id]
    vectors: Matrix

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.ids) != len(self.vectors):
            raise InputError(f"{len(self.ids)} ids with vectors of shape {self.vectors.shape}")


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
    existing: EmbeddedRows[Id] | None = None,
    threshold: float = 0.9,
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
    kept = _KeptRows(existing, rows.vectors.shape, threshold)
    units = normalize_rows(rows.vectors)
    for start in range(0, len(units), _BLOCK):
        ids = rows.ids[start : start + _BLOCK]
        for id_, duplicate in zip(ids, kept.add_block(ids, units[start : start + _BLOCK]), strict=True):
            if duplicate is None:
                result.kept.append(id_)
            else:
                result.removed.append(RemovedDuplicate(id_, *duplicate))
        if progress is not None:
            progress(len(ids))
    return result


class _KeptRows(Generic[Id]):
    """The kept rows as float64 and float32 unit vectors, in arrays with room for all rows."""

    def __init__(self, first: EmbeddedRows[Id], shape: tuple[int, ...], threshold: float) -> None:
        count, dimensions = shape
        if first.vectors.shape[1] != dimensions:
            raise InputError(
                f"vectors of {first.vectors.shape[1]} and of {dimensions} dimensions cannot be compared"
            )
        self.ids: list[Id] = []
        self.threshold = threshold
        self.exact: Float64 = np.empty((len(first.ids) + count, dimensions))
        self.quick: Float32 = np.empty(self.exact.shape, dtype=np.float32)
        # Of equal vectors only the first can ever be the match, so the others are omitted.
        distinct: set[bytes] = set()
        for id_, unit in zip(first.ids, normalize_rows(first.vectors), strict=True):
            if (key := unit.tobytes()) not in distinct:
                distinct.add(key)
                self._append(id_, unit)

    def _append(self, id_: Id, unit: Float64) -> None:
        self.exact[len(self.ids)] = self.quick[len(self.ids)] = unit
        self.ids.append(id_)

    def add_block(self, ids: Sequence[Id], units: Float64) -> list[tuple[Id, float] | None]:
        """Decide a block of rows in order: None for a kept row, else the row it duplicates and how similar.

        One float32 product compares the block with the rows kept before it, another compares it with itself:
        of those candidates, only rows that were kept count.
        """
        quick = units.astype(np.float32)
        minimum = self.threshold - float32_margin(units.shape[1])
        close = np.asarray(quick @ self.quick[: len(self.ids)].T >= minimum)
        close_in_block = np.asarray(quick @ quick.T >= minimum)
        positions = np.full(len(ids), -1)  # in the kept rows
        decisions: list[tuple[Id, float] | None] = []
        for index, id_ in enumerate(ids):
            in_block = positions[:index][close_in_block[index, :index]]
            candidates = np.concatenate([np.flatnonzero(close[index]), in_block[in_block >= 0]])
            duplicate = self._most_similar(candidates, units[index])
            if duplicate is None:
                positions[index] = len(self.ids)
                self._append(id_, units[index])
            decisions.append(duplicate)
        return decisions

    def _most_similar(self, candidates: npt.NDArray[np.intp], unit: Float64) -> tuple[Id, float] | None:
        if not len(candidates):
            return None
        exact = similarities(self.exact[candidates], unit)
        best = int(np.argmax(exact))  # the first of equals: candidates are in the order they were kept
        if exact[best] < self.threshold:
            return None
        return self.ids[int(candidates[best])], float(exact[best])

"""The greedy fold that removes near-duplicates (P2), pure numpy.

Rows are taken in the order given; a row is kept when no row kept so far is at least ``threshold``
similar, else removed, naming the most similar row kept so far (ties: the earliest kept) and how similar
it is. Similarity is that of ``curation.similarity``; nothing is approximate.

Cost: one float32 product of each row with the rows kept before it. 10 000 rows of 384 dimensions take
about a second on two cores and 150 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.similarity import Float32, Float64, Matrix, margin, similarities, unit_rows
from iccm_assets.errors import InputError

Id = TypeVar("Id", bound=Hashable)

_BLOCK = 512


@dataclass(frozen=True)
class Rows(Generic[Id]):
    """Ids and their vectors, shape (n, d), any length but zero; ``fold`` brings them to unit length."""

    ids: Sequence[Id]
    vectors: Matrix

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.ids) != len(self.vectors):
            raise InputError(f"{len(self.ids)} ids with vectors of shape {self.vectors.shape}")


@dataclass(frozen=True)
class Removed(Generic[Id]):
    """A row left out, the kept row it repeats, and their similarity (6 decimals)."""

    id: Id
    duplicate_of: Id
    similarity: float


@dataclass(frozen=True)
class FoldResult(Generic[Id]):
    """The decision on every row of ``rows``, in their order; ``kept_first`` is not repeated here."""

    kept: list[Id]
    removed: list[Removed[Id]]


def no_rows(dimensions: int = 384) -> Rows[Any]:
    """An empty pool or an empty day."""
    return Rows((), np.zeros((0, dimensions), dtype=np.float32))


def fold(
    rows: Rows[Id],
    kept_first: Rows[Id] | None = None,
    threshold: float = 0.9,
    progress: Callable[[int], None] | None = None,
) -> FoldResult[Id]:
    """Fold ``rows`` onto ``kept_first``, which stay as they are and are not compared with each other.

    ``progress`` is told how many rows were decided, block by block. Raises ``InputError`` for vectors
    without a direction, of different dimensions, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold {threshold} is not in (0, 1]")
    if not len(rows.ids):
        return FoldResult([], [])
    kept = _Kept(rows, kept_first, threshold)
    units = unit_rows(rows.vectors)
    result: FoldResult[Id] = FoldResult([], [])
    for start in range(0, len(units), _BLOCK):
        ids = rows.ids[start : start + _BLOCK]
        for id_, duplicate in zip(ids, kept.add_block(ids, units[start : start + _BLOCK]), strict=True):
            if duplicate is None:
                result.kept.append(id_)
            else:
                result.removed.append(Removed(id_, *duplicate))
        if progress is not None:
            progress(len(ids))
    return result


class _Kept(Generic[Id]):
    """The rows kept so far, as float64 and float32 unit vectors in arrays that leave room for all."""

    def __init__(self, rows: Rows[Id], first: Rows[Id] | None, threshold: float) -> None:
        dimensions = rows.vectors.shape[1]
        if first is not None and len(first.ids) and first.vectors.shape[1] != dimensions:
            raise InputError(
                f"vectors of {first.vectors.shape[1]} and of {dimensions} dimensions cannot be compared"
            )
        self.ids: list[Id] = []
        self.threshold = threshold
        self.slack = margin(dimensions)
        size = len(rows.ids) + (len(first.ids) if first is not None else 0)
        self.exact: Float64 = np.empty((size, dimensions))
        self.quick: Float32 = np.empty((size, dimensions), dtype=np.float32)
        if first is not None and len(first.ids):
            self._take_first(first)

    def _take_first(self, first: Rows[Id]) -> None:
        """The pool; of equal vectors only the first can ever be named, so the others are left out."""
        seen: set[bytes] = set()
        for id_, unit in zip(first.ids, unit_rows(first.vectors), strict=True):
            if (key := unit.tobytes()) not in seen:
                seen.add(key)
                self._keep(id_, unit)

    def _keep(self, id_: Id, unit: Float64) -> None:
        position = len(self.ids)
        self.exact[position] = unit
        self.quick[position] = unit
        self.ids.append(id_)

    def add_block(self, ids: Sequence[Id], units: Float64) -> list[tuple[Id, float] | None]:
        """Decide a block of rows in order: None for a kept one, else what it duplicates."""
        before = len(self.ids)
        quick = units.astype(np.float32)
        bound = self.threshold - self.slack
        close = np.asarray(quick @ self.quick[:before].T >= bound)
        close_inside = np.asarray(quick @ quick.T >= bound)
        with_close = set(np.flatnonzero(close.any(axis=1)).tolist())
        position_in_kept: dict[int, int] = {}
        decisions: list[tuple[Id, float] | None] = []
        for index, id_ in enumerate(ids):
            candidates = np.flatnonzero(close[index]) if index in with_close else np.empty(0, dtype=np.intp)
            earlier = np.flatnonzero(close_inside[index, :index]).tolist()
            inside = [position_in_kept[one] for one in earlier if one in position_in_kept]
            duplicate = self._duplicate(
                np.concatenate([candidates, np.array(inside, dtype=np.intp)]), units[index]
            )
            if duplicate is None:
                position_in_kept[index] = len(self.ids)
                self._keep(id_, units[index])
            decisions.append(duplicate)
        return decisions

    def _duplicate(self, candidates: npt.NDArray[np.intp], unit: Float64) -> tuple[Id, float] | None:
        if not len(candidates):
            return None
        exact = similarities(self.exact[candidates], unit)
        best = int(np.argmax(exact))  # the first of equals: candidates are in the order they were kept
        if exact[best] < self.threshold:
            return None
        return self.ids[int(candidates[best])], float(exact[best])

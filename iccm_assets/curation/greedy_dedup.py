"""Greedy removal of near-duplicates (P2), pure numpy.

Rows are processed in the given order. A row is kept unless a row kept before it is at least ``threshold``
similar; else it is removed, with the most similar kept row (of equals, the earliest) and the similarity.
Similarity is defined by ``curation.text_vectors``; nothing is approximate.

Cost: one float32 product of each row's first window with all windows kept before it, and one float32 copy of
the kept rows' windows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.duplicate_search import (
    BLOCK_TEXTS,
    BestMatches,
    OrderedTexts,
    drop_partial_matches,
    find_matches,
    pair_similarities,
)
from iccm_assets.curation.similarity import Float32, Matrix, float32_margin
from iccm_assets.curation.text_vectors import Positions, TextVectors
from iccm_assets.errors import InputError

Id = TypeVar("Id", bound=Hashable)


@dataclass(frozen=True)
class EmbeddedRows(Generic[Id]):
    """Ids and their vectors, shape (n, d), of any length but zero.

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

    def texts(self) -> TextVectors:
        """Return the vectors as texts."""
        if self.counts is None:
            return TextVectors.of_single_windows(self.vectors)
        return TextVectors(self.vectors, self.counts)


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
    if existing.vectors.shape[1] != rows.vectors.shape[1]:
        raise InputError(
            f"vectors of {existing.vectors.shape[1]} and of {rows.vectors.shape[1]} dimensions cannot be "
            "compared"
        )
    n_existing = len(existing.ids)
    texts, others = OrderedTexts.of(rows.texts(), n_existing), OrderedTexts.of(existing.texts())
    best = find_duplicates(texts, others, threshold, progress=progress)
    for id_, position, similarity in zip(
        rows.ids, best.positions.tolist(), best.similarities.tolist(), strict=True
    ):
        if position < 0:
            result.kept.append(id_)
        else:
            original = existing.ids[position] if position < n_existing else rows.ids[position - n_existing]
            result.removed.append(RemovedDuplicate(id_, original, similarity))
    return result


def find_duplicates(
    texts: OrderedTexts,
    others: OrderedTexts,
    threshold: float,
    *,
    eligible: npt.NDArray[np.bool_] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BestMatches:
    """Decide ``texts`` in order: a text without a match is kept, the others match the text they duplicate.

    A text is compared with the (eligible) others and with the kept texts, as far as they are before it.
    """
    best = BestMatches(len(texts))
    kept = _KeptTexts(texts)
    for start in range(0, len(texts), BLOCK_TEXTS):
        block, own = texts.part(start, start + BLOCK_TEXTS), best.part(start, start + BLOCK_TEXTS)
        find_matches(block, others, threshold, own, eligible)
        find_matches(block, kept.texts(), threshold, own)
        _decide_block(block, own, threshold)
        kept.append(block, np.flatnonzero(own.positions < 0))
        if progress is not None:
            progress(len(block))
    return best


def _decide_block(block: OrderedTexts, best: BestMatches, threshold: float) -> None:
    """Compare the texts of a block that are not removed yet with those kept before them in the block."""
    units = block.units.matrix
    slack = float32_margin(units.shape[1])
    close = np.asarray(units[block.units.starts[:-1]] @ units.T >= np.float32(threshold - slack))
    if not block.units.are_single:
        close = np.logical_or.reduceat(close, block.units.starts[:-1], axis=1)
    # Only texts that nothing before the block removes can remove others.
    close &= best.positions < 0
    rows, columns = np.nonzero(np.tril(close, -1))
    rows, columns = drop_partial_matches(block, rows, block, columns, threshold - slack)
    similarities = pair_similarities(block, rows, block, columns)
    duplicates = np.flatnonzero(similarities >= threshold)
    rows, columns = rows[duplicates], columns[duplicates]
    # By row: when a row's turn comes, all before it are decided.
    for row, column, similarity in zip(
        rows.tolist(), columns.tolist(), similarities[duplicates].tolist(), strict=True
    ):
        if best.positions[column] < 0:
            best.offer_one(row, int(block.positions[column]), similarity)


class _KeptTexts:
    """The kept ones of some texts, with their float32 windows in an array with room for all of them."""

    def __init__(self, texts: OrderedTexts) -> None:
        self._stored = texts.stored
        self._units: Float32 = np.empty(texts.units.matrix.shape, dtype=np.float32)
        self._counts, self._rows, self._positions = (np.empty(len(texts), dtype=np.intp) for _ in range(3))
        self._n_texts = self._n_windows = 0

    def texts(self) -> OrderedTexts:
        n = self._n_texts
        units = TextVectors(self._units[: self._n_windows], self._counts[:n])
        return OrderedTexts(units, self._stored, self._rows[:n], self._positions[:n])

    def append(self, block: OrderedTexts, texts: Positions) -> None:
        if not len(texts):
            return
        kept = block.take(texts)
        n, windows = self._n_texts, self._n_windows
        self._n_texts, self._n_windows = n + len(kept), windows + len(kept.units.matrix)
        self._units[windows : self._n_windows] = kept.units.matrix
        self._counts[n : self._n_texts] = kept.units.counts
        self._rows[n : self._n_texts] = kept.rows
        self._positions[n : self._n_texts] = kept.positions

"""Find canary-set items that are reworded within longer texts (F4).

A text that the embedder reads as a whole is compared as a whole. In a longer one the item may be any run of
sentences. The sentences' vectors propose runs: their mean, weighted by length, approximates the vector of a
run. The proposed runs are embedded, and count only if they are similar enough themselves. Vectors of parts of
a conversation are not stored: its erasure would not find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from iccm_assets.curation.embeddings import TextEmbedder, embed_texts
from iccm_assets.curation.similarity import Float64, Matrix, Nearest, normalize_rows
from iccm_assets.curation.text_vectors import TextVectors, find_nearest
from iccm_assets.models.text_division import DividedText

# Items whose sentences have such matches, on average, and the runs of similar length proposed for each.
MIN_SENTENCE_SIMILARITY = 0.6
MAX_ITEMS = 16
MAX_RUNS_PER_ITEM = 6
MIN_RELATIVE_LENGTH, MAX_RELATIVE_LENGTH = 0.6, 1.6
_BLOCK_STARTS = 1024


@dataclass(frozen=True)
class _Sentences:
    """Sentences of texts: unit vectors, lengths in word pieces, and the number of sentences of each text."""

    vectors: Float64
    pieces: npt.NDArray[np.float64]
    counts: npt.NDArray[np.intp]

    @property
    def weighted(self) -> Float64:
        return self.vectors * self.pieces[:, np.newaxis]


def find_contained_items(
    engine: Engine, texts: Sequence[str], items: Sequence[str], embedder: TextEmbedder, threshold: float
) -> list[Nearest | None]:
    """Return for each long text the item that a run of its sentences is most similar to, or None.

    Items that are too long to be embedded as a whole are left to ``contains_all_windows``.
    """
    vectors = embed_texts(engine, items, embedder).vectors.normalized()
    short = np.flatnonzero(vectors.counts == 1)
    if not len(texts) or not len(short):
        return [None] * len(texts)
    wholes = vectors.take(short)

    def embed_stored(parts: Sequence[str]) -> Matrix:
        return embed_texts(engine, parts, embedder).vectors.matrix

    divided = [embedder.divide(items[index], only_long=False) for index in short.tolist()]
    sentences = _embed_sentences(divided, embed_stored)
    matches = (_find_in_text(text, wholes, sentences, embedder, threshold) for text in texts)
    return [match and Nearest(int(short[match.index]), match.similarity) for match in matches]


def contains_all_windows(windows: Matrix, item: Matrix, threshold: float) -> float | None:
    """Return the smallest match of the windows of an item within a text; None below ``threshold``."""
    smallest = round(float((item @ windows.T).max(axis=1).min()), 6)
    return smallest if smallest >= threshold else None


def _find_in_text(
    text: str, wholes: TextVectors, items: _Sentences, embedder: TextEmbedder, threshold: float
) -> Nearest | None:
    divided = embedder.divide(text, only_long=False)
    own = _embed_sentences([divided], embedder.encode)
    runs = {run for item in _similar_items(own, items) for run in _propose_runs(own, items, item)}
    if not runs:
        return None
    parts = sorted({divided.part(first, last) for first, last in runs})
    vectors = TextVectors.of_single_windows(embedder.encode(parts)).normalized()
    matches = [match for match in find_nearest(vectors, wholes, threshold) if match is not None]
    return max(matches, key=lambda match: match.similarity, default=None)


def _embed_sentences(texts: Sequence[DividedText], encode: Callable[[Sequence[str]], Matrix]) -> _Sentences:
    return _Sentences(
        normalize_rows(encode([unit for text in texts for unit in text.units()])),
        np.array([float(size) for text in texts for size in text.pieces]),
        np.array([len(text.pieces) for text in texts], dtype=np.intp),
    )


def _similar_items(own: _Sentences, items: _Sentences) -> list[int]:
    """Return the items whose sentences all have similar sentences in the text, the most similar first."""
    best = np.zeros(len(items.vectors))
    for start in range(0, len(own.vectors), _BLOCK_STARTS):
        block = own.vectors[start : start + _BLOCK_STARTS]
        best = np.maximum(best, (items.vectors @ block.T).max(axis=1))
    starts = np.concatenate([[0], np.cumsum(items.counts)[:-1]])
    scores = np.add.reduceat(best * items.pieces, starts) / np.add.reduceat(items.pieces, starts)
    ranked = np.argsort(-scores, kind="stable")[:MAX_ITEMS]
    return [int(item) for item in ranked if scores[item] >= MIN_SENTENCE_SIMILARITY]


def _propose_runs(own: _Sentences, items: _Sentences, item: int) -> list[tuple[int, int]]:
    """Return the runs of about the item's length whose mean vectors are most similar to the item's."""
    first = int(items.counts[:item].sum())
    of_item = slice(first, first + int(items.counts[item]))
    size, mean = items.pieces[of_item].sum(), items.weighted[of_item].sum(axis=0)
    ends = np.concatenate([[0.0], np.cumsum(own.pieces)])
    sums = np.concatenate([np.zeros((1, own.vectors.shape[1])), np.cumsum(own.weighted, axis=0)])
    lows = np.searchsorted(ends, ends[:-1] + MIN_RELATIVE_LENGTH * size)
    highs = np.searchsorted(ends, ends[:-1] + MAX_RELATIVE_LENGTH * size, side="right")
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(own.pieces), _BLOCK_STARTS):
        block = range(start, min(start + _BLOCK_STARTS, len(own.pieces)))
        runs = np.array([(i, j) for i in block for j in range(lows[i], highs[i])], dtype=np.intp)
        if len(runs):
            vectors = sums[runs[:, 1]] - sums[runs[:, 0]]
            scores = vectors @ mean / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
            top = np.argsort(-scores, kind="stable")[:MAX_RUNS_PER_ITEM]
            best += [(float(scores[index]), int(runs[index, 0]), int(runs[index, 1])) for index in top]
    return [(i, j) for _, i, j in sorted(best, key=lambda run: -run[0])[:MAX_RUNS_PER_ITEM]]

"""Decontamination: nothing that overlaps the canary set may be trained on (F4)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sqlalchemy import Engine

from iccm_assets.curation.canary_set import CanarySet, load_canary_set
from iccm_assets.curation.code_fingerprints import ast_hash, normalized_text_hash
from iccm_assets.curation.contained_items import contains_all_windows, find_contained_items
from iccm_assets.curation.embeddings import TextEmbedder, embed_texts
from iccm_assets.curation.similarity import Nearest
from iccm_assets.curation.text_vectors import TextVectors, find_nearest


@dataclass(frozen=True)
class Contamination:
    """The overlapping canary-set item, how it overlaps, and the similarity if that is how."""

    item: str
    overlap: str
    similarity: float | None = None

    @property
    def description(self) -> str:
        """Description with the similarity."""
        number = "" if self.similarity is None else f" ({self.similarity:.6f})"
        return f"{self.overlap} as canary-set item {self.item}{number}"


@dataclass(frozen=True)
class TextPair:
    """The texts of a conversation that are compared with the canary set."""

    source_code: str
    requirements: str


class CanaryIndex:
    """Index of a canary set by the hashes of its texts."""

    def __init__(self, canary_set: CanarySet) -> None:
        self.items = [item.item for item in canary_set.items]
        self.requirements = [item.requirements for item in canary_set.items]
        # Overlap and key -> item; backwards, so that the first item of a hash remains.
        self._keys = {
            key: item.item
            for item in reversed(canary_set.items)
            for key in _keys(TextPair(item.source_code, item.requirements))
        }

    def find(self, pair: TextPair) -> Contamination | None:
        """Return the first overlap that can be found without embeddings."""
        for key in _keys(pair):
            if key in self._keys:
                return Contamination(self._keys[key], key[0])
        return None


def _keys(pair: TextPair) -> list[tuple[str, str]]:
    """Return the kinds of overlap with their hashes, without hashes of texts that have none."""
    hashes = (
        ("the same source", normalized_text_hash(pair.source_code)),
        ("the same program under other names", ast_hash(pair.source_code)),
        ("the same requirements", normalized_text_hash(pair.requirements)),
    )
    return [(overlap, key) for overlap, key in hashes if key is not None]


def load_canary_index(path: str) -> CanaryIndex:
    """Return the index of a canary-set file; it is read again only after a change."""
    # Without a file, load_canary_set reports the problem.
    return _load_index(path, os.stat(path).st_mtime_ns if os.path.exists(path) else 0)


@lru_cache(maxsize=4)
def _load_index(path: str, _modified: int) -> CanaryIndex:
    return CanaryIndex(load_canary_set(path))


def find_contamination(
    engine: Engine,
    pairs: Sequence[TextPair],
    index: CanaryIndex,
    embedder: TextEmbedder,
    threshold: float,
) -> list[Contamination | None]:
    """Return for each pair its overlap with the canary set, or None. Embeds texts that have no vector.

    An item counts that the requirements repeat as a whole or, if they are longer than the embedder reads,
    in any part of them.
    """
    results = [index.find(pair) for pair in pairs]
    remaining = [position for position, result in enumerate(results) if result is None]
    if not remaining:
        return results
    requirements = [pairs[position].requirements for position in remaining]
    similar = _find_similar(engine, requirements, index, embedder, threshold)
    for position, contamination in zip(remaining, similar, strict=True):
        results[position] = contamination
    return results


def _find_similar(
    engine: Engine, requirements: list[str], index: CanaryIndex, embedder: TextEmbedder, threshold: float
) -> Iterator[Contamination | None]:
    """Yield for each text the item that it repeats, as a whole or in a part."""
    canary = embed_texts(engine, index.requirements, embedder).vectors.normalized()
    texts = embed_texts(engine, requirements, embedder).vectors.normalized()
    matches = find_nearest(texts, canary, threshold)
    long = [text for text, match in enumerate(matches) if match is None and texts.counts[text] > 1]
    parts = find_contained_items(
        engine, [requirements[text] for text in long], index.requirements, embedder, threshold
    )
    within = {
        text: part or _find_long_item(texts, text, canary, threshold)
        for text, part in zip(long, parts, strict=True)
    }
    for text, whole in enumerate(matches):
        overlap = "requirements as similar" if whole else "a part of the requirements as similar"
        match = whole or within.get(text)
        yield None if match is None else Contamination(index.items[match.index], overlap, match.similarity)


def _find_long_item(texts: TextVectors, text: int, canary: TextVectors, threshold: float) -> Nearest | None:
    """Return the first item of several windows all of which have a match in the text."""
    for item in np.flatnonzero(canary.counts > 1).tolist():
        similarity = contains_all_windows(texts.windows(text), canary.windows(item), threshold)
        if similarity is not None:
            return Nearest(item, similarity)
    return None

"""Nothing that overlaps the canary set may be learned from (F4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.curation.canary_set import CanarySet, load_canary_set
from iccm_assets.curation.embeddings import TextEmbedder, embed_texts
from iccm_assets.curation.fingerprints import program_hash, text_hash
from iccm_assets.curation.similarity import nearest, unit_rows


@dataclass(frozen=True)
class Leak:
    """The canary-set item that is overlapped, how, and how similar the requirements are, if that is how."""

    item: str
    how: str
    similarity: float | None = None

    @property
    def detail(self) -> str:
        """The finding in words, with its number."""
        number = "" if self.similarity is None else f" ({self.similarity:.6f})"
        return f"{self.how} as canary-set item {self.item}{number}"


@dataclass(frozen=True)
class Text:
    """What of a conversation could leak."""

    source_code: str
    requirements: str


class CanaryIndex:
    """The canary set, prepared for looking things up in it."""

    def __init__(self, canary_set: CanarySet) -> None:
        self.digest = canary_set.digest
        self.items = [one.item for one in canary_set.items]
        self.requirements = [one.requirements for one in canary_set.items]
        self._sources = _by_hash([(text_hash(one.source_code), one.item) for one in canary_set.items])
        self._programs = _by_hash([(program_hash(one.source_code), one.item) for one in canary_set.items])
        self._texts = _by_hash([(text_hash(one.requirements), one.item) for one in canary_set.items])

    def find(self, text: Text) -> Leak | None:
        """An overlap that can be seen without embeddings."""
        looked_up = (
            ("the same source", self._sources, text_hash(text.source_code)),
            ("the same program under other names", self._programs, program_hash(text.source_code)),
            ("the same requirements", self._texts, text_hash(text.requirements)),
        )
        for how, index, key in looked_up:
            if key is not None and key in index:
                return Leak(index[key], how)
        return None


def load_index(path: str) -> CanaryIndex:
    """The index of a canary-set file; read again only when the file changed."""
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError:
        changed = 0  # load_canary_set says what is wrong
    return _load_index(path, changed)


@lru_cache(maxsize=4)
def _load_index(path: str, _changed: int) -> CanaryIndex:
    return CanaryIndex(load_canary_set(path))


def find_leaks(
    engine: sa.Engine,
    texts: Sequence[Text],
    index: CanaryIndex,
    embedder: TextEmbedder,
    threshold: float,
) -> list[Leak | None]:
    """For each text the overlap with the canary set, or None. Embeds what was not embedded before."""
    leaks = [index.find(text) for text in texts]
    open_ = [position for position, leak in enumerate(leaks) if leak is None]
    if not open_:
        return leaks
    canaries = unit_rows(embed_texts(engine, index.requirements, embedder).vectors)
    rows = unit_rows(embed_texts(engine, [texts[one].requirements for one in open_], embedder).vectors)
    for position, found in zip(open_, nearest(rows, canaries, threshold), strict=True):
        if found is not None:
            leaks[position] = Leak(index.items[found.index], "requirements as similar", found.similarity)
    return leaks


def _by_hash(pairs: Sequence[tuple[str | None, str]]) -> dict[str, str]:
    """The first item of each hash."""
    found: dict[str, str] = {}
    for key, item in pairs:
        if key is not None:
            found.setdefault(key, item)
    return found

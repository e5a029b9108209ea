"""Embeddings of texts: each text is embedded once, and stored by content hash and embedder (P2).

A text that is longer than the embedder reads has several vectors, of overlapping windows. Decisions use the
stored vectors, so two machines whose computations differ in the last bit decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, Row, TextClause, text
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.text_vectors import TextVectors
from iccm_assets.db.tables import EMBEDDING_DIMENSIONS, embeddings
from iccm_assets.models.text_division import DividedText

Vectors = npt.NDArray[np.float32]

_CHUNK = 256
_MAX_HASHES = 5000


class TextEmbedder(Protocol):
    """An object that turns texts into vectors, such as ``models.embedding.Embedder``."""

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Vectors: ...

    def divide(self, text: str, *, only_long: bool = True) -> DividedText: ...


@dataclass(frozen=True)
class EmbeddingResult:
    """Vectors in the order of the texts, and the number of newly embedded texts."""

    vectors: TextVectors
    new_count: int


def embed_texts(
    engine: Engine,
    texts: Sequence[str],
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> EmbeddingResult:
    """Return the vectors of texts, embedding only new ones; without new ones no model is used.

    Vectors are stored in transactions of some hundred each: a run that is killed loses little, and the next
    one continues. ``progress`` is called with the number of texts of each transaction.
    """
    hashes = [content_sha256(text) for text in texts]
    by_hash = dict(zip(hashes, texts, strict=True))
    n_embedded = embed_missing(engine, by_hash, embedder, progress)
    with engine.connect() as conn:
        vectors = load_vectors(conn, by_hash, embedder.digest)
    stacked = TextVectors.stack([vectors[key] for key in hashes], EMBEDDING_DIMENSIONS)
    return EmbeddingResult(stacked, n_embedded)


def embed_missing(
    engine: Engine,
    by_hash: dict[str, str],
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Embed and store the texts (by hash) that have no vector; returns their number."""
    with engine.connect() as conn:
        known = _select(conn, _KNOWN, by_hash, embedder.digest)
    # Sorted, so that two writers never wait for each other in a circle.
    missing = sorted(by_hash.keys() - {row[0] for row in known})
    for start in range(0, len(missing), _CHUNK):
        hashes = missing[start : start + _CHUNK]
        windows = [embedder.divide(by_hash[key]).windows() for key in hashes]
        vectors = embedder.encode([window for text_windows in windows for window in text_windows])
        ends = np.cumsum([len(text_windows) for text_windows in windows])
        rows = [
            {
                "content_sha256": key,
                "embedder": embedder.digest,
                "embedding": own[0],
                "further_windows": np.ascontiguousarray(own[1:], dtype="<f4").tobytes(),
            }
            for key, own in zip(hashes, np.split(vectors, ends[:-1]), strict=True)
        ]
        statement = insert(embeddings)
        replaced = {name: statement.excluded[name] for name in ("embedding", "further_windows")}
        with engine.begin() as conn:
            conn.execute(
                statement.on_conflict_do_update(
                    index_elements=["content_sha256", "embedder"],
                    set_=replaced,
                    where=embeddings.c.further_windows.is_(None),
                ),
                rows,
            )
        if progress is not None:
            progress(len(hashes))
    return len(missing)


def load_vectors(conn: Connection, hashes: Iterable[str], digest: str) -> dict[str, Vectors]:
    """Load the stored windows of texts, shape (w, 384), by hash; a hash without vectors is omitted."""
    return {row[0]: parse_windows(row[1], row[2]) for row in _select(conn, _VECTORS, hashes, digest)}


# A text that an earlier release cut at the embedder's limit has no windows yet, and is embedded again.
_KNOWN = text(
    """
    select content_sha256 from iccm.embeddings
    where embedder = :embedder and content_sha256 = any(:hashes) and further_windows is not null
    """
)
_VECTORS = text(
    """
    select content_sha256, vector_send(embedding), further_windows from iccm.embeddings
    where embedder = :embedder and content_sha256 = any(:hashes)
    """
)


def _select(conn: Connection, query: TextClause, hashes: Iterable[str], digest: str) -> list[Row[Any]]:
    """Run a query for some thousand hashes at a time."""
    keys = list(hashes)
    return [
        row
        for start in range(0, len(keys), _MAX_HASHES)
        for row in conn.execute(query, {"embedder": digest, "hashes": keys[start : start + _MAX_HASHES]})
    ]


def parse_windows(first: bytes, further: bytes | None) -> Vectors:
    """Parse the stored windows of a text, shape (w, 384).

    ``first`` has pgvector's binary format: two 16-bit numbers, then big-endian float32; ``further`` has the
    other windows in little-endian float32.
    """
    windows = [np.frombuffer(first, dtype=">f4", offset=4), np.frombuffer(further or b"", dtype="<f4")]
    return np.concatenate(windows).astype(np.float32).reshape(-1, EMBEDDING_DIMENSIONS)

"""Embeddings of texts: each text is embedded once, and its vector stored by content hash and embedder (P2).

Decisions use the stored vectors, so two machines whose computations differ in the last bit decide alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, Row, TextClause, text
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.db.tables import EMBEDDING_DIMENSIONS, embeddings

Vectors = npt.NDArray[np.float32]

_CHUNK = 256
_MAX_HASHES = 5000


class TextEmbedder(Protocol):
    """An object that turns texts into vectors, such as ``models.embedding.Embedder``."""

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Vectors: ...


@dataclass(frozen=True)
class EmbeddingResult:
    """Vectors in the order of the texts, shape (n, 384), and the number of newly embedded texts."""

    vectors: Vectors
    new_count: int


def content_sha256(text: str) -> str:
    """Return the key of a text: sha256 of its UTF-8 bytes, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


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
    rows = np.array([vectors[key] for key in hashes], dtype=np.float32)
    return EmbeddingResult(rows.reshape(-1, EMBEDDING_DIMENSIONS), n_embedded)


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
        vectors = embedder.encode([by_hash[key] for key in hashes])
        rows = [
            {"content_sha256": key, "embedder": embedder.digest, "embedding": vector}
            for key, vector in zip(hashes, vectors, strict=True)
        ]
        with engine.begin() as conn:
            conn.execute(insert(embeddings).on_conflict_do_nothing(), rows)
        if progress is not None:
            progress(len(hashes))
    return len(missing)


def load_vectors(conn: Connection, hashes: Iterable[str], digest: str) -> dict[str, Vectors]:
    """Load the stored vectors of texts by hash; a hash without a vector is omitted."""
    return {row[0]: parse_vector(row[1]) for row in _select(conn, _VECTORS, hashes, digest)}


_KNOWN = text(
    "select content_sha256 from iccm.embeddings where embedder = :embedder and content_sha256 = any(:hashes)"
)
_VECTORS = text(
    """
    select content_sha256, vector_send(embedding) from iccm.embeddings
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


def parse_vector(data: bytes) -> Vectors:
    """Parse pgvector's binary format: two 16-bit numbers, then big-endian float32."""
    return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)

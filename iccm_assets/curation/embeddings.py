"""Every text is embedded once, ever: its vector is kept under the text's hash and the embedder (P2).

Decisions are made on the stored vectors, so two machines that would compute the last bit differently
still decide alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.store.tables import EMBEDDING_DIMENSIONS, embeddings

Vectors = npt.NDArray[np.float32]

_CHUNK = 256


class TextEmbedder(Protocol):
    """What turns texts into vectors: ``models.embedding.Embedder``, or a stand-in in tests."""

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Vectors: ...


@dataclass(frozen=True)
class Embedded:
    """Vectors in the order of the texts, shape (n, 384), and how many texts were new."""

    vectors: Vectors
    n_embedded: int


def content_sha256(text: str) -> str:
    """The key of a text: sha256 of its UTF-8 bytes, hex."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def embed_texts(
    engine: sa.Engine,
    texts: Sequence[str],
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """The vectors of texts, embedding those not seen before; where none is new, no model is touched.

    Stored in transactions of their own, some hundred at a time: a run that is killed loses little, and
    the next continues. ``progress`` is told how many new texts are done.
    """
    by_hash = {content_sha256(text): text for text in texts}
    n_embedded = add_missing(engine, by_hash, embedder, progress)
    with engine.connect() as conn:
        found = vectors_of(conn, by_hash, embedder.digest)
    if not texts:
        return Embedded(np.zeros((0, EMBEDDING_DIMENSIONS), dtype=np.float32), 0)
    return Embedded(np.stack([found[content_sha256(text)] for text in texts]), n_embedded)


def add_missing(
    engine: sa.Engine,
    by_hash: dict[str, str],
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Embed and store those texts (by hash) that have no vector yet; returns how many those were."""
    with engine.connect() as conn:
        known = _known(conn, by_hash, embedder.digest)
    # In the order of their hashes: two writers then never wait for each other in a circle.
    missing = sorted(set(by_hash) - known)
    for start in range(0, len(missing), _CHUNK):
        hashes = missing[start : start + _CHUNK]
        vectors = embedder.encode([by_hash[one] for one in hashes])
        rows = [
            {"content_sha256": one, "embedder": embedder.digest, "embedding": vector}
            for one, vector in zip(hashes, vectors, strict=True)
        ]
        with engine.begin() as conn:
            conn.execute(insert(embeddings).on_conflict_do_nothing(), rows)
        if progress is not None:
            progress(len(hashes))
    return len(missing)


def vectors_of(conn: sa.Connection, hashes: Iterable[str], digest: str) -> dict[str, Vectors]:
    """The stored vectors of texts, by hash; a hash without one is left out."""
    found: dict[str, Vectors] = {}
    for chunk in _chunks(list(hashes)):
        rows = conn.execute(
            sa.text(
                """
                select content_sha256, vector_send(embedding) from iccm.embeddings
                where embedder = :embedder and content_sha256 = any(:hashes)
                """
            ),
            {"embedder": digest, "hashes": chunk},
        )
        found.update({row[0]: _vector(row[1]) for row in rows})
    return found


def _known(conn: sa.Connection, hashes: Iterable[str], digest: str) -> set[str]:
    known: set[str] = set()
    for chunk in _chunks(list(hashes)):
        e = embeddings.c
        query = sa.select(e.content_sha256).where(
            e.embedder == digest, e.content_sha256 == sa.any_(sa.literal(chunk, sa.ARRAY(sa.Text)))
        )
        known.update(conn.execute(query).scalars())
    return known


def _chunks(hashes: list[str]) -> Iterable[list[str]]:
    return (hashes[start : start + 5000] for start in range(0, len(hashes), 5000))


def _vector(sent: bytes) -> Vectors:
    """pgvector's binary form: two 16-bit numbers, then big-endian float32."""
    return np.frombuffer(sent, dtype=">f4", offset=4).astype(np.float32)

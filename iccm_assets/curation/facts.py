"""What `curation.health` decides over, read from the tables; of large ones the newest rows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import sqlalchemy as sa

from iccm_assets.curation.embeddings import content_sha256, vectors_of
from iccm_assets.curation.holdout import is_held_out
from iccm_assets.curation.leaks import Text, load_index
from iccm_assets.curation.similarity import Float64, nearest, unit_rows
from iccm_assets.settings import Settings
from iccm_assets.store.tables import EMBEDDING_DIMENSIONS

# Two seconds of work at most: reading programs costs about half a millisecond each.
MOST_PROGRAMS = 2_000
MOST_VECTORS = 5_000


@dataclass(frozen=True)
class Leaks:
    """Conversation ids among ``looked_at`` rows that may not be there."""

    looked_at: int
    held_out: list[int]
    erased: list[int]
    overlapping: list[int]


@dataclass(frozen=True)
class PoolVectors:
    """Stored vectors of the pool as unit rows; ``of`` is the size of the whole pool."""

    ids: list[int]
    pinned: list[bool]
    vectors: Float64
    of: int


@dataclass(frozen=True)
class PoolCounts:
    """How filtered rows and pool relate, over the folded days."""

    filtered: int
    pool: int
    removed: int
    lost: list[int]
    stray: list[int]
    days: list[date]


def leaks_of(conn: sa.Connection, table: str, settings: Settings) -> Leaks:
    """Look through the newest rows of ``filtered_conversations`` or ``phase4_training_data``."""
    rows = conn.execute(
        sa.text(
            f"""
            select f.conversation_id as id, f.session_id, f.source_code, f.requirements,
                c.erased_at is not null as erased
            from iccm.{table} f join iccm.conversations c on c.id = f.conversation_id
            order by f.day desc, f.conversation_id desc limit :most
            """
        ),
        {"most": MOST_PROGRAMS},
    ).all()
    index = load_index(settings.canary_set)
    return Leaks(
        len(rows),
        [row.id for row in rows if is_held_out(row.session_id, settings.curation.held_out_share)],
        [row.id for row in rows if row.erased],
        [row.id for row in rows if index.find(Text(row.source_code, row.requirements)) is not None],
    )


def like_canary_set(conn: sa.Connection, settings: Settings, embedder: str) -> list[int]:
    """Pool rows whose stored vector is too close to one of the canary set's (F4).

    ``embedder`` is the digest of the embedder in use; canary texts without a vector of its are left out.
    """
    hashes = [content_sha256(text) for text in load_index(settings.canary_set).requirements]
    canaries = vectors_of(conn, hashes, embedder)
    pool = pool_vectors(conn)
    if not canaries or not pool.ids:
        return []
    others = unit_rows(np.stack(list(canaries.values())))
    found = nearest(pool.vectors, others, settings.curation.duplicate_similarity)
    return [id_ for id_, like in zip(pool.ids, found, strict=True) if like is not None]


def pool_vectors(conn: sa.Connection) -> PoolVectors:
    """All vectors of a small pool, the newest of a large one."""
    size = conn.execute(sa.text("select count(*) from iccm.phase4_training_data")).scalar_one()
    rows = conn.execute(
        sa.text(
            """
            select conversation_id, pinned, vector_send(embedding) from iccm.phase4_training_data
            order by day desc, conversation_id desc limit :most
            """
        ),
        {"most": MOST_VECTORS},
    ).all()
    return PoolVectors(
        [row[0] for row in rows], [row[1] for row in rows], _matrix([row[2] for row in rows]), size
    )


def pool_counts(conn: sa.Connection) -> PoolCounts:
    """Over all folded days; ids of at most 100 rows of each kind."""
    filtered, pool, removed = conn.execute(
        sa.text(
            """
            select (select count(*) from iccm.filtered_conversations f
                    where exists (select from iccm.pool_days d where d.day = f.day)),
                (select count(*) from iccm.phase4_training_data),
                (select count(*) from iccm.phase4_rejections where stage = 'dedup')
            """
        )
    ).one()
    return PoolCounts(filtered, pool, removed, *(list(conn.execute(sa.text(sql)).scalars()) for sql in _ODD))


_ODD = (
    """
    select f.conversation_id from iccm.filtered_conversations f
    where exists (select from iccm.pool_days d where d.day = f.day)
        and not exists (
            select from iccm.phase4_training_data p where p.conversation_id = f.conversation_id
                and (p.pinned or p.content_sha256 = f.content_sha256)
        )
        and not exists (
            select from iccm.phase4_rejections r
            where r.conversation_id = f.conversation_id and r.stage = 'dedup'
        )
    order by f.day limit 100
    """,
    """
    select p.conversation_id from iccm.phase4_training_data p
    where not p.pinned and not exists (
        select from iccm.filtered_conversations f where f.conversation_id = p.conversation_id
    )
    order by p.day limit 100
    """,
    """
    select f.day from iccm.filtered_days f
    where f.kept > 0 and not exists (select from iccm.pool_days d where d.day = f.day)
    order by f.day limit 100
    """,
)


def is_filtered(conn: sa.Connection, day: date) -> bool:
    """Whether the filter has run for a day."""
    query = sa.text("select exists (select from iccm.filtered_days where day = :day)")
    return bool(conn.execute(query, {"day": day}).scalar_one())


def _matrix(sent: Sequence[bytes]) -> Float64:
    """pgvector's binary form: two 16-bit numbers, then big-endian float32."""
    if not sent:
        return np.zeros((0, EMBEDDING_DIMENSIONS))
    rows = [np.frombuffer(one, dtype=">f4", offset=4) for one in sent]
    return unit_rows(np.array(rows, dtype=np.float64))

"""Queries for the checks of filtered rows and training pool; of large tables only the newest rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from iccm_assets.curation.embeddings import content_sha256, parse_vector, load_vectors
from iccm_assets.curation.holdout import is_in_holdout
from iccm_assets.curation.leaks import TextPair, load_canary_index
from iccm_assets.curation.similarity import Float64, find_nearest, normalize_rows
from iccm_assets.settings import Settings
from iccm_assets.store.tables import EMBEDDING_DIMENSIONS

# At most two seconds of work: parsing a program takes about half a millisecond.
MAX_PROGRAMS = 2_000
MAX_VECTORS = 5_000


@dataclass(frozen=True)
class PoolVectors:
    """Stored vectors of the pool as unit rows, shape (n, 384); ``of`` is the size of the whole pool."""

    ids: list[int]
    pinned: list[bool]
    vectors: Float64
    pool_size: int


def load_contamination(conn: Connection, table: str, settings: Settings) -> tuple[int, dict[str, list[int]]]:
    """Check the newest rows of ``filtered_conversations`` or ``phase4_training_data``.

    Returns the number of rows and, by problem, the conversation ids that must not be there.
    """
    rows = conn.execute(
        text(
            f"""
            select f.conversation_id as id, f.session_id, f.source_code, f.requirements,
                c.erased_at is not null as erased
            from iccm.{table} f join iccm.conversations c on c.id = f.conversation_id
            order by f.day desc, f.conversation_id desc limit :max_rows
            """
        ),
        {"max_rows": MAX_PROGRAMS},
    ).all()
    index, fraction = load_canary_index(settings.canary_set), settings.curation.holdout_fraction
    return len(rows), {
        "held_out": [row.id for row in rows if is_in_holdout(row.session_id, fraction)],
        "erased": [row.id for row in rows if row.erased],
        "overlapping_canary_set": [
            row.id for row in rows if index.find(TextPair(row.source_code, row.requirements)) is not None
        ],
    }


def find_similar_to_canary_set(conn: Connection, settings: Settings, embedder: str) -> list[int]:
    """Return the pool rows whose stored vector is too similar to one of the canary set (F4).

    ``embedder`` is the digest of the current embedder; canary texts that it has not embedded are ignored.
    """
    hashes = [
        content_sha256(requirements) for requirements in load_canary_index(settings.canary_set).requirements
    ]
    canary = load_vectors(conn, hashes, embedder)
    pool = load_pool_vectors(conn)
    if not canary or not pool.ids:
        return []
    canary_rows = normalize_rows(np.stack(list(canary.values())))
    matches = find_nearest(pool.vectors, canary_rows, settings.curation.duplicate_similarity)
    return [id_ for id_, match in zip(pool.ids, matches, strict=True) if match is not None]


def load_pool_vectors(conn: Connection) -> PoolVectors:
    """Load all vectors of a small pool, the newest of a large one."""
    size = conn.execute(text("select count(*) from iccm.phase4_training_data")).scalar_one()
    rows = conn.execute(
        text(
            """
            select conversation_id, pinned, vector_send(embedding) from iccm.phase4_training_data
            order by day desc, conversation_id desc limit :max_rows
            """
        ),
        {"max_rows": MAX_VECTORS},
    ).all()
    vectors = np.array([parse_vector(row[2]) for row in rows]).reshape(-1, EMBEDDING_DIMENSIONS)
    return PoolVectors([row[0] for row in rows], [row[1] for row in rows], normalize_rows(vectors), size)


def load_pool_counts(conn: Connection) -> dict[str, Any]:
    """Count filtered rows, pool rows and duplicates over the days of the pool, as arguments of `adds_up`.

    Ids of at most 100 rows of each kind.
    """
    counts = conn.execute(text(_COUNTS)).mappings().one()
    return {**counts, **{name: list(conn.execute(text(sql)).scalars()) for name, sql in _UNEXPECTED.items()}}


_COUNTS = """
    select (select count(*) from iccm.filtered_conversations f
            where exists (select from iccm.pool_days d where d.day = f.day)) as filtered,
        (select count(*) from iccm.phase4_training_data) as pool,
        (select count(*) from iccm.phase4_rejections where stage = 'dedup') as removed
"""
_UNEXPECTED = {
    "lost": """
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
    "stray": """
        select p.conversation_id from iccm.phase4_training_data p
        where not p.pinned and not exists (
            select from iccm.filtered_conversations f where f.conversation_id = p.conversation_id
        )
        order by p.day limit 100
    """,
    "days": """
        select f.day from iccm.filtered_days f
        where f.kept > 0 and not exists (select from iccm.pool_days d where d.day = f.day)
        order by f.day limit 100
    """,
}


def is_filtered(conn: Connection, day: date) -> bool:
    """Return whether the filter has processed a day."""
    query = text("select exists (select from iccm.filtered_days where day = :day)")
    return bool(conn.execute(query, {"day": day}).scalar_one())

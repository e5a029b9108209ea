"""Checks of the filtered rows and the training pool: pure functions of counts and vectors (U4, P2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from iccm_assets.capture.checks import load_daily_volumes
from iccm_assets.check_result import CheckResult, sample_ids
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.decontamination import TextPair, load_canary_index
from iccm_assets.curation.embeddings import load_vectors, parse_windows
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.filtering import find_changed_days
from iccm_assets.curation.similarity import float32_margin
from iccm_assets.curation.text_vectors import TextVectors, find_nearest, text_similarities
from iccm_assets.db.clock import now
from iccm_assets.db.tables import EMBEDDING_DIMENSIONS
from iccm_assets.settings import Settings

_BLOCK_ROWS = 1024
# At most two seconds of work: parsing a program takes about half a millisecond.
MAX_PROGRAMS = 2_000
MAX_VECTORS = 5_000
_MARGIN = float32_margin(EMBEDDING_DIMENSIONS)

# Conversation ids of two rows, and their similarity.
SimilarPair = tuple[int, int, float]


def check_yesterday(day: date, filtered: bool, captured: int) -> CheckResult:
    """Check that yesterday's partition exists; a freshness policy cannot check partitions."""
    return CheckResult(
        filtered or captured == 0,
        f"{day} has {captured} conversations and was {'' if filtered else 'not '}filtered",
        "`daily_data_schedule` materializes it at 01:00 UTC. Is the daemon running (Deployment > Daemons), "
        "and is the schedule on? Materialize the day and its upstream assets from the page of "
        "`filtered_conversations`.",
        metrics={"captured": float(captured)},
    )


def check_freshness(lookback_days: int, changed: Sequence[date]) -> CheckResult:
    """Check that no inputs of the last ``lookback_days`` days changed since the days were filtered (P6)."""
    days = ", ".join(map(str, changed)) or "none"
    return CheckResult(
        not changed,
        f"{len(changed)} of the last {lookback_days} days changed since they were filtered: {days}",
        "Late conversations, scores, feedback or erasures: the next daily run processes these days again. "
        "To process them now, backfill exactly these days from the asset's page.",
        severity="warning",
        metrics={"changed_days": float(len(changed))},
    )


def check_contamination(rows_checked: int, problems: Mapping[str, Sequence[int]]) -> CheckResult:
    """Check that no row is held out, erased or overlaps the canary set (F3, F4, V2).

    ``problems``: conversation ids by problem.
    """
    counts = {name: len(ids) for name, ids in problems.items()}
    return CheckResult(
        not any(counts.values()),
        f"{rows_checked} rows checked: "
        + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()),
        "Materialize the days of the listed conversations again, then the pool: the filter rejects them. If "
        "a version was trained on one (`iccm lineage --conversation ID`), its evaluation on that item is "
        "invalid: retrain from an ancestor with `iccm retrain --base VERSION`.",
        metrics={name: float(count) for name, count in {"rows_checked": rows_checked, **counts}.items()},
        sample_ids=sample_ids([conversation for ids in problems.values() for conversation in ids]),
    )


def find_similar_pairs(
    ids: Sequence[int], vectors: TextVectors, exempt: Sequence[bool], threshold: float
) -> list[SimilarPair]:
    """Return all pairs with an exact similarity of at least ``threshold``, except pairs of two exempt rows.

    ``vectors`` are unit vectors; a float32 product of the first windows with all windows proposes pairs,
    float64 decides.
    """
    pairs: list[SimilarPair] = []
    small = vectors.matrix.astype(np.float32)
    firsts = small[vectors.starts[:-1]]
    for start in range(0, len(ids), _BLOCK_ROWS):
        close = firsts[start : start + _BLOCK_ROWS] @ small[vectors.starts[start] :].T >= threshold - _MARGIN
        for row, hits in enumerate(close, start):
            others = vectors.find_texts(np.flatnonzero(hits) + vectors.starts[start])
            others = np.array(
                [other for other in others if other > row and not (exempt[row] and exempt[other])],
                dtype=np.intp,
            )
            exact = text_similarities(vectors.windows(row), vectors.take(others))
            pairs += [
                (ids[row], ids[other], float(value))
                for other, value in zip(others, exact, strict=True)
                if value >= threshold
            ]
    return pairs


def check_duplicates(
    rows_checked: int, pool_size: int, pairs: Sequence[SimilarPair], threshold: float
) -> CheckResult:
    """Check that the pool has no pairs that deduplication should have removed (P2)."""
    similarities = [similarity for _, _, similarity in pairs]
    return CheckResult(
        not pairs,
        f"{len(pairs)} pairs at {threshold:g} or above among {rows_checked} of {pool_size} rows of the pool",
        "Deduplication keeps no two such rows, so a row was written by something else, or vectors were "
        "changed. Materialize the earliest day of the listed conversations in `training_pool`: it rebuilds "
        "that day and all later ones. Rows that a version was trained on stay, and may pair with each other.",
        metrics={
            "pairs": float(len(pairs)),
            "rows_checked": float(rows_checked),
            **({"highest_similarity": max(similarities)} if similarities else {}),
        },
        sample_ids=sample_ids([f"{row}~{other} ({exact:.6f})" for row, other, exact in pairs]),
    )


def check_row_counts(
    filtered: int, pool: int, removed: int, lost: Sequence[int], stray: Sequence[int], days: Sequence[date]
) -> CheckResult:
    """Check that exactly the filtered rows of the pool's days are in the pool or removed as duplicates.

    ``lost``: filtered and in neither; ``stray``: in the pool, not filtered and not pinned; ``days``: filtered
    but not part of the pool.
    """
    return CheckResult(
        not lost and not stray and not days,
        f"{filtered} filtered = {pool} in the pool + {removed} duplicates; {len(lost)} unaccounted for, "
        f"{len(stray)} in the pool that the filter no longer keeps, {len(days)} filtered days not in the "
        "pool",
        "These days changed after the pool was built, or were never part of it. Materialize `training_pool` "
        "for the earliest of them; that brings all later days up to date in one transaction. The daily run "
        "does the same for the last seven days.",
        severity="warning",
        metrics={
            "unaccounted": float(len(lost)),
            "unfiltered": float(len(stray)),
            "days_not_in_pool": float(len(days)),
        },
        sample_ids=sample_ids([*map(str, days), *map(str, lost), *map(str, stray)]),
    )


@dataclass(frozen=True)
class PoolVectors:
    """Stored vectors of the pool, normalized; ``pool_size`` counts the whole pool."""

    ids: list[int]
    pinned: list[bool]
    vectors: TextVectors
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
    """Return the pool rows whose stored vectors are too similar to a text of the canary set (F4).

    ``embedder`` is the digest of the current embedder; canary texts that it has not embedded are ignored.
    A canary text that is reworded within a longer text is found by the filter only.
    """
    hashes = [
        content_sha256(requirements) for requirements in load_canary_index(settings.canary_set).requirements
    ]
    canary = load_vectors(conn, hashes, embedder)
    pool = load_pool_vectors(conn)
    canary_texts = TextVectors.stack(list(canary.values()), EMBEDDING_DIMENSIONS).normalized()
    matches = find_nearest(pool.vectors, canary_texts, settings.curation.duplicate_similarity)
    return [id_ for id_, match in zip(pool.ids, matches, strict=True) if match is not None]


def load_pool_vectors(conn: Connection) -> PoolVectors:
    """Load all vectors of a small pool, the newest of a large one."""
    size = conn.execute(text("select count(*) from iccm.phase4_training_data")).scalar_one()
    rows = conn.execute(
        text(
            """
            select conversation_id, pinned, vector_send(embedding), further_windows
            from iccm.phase4_training_data
            order by day desc, conversation_id desc limit :max_rows
            """
        ),
        {"max_rows": MAX_VECTORS},
    ).all()
    vectors = TextVectors.stack([parse_windows(row[2], row[3]) for row in rows], EMBEDDING_DIMENSIONS)
    return PoolVectors([row[0] for row in rows], [row[1] for row in rows], vectors.normalized(), size)


def load_pool_counts(conn: Connection) -> dict[str, Any]:
    """Count filtered rows, pool rows and duplicates over the days of the pool, and list unexpected rows.

    The result has the arguments of `check_row_counts`; at most 100 ids of each kind.
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


def yesterday_is_materialized(conn: Connection, settings: Settings) -> CheckResult:
    """Check that yesterday was filtered, if it had conversations."""
    yesterday = now(conn).date() - timedelta(days=1)
    [volume] = load_daily_volumes(conn, yesterday, yesterday)
    return check_yesterday(yesterday, is_filtered(conn, yesterday), volume.total)


def partitions_are_fresh(conn: Connection, settings: Settings) -> CheckResult:
    """Check the days that the daily job looks back on."""
    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    return check_freshness(days, find_changed_days(conn, yesterday - timedelta(days=days - 1), yesterday))


def no_contamination(conn: Connection, settings: Settings) -> CheckResult:
    """Check the newest filtered rows."""
    return check_contamination(*load_contamination(conn, "filtered_conversations", settings))


def no_duplicates(conn: Connection, settings: Settings) -> CheckResult:
    """Compare the newest vectors of the pool with all others."""
    threshold = settings.curation.duplicate_similarity
    pool = load_pool_vectors(conn)
    pairs = find_similar_pairs(pool.ids, pool.vectors, pool.pinned, threshold)
    return check_duplicates(len(pool.ids), pool.pool_size, pairs, threshold)


def row_counts_reconcile(conn: Connection, settings: Settings) -> CheckResult:
    """Compare the filtered rows with the pool and its rejections."""
    return check_row_counts(**load_pool_counts(conn))

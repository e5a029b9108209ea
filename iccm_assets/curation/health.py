"""Checks of the filtered rows and the training pool: pure functions of counts and vectors (U4, P2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from iccm_assets.curation.similarity import Float64, similarity
from iccm_assets.findings import CheckResult, sample_ids

_ROWS = 1024

# Conversation ids of two rows, and their similarity.
SimilarPair = tuple[int, int, float]


def check_yesterday(day: date, filtered: bool, captured: int) -> CheckResult:
    """Check that yesterday's partition exists; a freshness policy cannot check partitions."""
    return CheckResult(
        filtered or captured == 0,
        f"{day} has {captured} conversations and was {'' if filtered else 'not '}filtered",
        "`daily_data_schedule` makes it at 01:00 UTC. Is the daemon running (Deployment > Daemons) and the "
        "schedule on? Materialize the day from the page of `filtered_conversations`, with what is upstream.",
        metrics={"captured": float(captured)},
    )


def check_freshness(lookback_days: int, changed: Sequence[date]) -> CheckResult:
    """Check that no inputs of the last ``looked_back`` days changed since the days were filtered (P6)."""
    days = ", ".join(map(str, changed)) or "none"
    return CheckResult(
        not changed,
        f"{len(changed)} of the last {lookback_days} days changed since they were filtered: {days}",
        "Late conversations, scores, feedback or erasures: the next daily run processes these days again. "
        "To process them now, backfill exactly these days from the asset's page.",
        error=False,
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
    ids: Sequence[int], vectors: Float64, exempt: Sequence[bool], threshold: float
) -> list[SimilarPair]:
    """Return all pairs with an exact similarity of at least ``threshold``, except pairs of two exempt rows.

    ``vectors`` are unit rows, shape (n, d); a float32 product proposes pairs, float64 decides.
    """
    pairs: list[SimilarPair] = []
    small = vectors.astype(np.float32)
    for start in range(0, len(ids), _ROWS):
        close = small[start : start + _ROWS] @ small[start:].T >= threshold - 1e-3
        for row, column in np.argwhere(close) + start:
            if row < column and not (exempt[row] and exempt[column]):
                exact = similarity(vectors[row], vectors[column])
                if exact >= threshold:
                    pairs.append((ids[row], ids[column], exact))
    return pairs


def check_duplicates(
    rows_checked: int, pool_size: int, pairs: Sequence[SimilarPair], threshold: float
) -> CheckResult:
    """Check that the pool has no pairs that deduplication should have removed (P2)."""
    return CheckResult(
        not pairs,
        f"{len(pairs)} pairs at {threshold:g} or above among {rows_checked} of {pool_size} rows of the pool",
        "Deduplication keeps no two such rows, so a row was written by something else, or vectors were "
        "changed. Materialize the earliest day of the listed conversations in `training_pool`: it rebuilds "
        "that day and all later ones. Rows that a version was trained on stay, and may pair with each other.",
        metrics={
            "pairs": float(len(pairs)),
            "rows_checked": float(rows_checked),
            "highest_similarity": max((pair[2] for pair in pairs), default=0.0),
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
        error=False,
        metrics={
            "unaccounted": float(len(lost)),
            "unfiltered": float(len(stray)),
            "days_not_in_pool": float(len(days)),
        },
        sample_ids=sample_ids([*map(str, days), *map(str, lost), *map(str, stray)]),
    )

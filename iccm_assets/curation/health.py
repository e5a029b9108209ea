"""Are the filtered rows and the pool what they should be? Decisions over counts and vectors (U4, P2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from iccm_assets.curation.similarity import Float64, similarity
from iccm_assets.findings import Finding, named

_ROWS = 1024


@dataclass(frozen=True)
class Pair:
    """Two rows of the pool that are too similar."""

    one: int
    other: int
    similarity: float


def yesterday(day: date, filtered: bool, captured: int) -> Finding:
    """Yesterday's partition is there: freshness of a partitioned asset, which a policy cannot say."""
    told = f"{day} has {captured} conversations and was {'' if filtered else 'not '}filtered"
    recovery = (
        "`daily_data_schedule` makes it at 01:00 UTC. Is the daemon running (Deployment > Daemons) and the "
        "schedule on? Materialize the day from the page of `filtered_conversations`, with what is upstream."
    )
    return Finding(filtered or captured == 0, told, recovery, numbers={"captured": float(captured)})


def current(looked_back: int, changed: Sequence[date]) -> Finding:
    """The days among the last ``looked_back`` whose inputs changed since they were filtered (P6)."""
    days = ", ".join(map(str, changed)) or "none"
    told = f"{len(changed)} of the last {looked_back} days changed since they were filtered: {days}"
    recovery = (
        "Late conversations, scores, feedback or erasures: the next daily run takes these days again by "
        "itself. To have them now, backfill exactly these days from the asset's page."
    )
    return Finding(not changed, told, recovery, error=False, numbers={"changed_days": float(len(changed))})


def leaks(
    looked_at: int, held_out: Sequence[int], erased: Sequence[int], overlapping: Sequence[int]
) -> Finding:
    """Rows (conversation ids) that may not be learned from and are there all the same (F3, F4, V2)."""
    found = {"held_out": held_out, "erased": erased, "overlapping_canary_set": overlapping}
    told = f"{looked_at} rows looked at: " + ", ".join(
        f"{len(ids)} {name.replace('_', ' ')}" for name, ids in found.items()
    )
    recovery = (
        "Materialize the days of the named conversations again, then the pool: the filter rejects them. If a "
        "version has learned from one (`iccm lineage --conversation ID`), its evaluation on that item is "
        "void: retrain from an ancestor with `iccm retrain --base VERSION`."
    )
    return Finding(
        not any(found.values()),
        told,
        recovery,
        numbers={"looked_at": float(looked_at), **{name: float(len(ids)) for name, ids in found.items()}},
        ids=named([one for ids in found.values() for one in ids]),
    )


def similar_pairs(
    ids: Sequence[int], vectors: Float64, exempt: Sequence[bool], threshold: float
) -> list[Pair]:
    """All pairs at ``threshold`` or above by the exact definition, those of two exempt rows left out.

    ``vectors`` are unit rows; a float32 product proposes, float64 decides.
    """
    found: list[Pair] = []
    small = vectors.astype(np.float32)
    for start in range(0, len(ids), _ROWS):
        close = small[start : start + _ROWS] @ small[start:].T >= threshold - 1e-3
        for row, column in np.argwhere(close):
            one, other = start + int(row), start + int(column)
            if one >= other or (exempt[one] and exempt[other]):
                continue
            exact = similarity(vectors[one], vectors[other])
            if exact >= threshold:
                found.append(Pair(ids[one], ids[other], exact))
    return found


def duplicates(looked_at: int, of: int, pairs: Sequence[Pair], threshold: float) -> Finding:
    """Pairs that deduplication should have parted (P2)."""
    told = f"{len(pairs)} pairs at {threshold:g} or above among {looked_at} of {of} rows of the pool"
    worst = max((pair.similarity for pair in pairs), default=0.0)
    recovery = (
        "The fold keeps no two such rows, so a row was written past it, or vectors were changed. Materialize "
        "the earliest day of the named conversations in `training_pool`: it folds that day and all later "
        "ones again. Rows a version has learned from stay, and may pair with each other."
    )
    return Finding(
        not pairs,
        told,
        recovery,
        numbers={"pairs": float(len(pairs)), "looked_at": float(looked_at), "highest_similarity": worst},
        ids=named([f"{pair.one}~{pair.other} ({pair.similarity:.6f})" for pair in pairs]),
    )


def adds_up(
    filtered: int, pool: int, removed: int, lost: Sequence[int], stray: Sequence[int], days: Sequence[date]
) -> Finding:
    """Every filtered row of a folded day is in the pool or removed as a duplicate, and nothing else is.

    ``lost``: filtered and in neither; ``stray``: in the pool, not filtered, not learned from; ``days``: those
    filtered and not folded yet.
    """
    told = (
        f"{filtered} filtered = {pool} in the pool + {removed} duplicates; {len(lost)} unaccounted for, "
        f"{len(stray)} in the pool that the filter no longer keeps, {len(days)} filtered days not folded"
    )
    recovery = (
        "These days' inputs changed after they were folded, or they were never folded. Materialize "
        "`training_pool` for the earliest of them; that brings all later days up to date in one transaction. "
        "The daily run does the same for the last seven days."
    )
    return Finding(
        not lost and not stray and not days,
        told,
        recovery,
        error=False,
        numbers={
            "unaccounted": float(len(lost)),
            "stray": float(len(stray)),
            "days_not_folded": float(len(days)),
        },
        ids=named([*map(str, days), *map(str, lost), *map(str, stray)]),
    )

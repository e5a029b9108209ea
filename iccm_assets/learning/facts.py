"""What `learning.health` decides over: manifests on disk and rows of the registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import DamagedCheckpoint, ModelNotFound
from iccm_assets.models.manifest import read_manifest, verify

# About a second of hashing; larger models have the sizes of their files compared.
MOST_HASHED_BYTES = 512 << 20


@dataclass(frozen=True)
class Intact:
    """The outcome of looking at a model's directory."""

    damage: str
    hashed: bool


@dataclass(frozen=True)
class Trained:
    """The newest version that was trained here, with its lineage."""

    version: str
    path: str
    parent: str | None
    training: dict[str, Any]
    recorded: dict[str, int] = field(default_factory=dict)
    erased: list[int] = field(default_factory=list)


def look_at(path: str) -> Intact:
    """Compare a model's directory with its manifest, by hash where that is quick."""
    directory = Path(path)
    try:
        manifest = read_manifest(directory)
        if manifest.size <= MOST_HASHED_BYTES:
            verify(directory)
            return Intact("", True)
        for name, entry in sorted(manifest.files.items()):
            present = directory / name
            if not present.is_file():
                raise DamagedCheckpoint(f"{present} is missing")
            if present.stat().st_size != entry.size:
                raise DamagedCheckpoint(f"{present} has {present.stat().st_size} bytes, not {entry.size}")
    except (DamagedCheckpoint, ModelNotFound) as error:
        return Intact(error.detail, False)
    return Intact("", False)


def newest_trained(conn: sa.Connection) -> Trained | None:
    """The version the last finished training made; None before the first."""
    row = conn.execute(
        sa.text(
            """
            select v.version, v.path, v.parent_version, v.metrics -> 'training' as training, r.id as run_id
            from iccm.phase4_training_runs r join iccm.model_versions v on v.version = r.candidate_version
            order by v.created_at desc, r.id desc limit 1
            """
        )
    ).one_or_none()
    if row is None:
        return None
    examples = conn.execute(
        sa.text(
            """
            select e.conversation_id as id, e.role, c.erased_at is not null as erased
            from iccm.training_run_examples e join iccm.conversations c on c.id = e.conversation_id
            where e.training_run_id = :run
            """
        ),
        {"run": row.run_id},
    ).all()
    recorded: dict[str, int] = {}
    for one in examples:
        recorded[one.role] = recorded.get(one.role, 0) + 1
    return Trained(
        row.version,
        row.path,
        row.parent_version,
        dict(row.training or {}),
        recorded,
        [one.id for one in examples if one.erased],
    )


@dataclass(frozen=True)
class Teacher:
    """One conversation a training learned from; numbers only."""

    conversation_id: int
    role: str
    day: str
    quality_score: float | None


def teachers(conn: sa.Connection, training_run_id: int) -> list[Teacher]:
    """The conversations of a training, new ones first, best first."""
    rows = conn.execute(
        sa.text(
            """
            select e.conversation_id, e.role, (c."timestamp" at time zone 'UTC')::date::text as day,
                p.quality_score
            from iccm.training_run_examples e
            join iccm.conversations c on c.id = e.conversation_id
            left join iccm.phase4_training_data p on p.conversation_id = e.conversation_id
            where e.training_run_id = :run
            order by array_position(array['new', 'validation', 'rehearsal'], e.role),
                p.quality_score desc nulls last, e.conversation_id
            """
        ),
        {"run": training_run_id},
    )
    return [Teacher(*row) for row in rows]


def dagster_run_of(conn: sa.Connection, version: str) -> str | None:
    """The Dagster run that made a version, where one did."""
    query = sa.text(
        "select dagster_run_id from iccm.phase4_training_runs where candidate_version = :version "
        "order by id desc limit 1"
    )
    return conn.execute(query, {"version": version}).scalar_one_or_none()

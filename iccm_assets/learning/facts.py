"""Read what the checks in `learning.health` judge: manifests on disk and rows of the registry."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError
from iccm_assets.models.manifest import read_manifest, verify

# About a second of hashing; of larger models only the file sizes are compared.
MAX_HASHED_BYTES = 512 << 20


@dataclass(frozen=True)
class IntegrityResult:
    """The result of comparing a model's directory with its manifest."""

    damage: str
    hashed: bool


@dataclass(frozen=True)
class LatestCheckpoint:
    """The version of the last finished training, with its lineage.

    ``recorded`` is the number of its examples by role, ``erased`` the ids of those erased since.
    """

    version: str
    path: str
    training: dict[str, Any]
    example_counts: dict[str, int] = field(default_factory=dict)
    erased_conversations: list[int] = field(default_factory=list)


def check_files(path: str) -> IntegrityResult:
    """Compare a model's directory with its manifest, by hash unless it is too large."""
    directory = Path(path)
    try:
        hashed = read_manifest(directory).size <= MAX_HASHED_BYTES
        verify(directory, hash_files=hashed)
    except (CorruptCheckpointError, ModelNotFoundError) as error:
        return IntegrityResult(error.detail, False)
    return IntegrityResult("", hashed)


def get_latest_checkpoint(conn: sa.Connection) -> LatestCheckpoint | None:
    """Return the version of the last finished training; None before the first."""
    version = conn.execute(
        sa.text(
            """
            select v.version, v.path, v.metrics -> 'training' as training, r.id as run_id
            from iccm.phase4_training_runs r join iccm.model_versions v on v.version = r.candidate_version
            order by v.created_at desc, r.id desc limit 1
            """
        )
    ).one_or_none()
    if version is None:
        return None
    examples = conn.execute(
        sa.text(
            """
            select e.conversation_id as id, e.role, c.erased_at is not null as erased
            from iccm.training_run_examples e join iccm.conversations c on c.id = e.conversation_id
            where e.training_run_id = :run
            """
        ),
        {"run": version.run_id},
    ).all()
    return LatestCheckpoint(
        version.version,
        version.path,
        dict(version.training or {}),
        Counter(row.role for row in examples),
        [row.id for row in examples if row.erased],
    )


def list_training_conversations(conn: sa.Connection, training_run_id: int) -> list[dict[str, Any]]:
    """List the conversations of a training (ids and numbers, no text): new ones first, best first."""
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
    return [dict(row) for row in rows.mappings()]


def get_dagster_run(conn: sa.Connection, version: str) -> str | None:
    """Return the Dagster run that trained a version; None if it was not trained here."""
    query = sa.text(
        "select dagster_run_id from iccm.phase4_training_runs where candidate_version = :version "
        "order by id desc limit 1"
    )
    return conn.execute(query, {"version": version}).scalar_one_or_none()

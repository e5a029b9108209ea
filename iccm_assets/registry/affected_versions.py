"""Reads from the lineage which versions were trained on which conversations (V1, V2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, text

from iccm_assets.governance.replacement_plan import ReplacementPlan, VersionNode, plan_replacements

_NODES = text(
    "select version, parent_version, status, path from iccm.model_versions order by created_at, version"
)
_LEARNED = text(
    """
    select r.candidate_version, count(distinct e.conversation_id) from iccm.training_run_examples e
    join iccm.phase4_training_runs r on r.id = e.training_run_id
    where e.conversation_id = any(:ids) and r.candidate_version is not null
    group by 1
    """
)
_TAINTED = text(
    """
    select distinct r.candidate_version from iccm.conversations c
    join iccm.training_run_examples e on e.conversation_id = c.id
    join iccm.phase4_training_runs r on r.id = e.training_run_id
    where c.erased_at is not null and r.candidate_version is not null
    """
)
_ERASED_IN_ANCESTRY = text(
    """
    with recursive ancestry (version, parent_version) as (
        select version, parent_version from iccm.model_versions where version = :version
        union
        select m.version, m.parent_version
        from iccm.model_versions m join ancestry on m.version = ancestry.parent_version
    )
    select distinct e.conversation_id from ancestry
    join iccm.phase4_training_runs r on r.candidate_version = ancestry.version
    join iccm.training_run_examples e on e.training_run_id = r.id
    join iccm.conversations c on c.id = e.conversation_id and c.erased_at is not null
    """
)


def load_replacement_plan(
    conn: Connection, conversations: Sequence[int], erasure: int | None
) -> ReplacementPlan:
    """Make the plan for these erased conversations, on what this transaction sees."""
    nodes = [
        VersionNode(row.version, row.parent_version, row.status, (Path(row.path) / "config.json").is_file())
        for row in conn.execute(_NODES)
    ]
    learned = {version: count for version, count in conn.execute(_LEARNED, {"ids": list(conversations)})}
    return plan_replacements(nodes, learned, set(conn.execute(_TAINTED).scalars()), erasure)


def erased_ancestors(conn: Connection, version: str | None) -> set[int]:
    """Return the erased conversations that a version, or one of its ancestors, was trained on."""
    return set(conn.execute(_ERASED_IN_ANCESTRY, {"version": version}).scalars())

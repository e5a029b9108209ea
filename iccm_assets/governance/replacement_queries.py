"""The replacement plan of an erasure, from the lineage in the database (V2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, text

from iccm_assets.governance.replacement_plan import ReplacementPlan, VersionNode, plan_replacements
from iccm_assets.registry.hub import CONFIG_FILE, is_adapter
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.versions import resolve_path
from iccm_assets.settings import get_settings

_NODES = text(
    "select version, parent_version, status, path from iccm.model_versions order by created_at, version"
)
_TRAINED_EXAMPLES = text(
    """
    select r.candidate_version, count(distinct e.conversation_id) from iccm.training_run_examples e
    join iccm.phase4_training_runs r on r.id = e.training_run_id
    where e.conversation_id = any(:ids) and r.candidate_version is not null
    group by 1
    """
)
_TRAINED_ON_ERASED = text(
    """
    select distinct r.candidate_version from iccm.conversations c
    join iccm.training_run_examples e on e.conversation_id = c.id
    join iccm.phase4_training_runs r on r.id = e.training_run_id
    where c.erased_at is not null and r.candidate_version is not null
    """
)


def load_replacement_plan(
    conn: Connection, conversations: Sequence[int], erasure: int | None
) -> ReplacementPlan:
    """Make the plan for these erased conversations, on what this transaction sees."""
    shared = ModelStore.open(get_settings()).list_shared()
    nodes = [
        VersionNode(
            row.version,
            row.parent_version,
            row.status,
            _has_files(Path(resolve_path(row.path))) or Path(row.path).name in shared,
        )
        for row in conn.execute(_NODES)
    ]
    trained_examples = dict(conn.execute(_TRAINED_EXAMPLES, {"ids": list(conversations)}).tuples().all())
    trained_on_erased = set(conn.execute(_TRAINED_ON_ERASED).scalars())
    return plan_replacements(nodes, trained_examples, trained_on_erased, erasure)


def _has_files(directory: Path) -> bool:
    return (directory / CONFIG_FILE).is_file() or is_adapter(directory)

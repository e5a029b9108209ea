"""Reading from the lineage which versions learned from which conversations (V1, V2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, text

from iccm_assets.governance.plan import Node, Plan, decide

_NODES = text(
    "SELECT version, parent_version, status, path FROM iccm.model_versions ORDER BY created_at, version"
)
_LEARNED = text(
    """
    SELECT r.candidate_version, count(DISTINCT e.conversation_id) FROM iccm.training_run_examples e
    JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
    WHERE e.conversation_id = ANY(:ids) AND r.candidate_version IS NOT NULL
    GROUP BY 1
    """
)
_TAINTED = text(
    """
    SELECT DISTINCT r.candidate_version FROM iccm.conversations c
    JOIN iccm.training_run_examples e ON e.conversation_id = c.id
    JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
    WHERE c.erased_at IS NOT NULL AND r.candidate_version IS NOT NULL
    """
)
_ERASED_IN_LINE = text(
    """
    WITH RECURSIVE line (version, parent_version) AS (
        SELECT version, parent_version FROM iccm.model_versions WHERE version = :version
        UNION
        SELECT m.version, m.parent_version
        FROM iccm.model_versions m JOIN line ON m.version = line.parent_version
    )
    SELECT DISTINCT e.conversation_id FROM line
    JOIN iccm.phase4_training_runs r ON r.candidate_version = line.version
    JOIN iccm.training_run_examples e ON e.training_run_id = r.id
    JOIN iccm.conversations c ON c.id = e.conversation_id AND c.erased_at IS NOT NULL
    """
)


def plan_for(conn: Connection, conversations: Sequence[int], erasure: int | None) -> Plan:
    """The plan for these erased conversations, as things stand in this transaction."""
    nodes = [
        Node(row.version, row.parent_version, row.status, (Path(row.path) / "config.json").is_file())
        for row in conn.execute(_NODES)
    ]
    learned = {version: count for version, count in conn.execute(_LEARNED, {"ids": list(conversations)})}
    return decide(nodes, learned, set(conn.execute(_TAINTED).scalars()), erasure)


def erased_in_line(conn: Connection, version: str | None) -> set[int]:
    """The erased conversations that a version, or one it descends from, has learned from."""
    return set(conn.execute(_ERASED_IN_LINE, {"version": version}).scalars())

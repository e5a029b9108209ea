"""Columns of the assets that are tables, and where each column comes from (U1).

Written out, not derived: SQLAlchemy alone costs a third of the time in which this code location may load
(U6). `iccm_assets_tests/defs/test_schemas.py` holds them to `store.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

Columns = Mapping[str, tuple[str, str]]

CONVERSATIONS: Columns = {
    "id": ("bigint", "Key; what every lineage starts from."),
    "session_id": ("text", "One row per session."),
    "user_id": ("text?", "Who asked; null when unknown."),
    "timestamp": ("timestamptz", "Acceptance; its UTC day is the partition."),
    "content": ("jsonb", "Ordered messages {role, content}, secrets and personal data replaced (C4)."),
    "metadata": ("jsonb", "What the client added."),
    "origin": ("text", "gateway, claude-code, simulated or import."),
    "erased_at": ("timestamptz?", "When its content was erased (V2)."),
    "created_at": ("timestamptz", "When the row was written."),
    "updated_at": ("timestamptz", "When it last changed; the daily job looks for it (P6)."),
}
RECONSTRUCTIONS: Columns = {
    "id": ("bigint", "Key."),
    "requirement_id": ("bigint", "The requirements text that was re-implemented."),
    "reconstructor": ("text", "The member of the orchestra."),
    "judge_version": ("text?", "The judge that ran the suite."),
    "implementation_code": ("text?", "What it wrote from the text alone."),
    "test_pass_rate": ("double precision?", "Passed / planned tests; null is no evidence."),
    "results": ("jsonb", "Verdict per planned test (J2)."),
    "status": ("text", "scored, unreadable, missing, suspect or inconclusive."),
    "reason": ("text?", "Why it is not scored."),
    "duration_ms": ("double precision?", "Time in the sandbox."),
    "created_at": ("timestamptz", "When it was tested."),
}
_EXAMPLE: Columns = {
    "conversation_id": ("bigint", "Key: the conversation it comes from."),
    "day": ("date", "The partition: UTC day of the conversation."),
    "session_id": ("text", "Its session; decides on the holdout (F3)."),
    "user_id": ("text?", "Its user; bounds the selection (T7)."),
    "source_code": ("text", "The code asked about (C3): the model's input."),
    "requirements": ("text", "The accepted requirements (C3): the model's target."),
    "test_pass_rate": ("double precision", "Mean over the orchestra; kept above 0.75 (F1)."),
    "implementation_variance": ("double precision", "Variance over the orchestra; kept below 0.04 (F1)."),
    "quality_score": ("double precision", "test_pass_rate - 0.5 x implementation_variance."),
    "failed_first": ("boolean", "CET-D's first answer had failed and was corrected (T7)."),
    "content_sha256": ("text", "Hash of the requirements: the key of its vector."),
}
FILTERED_CONVERSATIONS: Columns = _EXAMPLE
TRAINING_POOL: Columns = {
    **_EXAMPLE,
    "embedding": ("vector(384)", "L2-normalised sentence embedding of the requirements (P1)."),
    "pinned": ("boolean", "A model version has learned from it: it stays (P2)."),
    "qualifies": ("boolean", "The filter still keeps it: it may be rehearsed (P4)."),
}
CANARY_SET: Columns = {
    "item": ("text", "Name of the item."),
    "slice": ("text", "Its domain; the gate looks for forgetting slice by slice."),
    "source_code": ("text", "The program."),
    "requirements": ("text", "Its true requirements."),
    "test_suite": ("jsonb", "Its tests (J1)."),
}
# Asset, table, columns: what the test compares.
TABLES = MappingProxyType(
    {
        "conversations": ("conversations", CONVERSATIONS),
        "reconstructions": ("reconstructions", RECONSTRUCTIONS),
        "filtered_conversations": ("filtered_conversations", FILTERED_CONVERSATIONS),
        "training_pool": ("phase4_training_data", TRAINING_POOL),
    }
)

_FILTERED_FROM: Mapping[str, list[tuple[str, str]]] = {
    "conversation_id": [("conversations", "id")],
    "day": [("conversations", "timestamp")],
    "session_id": [("conversations", "session_id")],
    "user_id": [("conversations", "user_id")],
    "source_code": [("conversations", "content"), ("conversations", "metadata")],
    "requirements": [("conversations", "content"), ("conversations", "metadata")],
    "test_pass_rate": [("reconstructions", "test_pass_rate")],
    "implementation_variance": [("reconstructions", "test_pass_rate")],
    "quality_score": [("reconstructions", "test_pass_rate")],
    "failed_first": [("reconstructions", "test_pass_rate"), ("conversations", "content")],
    "content_sha256": [("conversations", "content")],
}


def schema(columns: Columns) -> dict[str, dg.TableSchema]:
    """`dagster/column_schema` of a table; a type ending in `?` is nullable."""
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(
                    name,
                    kind.rstrip("?"),
                    description=told,
                    constraints=dg.TableColumnConstraints(nullable=kind.endswith("?")),
                )
                for name, (kind, told) in columns.items()
            ]
        )
    }


def lineage(sources: Mapping[str, list[tuple[str, str]]]) -> dict[str, dg.TableColumnLineage]:
    """`dagster/column_lineage`: column -> (asset, column) it is made of."""
    return {
        "dagster/column_lineage": dg.TableColumnLineage(
            deps_by_column={
                name: [dg.TableColumnDep(dg.AssetKey(asset), column) for asset, column in deps]
                for name, deps in sources.items()
            }
        )
    }


def filtered_lineage() -> dict[str, dg.TableColumnLineage]:
    """Where the columns of ``filtered_conversations`` come from."""
    return lineage(_FILTERED_FROM)


def pool_lineage() -> dict[str, dg.TableColumnLineage]:
    """The pool's columns: the filtered row as it is, and its vector."""
    sources = {name: [("filtered_conversations", name)] for name in _EXAMPLE}
    return lineage({**sources, "embedding": [("filtered_conversations", "requirements")]})


def reconstructions_lineage() -> dict[str, dg.TableColumnLineage]:
    """A re-implementation rests on the text of one conversation."""
    names = ("requirement_id", "implementation_code", "test_pass_rate", "results", "status")
    return lineage({name: [("conversations", "content")] for name in names})

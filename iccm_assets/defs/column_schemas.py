"""Columns of the assets that are tables, and where each column comes from.

Written out, not derived: SQLAlchemy alone costs a third of the time in which this code location may load
(U6). `iccm_assets_tests/defs/test_column_schemas.py` compares them with `db.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

Columns = Mapping[str, tuple[str, str]]

CONVERSATIONS: Columns = {
    "id": ("bigint", "Key; every lineage starts here."),
    "session_id": ("text", "One row per session."),
    "user_id": ("text?", "The user; null when unknown."),
    "timestamp": ("timestamptz", "Acceptance; its UTC day is the partition."),
    "content": ("jsonb", "Ordered messages {role, content}, secrets and personal data replaced."),
    "metadata": ("jsonb", "Metadata of the client."),
    "origin": ("text", "gateway, claude-code, codex, openai, simulated or import."),
    "erased_at": ("timestamptz?", "When its content was erased."),
    "created_at": ("timestamptz", "When the row was written."),
    "updated_at": ("timestamptz", "When it last changed; the daily job reads it."),
    "token_name": ("text?", "The token that opened the session."),
}
RECONSTRUCTIONS: Columns = {
    "id": ("bigint", "Key."),
    "requirement_id": ("bigint", "The requirements text that was re-implemented."),
    "reconstructor": ("text", "The member of the orchestra."),
    "judge_version": ("text?", "The judge that ran the suite."),
    "implementation_code": ("text?", "The re-implementation, written from the text alone."),
    "test_pass_rate": ("double precision?", "Passed / planned tests; null when inconclusive."),
    "results": ("jsonb", "Verdict per planned test."),
    "status": (
        "text",
        "scored, unreadable (invalid text), missing (member unavailable), suspect, inconclusive.",
    ),
    "reason": ("text?", "Why it has no score."),
    "duration_ms": ("double precision?", "Time in the sandbox, ms."),
    "created_at": ("timestamptz", "When it was tested."),
    "evidence": ("text?", "Kind of the suite: cases, or pytest, the weaker evidence."),
}
TEST_SUITES: Columns = {
    "id": ("bigint", "Key."),
    "source_sha256": ("text", "The source, by its digest."),
    "origin": ("text", "attached (came with the code), collected (test files of the session), recorded."),
    "suite": ("jsonb?", "The suite; null where none could be recorded."),
    "digest": ("text", "Of the suite; empty where there is none."),
    "strength": ("double precision?", "Refused / counted mutants of the source."),
    "branch_coverage": ("double precision?", "Branches of the source that the suite reaches / all."),
    "counted_mutants": ("integer?", "Mutants that it refuses, or that differ on further inputs."),
    "undecided_mutants": ("integer?", "Mutants that do neither."),
    "environment": ("text?", "The judge environment it was measured in; null for the default."),
    "generator_version": ("text", "The version of recorder and measurement."),
    "status": ("text", "usable, weak, mismatch (its own source fails it), none."),
    "reason": ("text?", "Why, with the figures."),
    "created_at": ("timestamptz", "When it was measured."),
}
TEST_SUITES_FROM: Mapping[str, list[tuple[str, str]]] = {
    name: [("conversations", "content"), ("conversations", "metadata")]
    for name in ("source_sha256", "suite", "digest", "strength", "branch_coverage", "status", "reason")
}
_EXAMPLE: Columns = {
    "conversation_id": ("bigint", "Key: the conversation it comes from."),
    "day": ("date", "The partition: UTC day of the conversation."),
    "session_id": ("text", "Its session; its hash decides on the holdout."),
    "user_id": ("text?", "Its user; limits the selection."),
    "source_code": ("text", "The source code: the model's input."),
    "requirements": ("text", "The accepted requirements: the model's target."),
    "test_pass_rate": ("double precision", "Mean over the orchestra; above 0.75."),
    "implementation_variance": ("double precision", "Variance over the orchestra; below 0.04."),
    "quality_score": ("double precision", "test_pass_rate - 0.5 x implementation_variance."),
    "failed_first": ("boolean", "CET-D's first response failed and the developer corrected it."),
    "content_sha256": ("text", "Hash of the requirements: the key of its vector."),
}
_EVIDENCE: Columns = {
    "evidence": ("text", "Kind of the suite it was scored on: cases, or pytest, the weaker evidence."),
    "test_suite_origin": ("text", "Where that suite comes from: attached, collected or recorded."),
}
FILTERED_CONVERSATIONS: Columns = {**_EXAMPLE, **_EVIDENCE}
TRAINING_POOL: Columns = {
    **_EXAMPLE,
    "embedding": ("vector(384)", "L2-normalized sentence embedding of the requirements."),
    "pinned": ("boolean", "A model version has been trained on it: it stays."),
    "qualifies": ("boolean", "It still passes the filter: it may be used for rehearsal."),
    **_EVIDENCE,
    "further_windows": ("bytea", "Embeddings of the further windows of a long text; empty for a short one."),
}
CANARY_SET: Columns = {
    "item": ("text", "Name of the item."),
    "slice": ("text", "Its domain; the gate checks each slice for forgetting."),
    "source_code": ("text", "The program."),
    "requirements": ("text", "Its true requirements."),
    "test_suite": ("jsonb", "Its tests."),
}
# Asset -> table and columns, for the test.
TABLES = MappingProxyType(
    {
        "conversations": ("conversations", CONVERSATIONS),
        "test_suites": ("test_suites", TEST_SUITES),
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
    "evidence": [("reconstructions", "evidence")],
    "test_suite_origin": [("conversations", "origin")],
}


def column_schema(columns: Columns) -> dict[str, dg.TableSchema]:
    """`dagster/column_schema` of a table; a type ending in `?` is nullable."""
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(
                    name,
                    kind.rstrip("?"),
                    description=description,
                    constraints=dg.TableColumnConstraints(nullable=kind.endswith("?")),
                )
                for name, (kind, description) in columns.items()
            ]
        )
    }


def column_lineage(sources: Mapping[str, list[tuple[str, str]]]) -> dict[str, dg.TableColumnLineage]:
    """`dagster/column_lineage`: column -> (asset, column) it is made of."""
    return {
        "dagster/column_lineage": dg.TableColumnLineage(
            deps_by_column={
                name: [dg.TableColumnDep(dg.AssetKey(asset), column) for asset, column in deps]
                for name, deps in sources.items()
            }
        )
    }


def filtered_conversations_lineage() -> dict[str, dg.TableColumnLineage]:
    """Return the sources of the columns of ``filtered_conversations``."""
    return column_lineage(_FILTERED_FROM)


def training_pool_lineage() -> dict[str, dg.TableColumnLineage]:
    """Return the sources of the columns of ``training_pool``: the filtered row, and its embedding."""
    sources = {name: [("filtered_conversations", name)] for name in FILTERED_CONVERSATIONS}
    return column_lineage({**sources, "embedding": [("filtered_conversations", "requirements")]})


def reconstructions_lineage() -> dict[str, dg.TableColumnLineage]:
    """Return the sources of the columns of ``reconstructions``: the text of one conversation."""
    names = ("requirement_id", "implementation_code", "test_pass_rate", "results", "status")
    sources = {name: [("conversations", "content")] for name in names}
    judged = {name: [*sources[name], ("test_suites", "suite")] for name in ("test_pass_rate", "results")}
    return column_lineage({**sources, **judged})

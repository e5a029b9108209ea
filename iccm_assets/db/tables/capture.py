"""Captured data: conversations, requirements, reconstructions, feedback and gateway requests."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    UniqueConstraint,
    text,
)

from iccm_assets.db.tables.base import (
    enum_check,
    fraction_column,
    id_column,
    jsonb_column,
    metadata,
    range_check,
    text_column,
    timestamp_column,
)
from iccm_assets.db.tables.suites import EVIDENCE_KINDS, SUITE_ORIGINS

ORIGINS = ("gateway", "claude-code", "simulated", "import", "codex", "openai")
REQUIREMENT_KINDS = ("model", "accepted")
ARMS = ("production", "canary")
REQUEST_STATUSES = ("ok", "fallback", "error", "timeout", "rejected")
# `length`: the answer stopped at the token limit; `truncated`: the model did not read the end of the source.
FINISH_REASONS = ("stop", "length", "truncated")
# `unreadable`: invalid requirements (score 0); `missing`: the reconstructor failed; `suspect` and
# `inconclusive`: no reliable verdict.
RECONSTRUCTION_STATUSES = ("scored", "unreadable", "missing", "suspect", "inconclusive")

conversations = Table(
    "conversations",
    metadata,
    id_column(),
    text_column("session_id", null=False),
    text_column("user_id"),
    timestamp_column("timestamp", default=True),
    # Not checked here: the filter rejects bad content with a reason (M3).
    jsonb_column("content", default="[]"),
    jsonb_column("metadata"),
    text_column("origin", null=False),
    timestamp_column("erased_at"),
    timestamp_column("created_at", default=True),
    # Writers set it on every change: the daily job finds the days whose inputs changed (P6).
    timestamp_column("updated_at", default=True),
    # The token that opened the session; with the user id it says whose session it is.
    text_column("token_name"),
    UniqueConstraint("session_id"),
    enum_check("origin", ORIGINS),
    Index(None, "timestamp"),
    Index(None, "updated_at"),
    Index(None, "user_id"),
    comment="Conversation of one session.",
)

requirements = Table(
    "requirements",
    metadata,
    id_column(),
    text_column("session_id", null=False),
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id")),
    text_column("kind", null=False),
    text_column("text", null=False),
    text_column("request_id"),
    text_column("model_version"),
    text_column("arm"),
    text_column("source_sha256"),
    jsonb_column("test_suite", null=True),
    fraction_column("test_pass_rate"),
    Column("implementation_variance", Double),
    fraction_column("api_compatibility"),
    text_column("judge_version"),
    text_column("orchestra"),
    jsonb_column("evidence", null=True),
    timestamp_column("scored_at"),
    timestamp_column("created_at", default=True),
    # Where the suite comes from (D1); its kind is the kind of evidence.
    text_column("test_suite_origin"),
    UniqueConstraint("request_id"),
    enum_check("kind", REQUIREMENT_KINDS),
    enum_check("arm", ARMS),
    enum_check("test_suite_origin", SUITE_ORIGINS),
    *range_check("test_pass_rate", "api_compatibility"),
    CheckConstraint(
        "implementation_variance >= 0 and implementation_variance <= 1", name="implementation_variance"
    ),
    # Scored without a pass rate means inconclusive; a pass rate always has its scoring time.
    CheckConstraint("test_pass_rate is null or scored_at is not null", name="scored"),
    Index("requirements_one_accepted", "session_id", unique=True, postgresql_where=text("kind = 'accepted'")),
    Index(None, "session_id"),
    Index(None, "conversation_id"),
    Index(None, "scored_at"),
    Index(None, "source_sha256"),
    Index(
        "requirements_without_score_idx",
        "id",
        postgresql_where=text("test_pass_rate is null and test_suite is not null"),
    ),
    Index(
        "requirements_scored_answers_idx",
        "id",
        postgresql_where=text("kind = 'model' and scored_at is not null"),
    ),
    comment="Requirements text: the model's response, or the text the developer accepted.",
)

reconstructions = Table(
    "reconstructions",
    metadata,
    id_column(),
    Column(
        "requirement_id", BigInteger, ForeignKey("iccm.requirements.id", ondelete="CASCADE"), nullable=False
    ),
    text_column("reconstructor", null=False),
    text_column("judge_version"),
    text_column("implementation_code"),
    fraction_column("test_pass_rate"),
    jsonb_column("results", default="[]"),
    text_column("status", null=False),
    text_column("reason"),
    Column("duration_ms", Double),
    timestamp_column("created_at", default=True),
    text_column("evidence"),
    UniqueConstraint("requirement_id", "reconstructor"),
    enum_check("status", RECONSTRUCTION_STATUSES),
    enum_check("evidence", EVIDENCE_KINDS),
    *range_check("test_pass_rate"),
    Index(None, "created_at"),
    comment="Re-implementation of a requirements text, with its test results.",
)

feedback = Table(
    "feedback",
    metadata,
    id_column(),
    text_column("session_id", null=False),
    text_column("request_id"),
    Column("rating", SmallInteger, nullable=False),
    text_column("comment"),
    timestamp_column("created_at", default=True),
    CheckConstraint("rating in (-1, 1)", name="rating"),
    Index(None, "session_id"),
    Index(None, "created_at"),
    comment="Thumbs up or down.",
)

# No foreign keys: the gateway's spool must be storable even if the rows it refers to are gone (G5).
requests = Table(
    "requests",
    metadata,
    text_column("request_id", key=True),
    text_column("session_id"),
    text_column("user_id"),
    Column("rollout_id", BigInteger),
    text_column("assigned_arm"),
    text_column("arm"),
    text_column("model_version"),
    text_column("status", null=False),
    text_column("error"),
    Column("latency_ms", Double),
    Column("output_tokens", Integer),
    timestamp_column("created_at", default=True),
    # The transaction that stored the row: a rollout counts what was stored since, however late it arrived.
    Column(
        "stored_xid", BigInteger, nullable=False, server_default=text("(pg_current_xact_id())::text::bigint")
    ),
    text_column("finish_reason"),
    enum_check("assigned_arm", ARMS),
    enum_check("arm", ARMS),
    enum_check("status", REQUEST_STATUSES),
    enum_check("finish_reason", FINISH_REASONS),
    CheckConstraint("latency_ms >= 0 and output_tokens >= 0", name="counts"),
    Index(None, "created_at"),
    Index(None, "session_id"),
    Index(None, "rollout_id", "arm", "created_at"),
    Index(None, "rollout_id", "assigned_arm", "created_at"),
    Index(None, "rollout_id", "stored_xid"),
    comment="Gateway request.",
)

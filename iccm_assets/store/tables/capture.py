"""What came in: conversations, requirements, their reconstructions, feedback and gateway requests."""

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

from iccm_assets.store.tables.base import document, identity, metadata, moment, one_of, share, within, words

ORIGINS = ("gateway", "claude-code", "simulated", "import")
REQUIREMENT_KINDS = ("model", "accepted")
ARMS = ("production", "canary")
REQUEST_STATUSES = ("ok", "fallback", "error", "timeout", "rejected")
# `unreadable`: the requirements could not be read (scores 0); `missing`: the reconstructor failed;
# `suspect` and `inconclusive`: the judge gave no verdict to rely on.
RECONSTRUCTION_STATUSES = ("scored", "unreadable", "missing", "suspect", "inconclusive")

conversations = Table(
    "conversations",
    metadata,
    identity(),
    words("session_id", null=False),
    words("user_id"),
    moment("timestamp", default=True),
    # Not checked to be messages: bad content is rejected with a reason later (M3), never refused here.
    document("content", default="[]"),
    document("metadata"),
    words("origin", null=False),
    moment("erased_at"),
    moment("created_at", default=True),
    # The daily job looks for days whose inputs changed (P6): writers set it on every change.
    moment("updated_at", default=True),
    UniqueConstraint("session_id"),
    one_of("origin", ORIGINS),
    Index(None, "timestamp"),
    Index(None, "updated_at"),
    Index(None, "user_id"),
    comment="One session's conversation (C1, C2).",
)

requirements = Table(
    "requirements",
    metadata,
    identity(),
    words("session_id", null=False),
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id")),
    words("kind", null=False),
    words("text", null=False),
    words("request_id"),
    words("model_version"),
    words("arm"),
    words("source_sha256"),
    document("test_suite", null=True),
    share("test_pass_rate"),
    Column("implementation_variance", Double),
    share("api_compatibility"),
    words("judge_version"),
    words("orchestra"),
    document("evidence", null=True),
    moment("scored_at"),
    moment("created_at", default=True),
    UniqueConstraint("request_id"),
    one_of("kind", REQUIREMENT_KINDS),
    one_of("arm", ARMS),
    *within("test_pass_rate", "api_compatibility"),
    CheckConstraint(
        "implementation_variance >= 0 and implementation_variance <= 1", name="implementation_variance"
    ),
    # A score that is null and yet scored is an inconclusive one; a score without its moment is nobody's.
    CheckConstraint("test_pass_rate is null or scored_at is not null", name="scored"),
    Index("requirements_one_accepted", "session_id", unique=True, postgresql_where=text("kind = 'accepted'")),
    Index(None, "session_id"),
    Index(None, "conversation_id"),
    Index(None, "scored_at"),
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
    comment="One requirements text: what CET-D answered, or what the developer ended with.",
)

reconstructions = Table(
    "reconstructions",
    metadata,
    identity(),
    Column(
        "requirement_id", BigInteger, ForeignKey("iccm.requirements.id", ondelete="CASCADE"), nullable=False
    ),
    words("reconstructor", null=False),
    words("judge_version"),
    words("implementation_code"),
    share("test_pass_rate"),
    document("results", default="[]"),
    words("status", null=False),
    words("reason"),
    Column("duration_ms", Double),
    moment("created_at", default=True),
    UniqueConstraint("requirement_id", "reconstructor"),
    one_of("status", RECONSTRUCTION_STATUSES),
    *within("test_pass_rate"),
    Index(None, "created_at"),
    comment="One re-implementation, tested (O1, J2).",
)

feedback = Table(
    "feedback",
    metadata,
    identity(),
    words("session_id", null=False),
    words("request_id"),
    Column("rating", SmallInteger, nullable=False),
    words("comment"),
    moment("created_at", default=True),
    CheckConstraint("rating in (-1, 1)", name="rating"),
    Index(None, "session_id"),
    Index(None, "created_at"),
    comment="A thumbs up or down.",
)

# No foreign keys: the gateway's spool (G5) must be storable whatever happened to the rest meanwhile.
requests = Table(
    "requests",
    metadata,
    words("request_id", key=True),
    words("session_id"),
    words("user_id"),
    Column("rollout_id", BigInteger),
    words("assigned_arm"),
    words("arm"),
    words("model_version"),
    words("status", null=False),
    words("error"),
    Column("latency_ms", Double),
    Column("output_tokens", Integer),
    moment("created_at", default=True),
    # The transaction that stored the row: counts what came since (rollout/observing.py), however late.
    Column(
        "stored_in", BigInteger, nullable=False, server_default=text("(pg_current_xact_id())::text::bigint")
    ),
    one_of("assigned_arm", ARMS),
    one_of("arm", ARMS),
    one_of("status", REQUEST_STATUSES),
    CheckConstraint("latency_ms >= 0 and output_tokens >= 0", name="counts"),
    Index(None, "created_at"),
    Index(None, "session_id"),
    Index(None, "rollout_id", "arm", "created_at"),
    Index(None, "rollout_id", "assigned_arm", "created_at"),
    Index(None, "rollout_id", "stored_in"),
    comment="One gateway request (G1-G3).",
)

"""Curated data: filtered conversations, the training pool, rejections and embeddings."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)

from iccm_assets.db.tables.base import (
    EMBEDDING_DIMENSIONS,
    enum_check,
    fraction_column,
    metadata,
    range_check,
    text_column,
    timestamp_column,
)
from iccm_assets.db.tables.suites import EVIDENCE_KINDS, SUITE_ORIGINS

REJECTION_STAGES = ("filter", "policy", "dedup")


def _example_columns() -> list[Any]:
    """Return the columns shared by filtered conversations and pool examples."""
    return [
        Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
        Column("day", Date, nullable=False),
        text_column("session_id", null=False),
        text_column("user_id"),
        text_column("source_code", null=False),
        text_column("requirements", null=False),
        fraction_column("test_pass_rate", null=False),
        Column("implementation_variance", Double, nullable=False),
        Column("quality_score", Double, nullable=False),
        Column("failed_first", Boolean, nullable=False, server_default=text("false")),
        text_column("content_sha256", null=False),
    ]


def _evidence_columns() -> list[Any]:
    """Return the columns that say on what kind of suite, from where, an example was scored (J1, D1)."""
    return [
        text_column("evidence", null=False),
        text_column("test_suite_origin", null=False),
        enum_check("evidence", EVIDENCE_KINDS),
        enum_check("test_suite_origin", SUITE_ORIGINS),
    ]


filtered_conversations = Table(
    "filtered_conversations",
    metadata,
    *_example_columns(),
    *_evidence_columns(),
    *range_check("test_pass_rate", "implementation_variance"),
    Index(None, "day"),
    comment="Conversation that passed the filter.",
)

phase4_training_data = Table(
    "phase4_training_data",
    metadata,
    *_example_columns(),
    Column("embedding", VECTOR(EMBEDDING_DIMENSIONS), nullable=False),
    # Pinned: a model version was trained on it, so it stays; rehearsed only while it qualifies (P4).
    Column("pinned", Boolean, nullable=False, server_default=text("false")),
    Column("qualifies", Boolean, nullable=False, server_default=text("true")),
    *_evidence_columns(),
    # As in ``embeddings``; empty for a text of one window.
    Column("further_windows", LargeBinary, nullable=False, server_default=text("''")),
    *range_check("test_pass_rate", "implementation_variance"),
    Index(None, "day"),
    Index("phase4_training_data_pinned_idx", "conversation_id", postgresql_where=text("pinned")),
    comment="Example in the training pool.",
)

phase4_rejections = Table(
    "phase4_rejections",
    metadata,
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
    text_column("stage", key=True),
    Column("day", Date, nullable=False),
    text_column("reason", null=False),
    text_column("detail"),
    Column("duplicate_of", BigInteger, ForeignKey("iccm.conversations.id")),
    Column("similarity", Double),
    # A near-duplicate of another program: which of numbers, negations and opposite words differ (P2).
    Column("differences", ARRAY(Text)),
    enum_check("stage", REJECTION_STAGES),
    Index(None, "day", "stage"),
    Index(None, "duplicate_of"),
    comment="Rejected conversation, with the reason.",
)

filtered_days = Table(
    "filtered_days",
    metadata,
    Column("day", Date, primary_key=True),
    timestamp_column("filtered_at", null=False),
    Column("kept", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    # Digest of the inputs as the filter read them: a day whose inputs have another is filtered again (P6).
    # Null for a day without conversations.
    text_column("fingerprint"),
    CheckConstraint("kept >= 0 and rejected >= 0", name="counts"),
    comment="Day that the filter has processed.",
)

pool_days = Table(
    "pool_days",
    metadata,
    Column("day", Date, primary_key=True),
    timestamp_column("rebuilt_at", null=False),
    Column("kept", Integer, nullable=False),
    Column("removed", Integer, nullable=False),
    # Digest of everything the day's decisions depend on: a day with another fingerprint is rebuilt.
    text_column("fingerprint", null=False),
    CheckConstraint("kept >= 0 and removed >= 0", name="counts"),
    comment="Day that is part of the training pool.",
)

embeddings = Table(
    "embeddings",
    metadata,
    text_column("content_sha256", key=True),
    text_column("embedder", key=True),
    Column("embedding", VECTOR(EMBEDDING_DIMENSIONS), nullable=False),
    # A text longer than the embedder reads: its other windows, 384 little-endian float32 each. Null: not
    # divided into windows yet.
    Column("further_windows", LargeBinary),
    comment="Embedding of a text, by content hash and embedder digest.",
)

"""What was kept of it: filtered conversations, the training pool, the rejected, and every embedding."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    Table,
    text,
)

from iccm_assets.store.tables.base import EMBEDDING_DIMENSIONS, metadata, moment, one_of, share, within, words

REJECTION_STAGES = ("filter", "policy", "dedup")


def _example() -> list[Any]:
    """The columns an example has from the filter to the pool."""
    return [
        Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
        Column("day", Date, nullable=False),
        words("session_id", null=False),
        words("user_id"),
        words("source_code", null=False),
        words("requirements", null=False),
        share("test_pass_rate", null=False),
        Column("implementation_variance", Double, nullable=False),
        Column("quality_score", Double, nullable=False),
        Column("failed_first", Boolean, nullable=False, server_default=text("false")),
        words("content_sha256", null=False),
    ]


filtered_conversations = Table(
    "filtered_conversations",
    metadata,
    *_example(),
    *within("test_pass_rate", "implementation_variance"),
    Index(None, "day"),
    comment="One conversation that passed the filter (F1).",
)

phase4_training_data = Table(
    "phase4_training_data",
    metadata,
    *_example(),
    Column("embedding", VECTOR(EMBEDDING_DIMENSIONS), nullable=False),
    # Learned from by a model version: stays whatever happens; rehearsed only while it qualifies (P4).
    Column("pinned", Boolean, nullable=False, server_default=text("false")),
    Column("qualifies", Boolean, nullable=False, server_default=text("true")),
    *within("test_pass_rate", "implementation_variance"),
    Index(None, "day"),
    Index("phase4_training_data_pinned_idx", "conversation_id", postgresql_where=text("pinned")),
    comment="One example in the training pool (P1-P4).",
)

phase4_rejections = Table(
    "phase4_rejections",
    metadata,
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
    words("stage", key=True),
    Column("day", Date, nullable=False),
    words("reason", null=False),
    words("detail"),
    Column("duplicate_of", BigInteger, ForeignKey("iccm.conversations.id")),
    Column("similarity", Double),
    one_of("stage", REJECTION_STAGES),
    Index(None, "day", "stage"),
    Index(None, "duplicate_of"),
    comment="One conversation left out, and why (M3, P2).",
)

filtered_days = Table(
    "filtered_days",
    metadata,
    Column("day", Date, primary_key=True),
    # Inputs written after this moment are not in the day's rows yet (P6).
    moment("filtered_at", null=False),
    Column("kept", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    CheckConstraint("kept >= 0 and rejected >= 0", name="counts"),
    comment="One day the filter has run for.",
)

pool_days = Table(
    "pool_days",
    metadata,
    Column("day", Date, primary_key=True),
    moment("folded_at", null=False),
    Column("kept", Integer, nullable=False),
    Column("removed", Integer, nullable=False),
    # Digest of what the day's decisions depend on: a day whose fingerprint is old is folded again.
    words("fingerprint", null=False),
    CheckConstraint("kept >= 0 and removed >= 0", name="counts"),
    comment="One day that is part of the pool's fold (P2, P4).",
)

embeddings = Table(
    "embeddings",
    metadata,
    words("content_sha256", key=True),
    words("embedder", key=True),
    Column("embedding", VECTOR(EMBEDDING_DIMENSIONS), nullable=False),
    comment="Every text ever embedded, by its hash and the embedder's digest (P2).",
)

"""Deployment: rollouts, replicas, events, alerts and platform facts."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
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
from iccm_assets.db.tables.capture import ARMS

# The one list of live states; the text of the tuple is its SQL, too: f"state in {LIVE_STATES}".
LIVE_STATES = ("ramping", "holding", "paused", "baking")
ROLLOUT_STATES = (*LIVE_STATES, "completed", "rolled_back", "aborted")
SEVERITIES = ("info", "warning", "critical")

rollouts = Table(
    "rollouts",
    metadata,
    id_column(),
    Column("candidate", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("production", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id")),
    text_column("state", default="ramping"),
    Column("stage", SmallInteger, nullable=False, server_default=text("1")),
    Column("weight", Double, nullable=False, server_default=text("0")),
    jsonb_column("policy"),
    Column("emergency", Boolean, nullable=False, server_default=text("false")),
    timestamp_column("lease_until"),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    timestamp_column("opened_at", default=True),
    timestamp_column("stage_entered_at", default=True),
    Column("healthy_seconds", Double, nullable=False, server_default=text("0")),
    timestamp_column("observed_at"),
    timestamp_column("held_since"),
    jsonb_column("evidence"),
    text_column("reason"),
    timestamp_column("closed_at"),
    timestamp_column("updated_at", default=True),
    enum_check("state", ROLLOUT_STATES),
    *range_check("weight"),
    CheckConstraint("stage >= 0 and revision >= 0 and healthy_seconds >= 0", name="counts"),
    CheckConstraint("candidate <> production", name="different_versions"),
    # At most one live rollout: all live rows have the same value in this index.
    Index(
        "rollouts_one_live",
        text("(true)"),
        unique=True,
        postgresql_where=text(f"state in {LIVE_STATES}"),
    ),
    Index(None, "candidate"),
    comment="Progressive deployment of a candidate.",
)

rollout_samples = Table(
    "rollout_samples",
    metadata,
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id"), primary_key=True),
    # No foreign key: an erased response stays counted by its id.
    Column("requirement_id", BigInteger, primary_key=True, autoincrement=False),
    # sha256 of the session's id.
    text_column("session_key", null=False),
    text_column("arm", null=False),
    Column("stage", SmallInteger, nullable=False),
    fraction_column("pass_rate", null=False),
    Column("variance", Double),
    timestamp_column("served_at", null=False),
    # Null: the response counts as its session's score.
    text_column("exclusion_reason"),
    Column("revision", BigInteger, nullable=False),
    enum_check("arm", ARMS),
    *range_check("pass_rate"),
    Index(
        "rollout_samples_one_per_session",
        "rollout_id",
        "session_key",
        unique=True,
        postgresql_where=text("exclusion_reason is null"),
    ),
    Index(None, "rollout_id", "served_at"),
    comment="Scored response in a rollout: its session's score, or excluded with a reason.",
)

rollout_pairs = Table(
    "rollout_pairs",
    metadata,
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id"), primary_key=True),
    text_column("item", key=True),
    fraction_column("canary", null=False),
    fraction_column("production", null=False),
    Column("revision", BigInteger, nullable=False),
    *range_check("canary", "production"),
    comment="Production-holdout item scored for both versions and counted by a rollout.",
)

gateway_replicas = Table(
    "gateway_replicas",
    metadata,
    text_column("replica", key=True),
    text_column("address"),
    timestamp_column("started_at", default=True),
    timestamp_column("heartbeat_at", default=True),
    Column("ready_versions", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    # Version -> reason why this process could not load it.
    jsonb_column("failed_versions"),
    comment="Gateway process.",
)

TOKEN_SCOPES = ("requirements", "conversations", "feedback", "metrics", "review", "admin")
TOKEN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,59}"  # a regular expression

gateway_tokens = Table(
    "gateway_tokens",
    metadata,
    text_column("name", key=True),
    text_column("hash", null=False),
    # The one before the last rotation, valid for some time more.
    text_column("previous_hash"),
    timestamp_column("previous_until"),
    Column("scopes", ARRAY(Text), nullable=False),
    timestamp_column("created_at", default=True),
    timestamp_column("rotated_at"),
    timestamp_column("expires_at"),
    timestamp_column("revoked_at"),
    timestamp_column("last_used_at"),
    Column("use_count", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("hash"),
    CheckConstraint("hash ~ '^[0-9a-f]{64}$'", name="hash"),
    CheckConstraint(f"name ~ '^{TOKEN_NAME}$'", name="name"),
    CheckConstraint(
        f"cardinality(scopes) > 0 and scopes <@ array{list(TOKEN_SCOPES)}",
        name="scopes",
    ),
    comment="Token of a client of the gateway; its hash, not itself.",
)

deployment_events = Table(
    "deployment_events",
    metadata,
    id_column(),
    # Null for a direct promotion, which has no rollout; `seq` counts within a rollout.
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id")),
    Column("seq", Integer),
    timestamp_column("timestamp", default=True),
    text_column("event_type", null=False),
    text_column("from_state"),
    text_column("to_state"),
    # From here on `version` has this share of live traffic and production has the rest (M2).
    Column("version", Text, ForeignKey("iccm.model_versions.version")),
    fraction_column("weight"),
    jsonb_column("evidence"),
    text_column("notes"),
    text_column("actor", null=False),
    UniqueConstraint("rollout_id", "seq"),
    *range_check("weight"),
    CheckConstraint("(version is null) = (weight is null)", name="traffic"),
    CheckConstraint("(rollout_id is null) = (seq is null)", name="order"),
    Index(None, "timestamp"),
    Index(None, "version"),
    comment="Append-only log of state transitions and traffic changes.",
)

rollback_events = Table(
    "rollback_events",
    metadata,
    id_column(),
    timestamp_column("timestamp", default=True),
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id")),
    text_column("from_version"),
    text_column("to_version"),
    text_column("reason", null=False),
    text_column("new_model_path"),
    jsonb_column("metrics"),
    text_column("notes"),
    text_column("actor", default="controller"),
    Index(None, "timestamp"),
    Index(None, "rollout_id"),
    comment="Rollback to an earlier version.",
)

alerts = Table(
    "alerts",
    metadata,
    text_column("key", key=True),
    text_column("severity", null=False),
    text_column("title", null=False),
    text_column("body", default=""),
    timestamp_column("created_at", default=True),
    timestamp_column("delivered_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    text_column("last_error"),
    enum_check("severity", SEVERITIES),
    Index("alerts_undelivered_idx", "created_at", postgresql_where=text("delivered_at is null")),
    comment="Alert outbox, one row per key; every alert is delivered at least once.",
)

alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("key", Text, ForeignKey("iccm.alerts.key", ondelete="CASCADE"), primary_key=True),
    # The channel's name, which reveals only the scheme of its URL.
    text_column("channel", key=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    timestamp_column("last_attempt_at"),
    timestamp_column("delivered_at"),
    text_column("last_error"),
    CheckConstraint("attempts >= 0", name="attempts"),
    Index("alert_deliveries_undelivered_idx", "channel", postgresql_where=text("delivered_at is null")),
    comment="Delivery of one alert to one channel: locked, sent and marked in one transaction.",
)

registry_events = Table(
    "registry_events",
    metadata,
    id_column(),
    # One of the two; what they say is in their rows, which never change.
    Column("deployment_event_id", BigInteger, ForeignKey("iccm.deployment_events.id", ondelete="CASCADE")),
    Column("verdict_id", BigInteger, ForeignKey("iccm.gate_verdicts.id", ondelete="CASCADE")),
    timestamp_column("created_at", default=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    timestamp_column("last_attempt_at"),
    timestamp_column("delivered_at"),
    text_column("last_error"),
    UniqueConstraint("deployment_event_id"),
    UniqueConstraint("verdict_id"),
    CheckConstraint("(deployment_event_id is null) <> (verdict_id is null)", name="decision"),
    CheckConstraint("attempts >= 0", name="attempts"),
    Index("registry_events_undelivered_idx", "id", postgresql_where=text("delivered_at is null")),
    comment="Outbox of verdicts and deployment events for an MLflow registry, one row per decision.",
)

platform = Table(
    "platform",
    metadata,
    text_column("key", key=True),
    jsonb_column("value"),
    comment="Facts about this platform, such as its clock settings.",
)

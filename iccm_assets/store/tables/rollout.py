"""What was let out: rollouts, replicas, the events that move them, alerts and platform facts."""

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

from iccm_assets.store.tables.base import document, identity, metadata, moment, one_of, share, within, words
from iccm_assets.store.tables.capture import ARMS

LIVE_STATES = ("ramping", "holding", "paused", "baking")
ROLLOUT_STATES = (*LIVE_STATES, "completed", "rolled_back", "aborted")
SEVERITIES = ("info", "warning", "critical")

rollouts = Table(
    "rollouts",
    metadata,
    identity(),
    Column("candidate", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("production", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id")),
    words("state", default="ramping"),
    Column("stage", SmallInteger, nullable=False, server_default=text("1")),
    Column("weight", Double, nullable=False, server_default=text("0")),
    document("policy"),
    Column("emergency", Boolean, nullable=False, server_default=text("false")),
    moment("lease_until"),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    moment("opened_at", default=True),
    moment("stage_entered_at", default=True),
    Column("healthy_seconds", Double, nullable=False, server_default=text("0")),
    moment("observed_at"),
    moment("held_since"),
    document("evidence"),
    words("reason"),
    moment("closed_at"),
    moment("updated_at", default=True),
    one_of("state", ROLLOUT_STATES),
    *within("weight"),
    CheckConstraint("stage >= 0 and revision >= 0 and healthy_seconds >= 0", name="counts"),
    CheckConstraint("candidate <> production", name="two_models"),
    # At most one live rollout: all live rows share the one value of this index.
    Index(
        "rollouts_one_live",
        text("(true)"),
        unique=True,
        postgresql_where=text("state in ('ramping', 'holding', 'paused', 'baking')"),
    ),
    Index(None, "candidate"),
    comment="One progressive deployment (section 7).",
)

rollout_samples = Table(
    "rollout_samples",
    metadata,
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id"), primary_key=True),
    # No foreign key: an erased answer stays counted, by its number.
    Column("requirement_id", BigInteger, primary_key=True, autoincrement=False),
    # sha256 of the session's id.
    words("session_key", null=False),
    words("arm", null=False),
    Column("stage", SmallInteger, nullable=False),
    share("pass_rate", null=False),
    Column("variance", Double),
    moment("served_at", null=False),
    # Null: it is its session's score.
    words("left_out"),
    Column("revision", BigInteger, nullable=False),
    one_of("arm", ARMS),
    *within("pass_rate"),
    Index(
        "rollout_samples_one_per_session",
        "rollout_id",
        "session_key",
        unique=True,
        postgresql_where=text("left_out is null"),
    ),
    Index(None, "rollout_id", "served_at"),
    comment="One scored answer of a rollout: counted as its session's score, or left out, and why (R11).",
)

rollout_pairs = Table(
    "rollout_pairs",
    metadata,
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id"), primary_key=True),
    words("item", key=True),
    share("canary", null=False),
    share("production", null=False),
    Column("revision", BigInteger, nullable=False),
    *within("canary", "production"),
    comment="One production-holdout item measured for both versions that a rollout has counted (R11).",
)

gateway_replicas = Table(
    "gateway_replicas",
    metadata,
    words("replica", key=True),
    words("address"),
    moment("started_at", default=True),
    moment("heartbeat_at", default=True),
    Column("ready_versions", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    # Version -> why it could not be loaded here; nobody waits for it in silence.
    document("failed_versions"),
    comment="One gateway process (G3).",
)

deployment_events = Table(
    "deployment_events",
    metadata,
    identity(),
    # Null for a direct promotion, which has no rollout; `seq` counts within a rollout.
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id")),
    Column("seq", Integer),
    moment("timestamp", default=True),
    words("event_type", null=False),
    words("from_state"),
    words("to_state"),
    # M2: from here on `version` has this share of the live traffic; production has the rest.
    Column("version", Text, ForeignKey("iccm.model_versions.version")),
    share("weight"),
    document("evidence"),
    words("notes"),
    words("actor", null=False),
    UniqueConstraint("rollout_id", "seq"),
    *within("weight"),
    CheckConstraint("(version is null) = (weight is null)", name="traffic"),
    CheckConstraint("(rollout_id is null) = (seq is null)", name="order"),
    Index(None, "timestamp"),
    Index(None, "version"),
    comment="Append-only: every transition, and every change of who serves how much (M2).",
)

rollback_events = Table(
    "rollback_events",
    metadata,
    identity(),
    moment("timestamp", default=True),
    Column("rollout_id", BigInteger, ForeignKey("iccm.rollouts.id")),
    words("from_version"),
    words("to_version"),
    words("reason", null=False),
    words("new_model_path"),
    document("metrics"),
    words("notes"),
    words("actor", default="controller"),
    Index(None, "timestamp"),
    Index(None, "rollout_id"),
    comment="Every rollback (R8).",
)

alerts = Table(
    "alerts",
    metadata,
    words("key", key=True),
    words("severity", null=False),
    words("title", null=False),
    words("body", default=""),
    moment("created_at", default=True),
    moment("delivered_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    words("last_error"),
    one_of("severity", SEVERITIES),
    Index("alerts_undelivered_idx", "created_at", postgresql_where=text("delivered_at is null")),
    comment="Outbox: delivered at least once, never twice for one key (A1).",
)

alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("key", Text, ForeignKey("iccm.alerts.key", ondelete="CASCADE"), primary_key=True),
    # The channel's name, which gives nothing of its URL away but the scheme.
    words("channel", key=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("tried_at"),
    moment("delivered_at"),
    words("last_error"),
    CheckConstraint("attempts >= 0", name="attempts"),
    Index("alert_deliveries_undelivered_idx", "channel", postgresql_where=text("delivered_at is null")),
    comment="What is owed to one channel: locked, sent and marked in one transaction (A1).",
)

platform = Table(
    "platform",
    metadata,
    words("key", key=True),
    document("value"),
    comment="Facts about this platform, such as the settings of its clock (S4).",
)

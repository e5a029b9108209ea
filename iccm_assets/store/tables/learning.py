"""What was learned: retrainings, their lineage, model versions and their measurements."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from iccm_assets.store.tables.base import document, identity, metadata, moment, one_of, share, within, words
from iccm_assets.store.tables.capture import RECONSTRUCTION_STATUSES

TRIGGERS = ("weekly", "degradation", "data_threshold", "manual")
TRAINING_STATUSES = (
    "requested",
    "waiting",
    "running",
    "gate_passed",
    "gate_failed",
    "inconclusive",
    "skipped",
    "failed",
)
VERDICTS = ("pass", "fail", "inconclusive")
EXAMPLE_ROLES = ("new", "rehearsal", "validation")
VERSION_STATUSES = (
    "candidate",
    "gate_failed",
    "inconclusive",
    "canary",
    "production",
    "retired",
    "rolled_back",
)
EVALUATION_SETS = ("canary_set", "production_holdout")

model_versions = Table(
    "model_versions",
    metadata,
    words("version", key=True),
    Column("parent_version", Text, ForeignKey("iccm.model_versions.version")),
    words("status", null=False),
    words("digest", null=False),
    words("path", null=False),
    document("metrics"),
    words("notes"),
    moment("created_at", default=True),
    moment("deployed_at"),
    one_of("status", VERSION_STATUSES),
    # M1: at most one production model. Demote, then promote, in one transaction.
    Index(
        "model_versions_one_production", "status", unique=True, postgresql_where=text("status = 'production'")
    ),
    Index(None, "digest"),
    Index(None, "parent_version"),
    comment="One model.",
)

phase4_training_runs = Table(
    "phase4_training_runs",
    metadata,
    identity(),
    words("trigger", null=False),
    words("trigger_key", null=False),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    moment("heartbeat_at"),
    Column("emergency", Boolean, nullable=False, server_default=text("false")),
    words("status", default="requested"),
    moment("timestamp", default=True),
    moment("training_timestamp"),
    Column("base_version", Text, ForeignKey("iccm.model_versions.version")),
    # Deferred: the trainer names its candidate in the transaction that registers it, in either order.
    Column(
        "candidate_version",
        Text,
        ForeignKey("iccm.model_versions.version", deferrable=True, initially="DEFERRED"),
    ),
    words("dataset_digest"),
    document("config"),
    Column("improvement", Double),
    words("verdict"),
    document("evidence", null=True),
    words("notes"),
    words("error"),
    words("dagster_run_id"),
    moment("created_at", default=True),
    moment("updated_at", default=True),
    # Null: the version in production when the run starts.
    Column("requested_base", Text, ForeignKey("iccm.model_versions.version")),
    # Counts up with every Dagster run started for the row: whoever raises it starts that one (T6).
    Column("dispatch", BigInteger, nullable=False, server_default=text("0")),
    moment("dispatched_at"),
    # Null: the window of the settings (T7).
    Column("requested_window_days", Integer),
    UniqueConstraint("trigger_key"),
    one_of("trigger", TRIGGERS),
    one_of("status", TRAINING_STATUSES),
    one_of("verdict", VERDICTS),
    CheckConstraint("attempt >= 0 and fence >= 0", name="counts"),
    CheckConstraint("dispatch >= 0", name="dispatch"),
    CheckConstraint("requested_window_days >= 1", name="requested_window_days"),
    # T6: one retrain at a time, whatever started it.
    Index(
        "phase4_training_runs_one_running", "status", unique=True, postgresql_where=text("status = 'running'")
    ),
    Index(None, "timestamp"),
    Index(None, "candidate_version"),
    comment="One retraining, from request to outcome (T1-T6).",
)

training_run_examples = Table(
    "training_run_examples",
    metadata,
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id"), primary_key=True),
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
    words("role", null=False),
    one_of("role", EXAMPLE_ROLES),
    Index(None, "conversation_id"),
    comment="Which conversation went into which run, and as what (V1).",
)

# Keyed by the model's digest, not by its version: a result may be older than the version's row (E1).
canary_results = Table(
    "canary_results",
    metadata,
    identity(),
    words("version", null=False),
    words("model_digest", null=False),
    words("set", default="canary_set"),
    words("canary_set_digest", null=False),
    words("item", null=False),
    words("slice", null=False),
    words("reconstructor", null=False),
    words("orchestra", null=False),
    words("judge_version", null=False),
    words("decoding", null=False),
    words("requirements", null=False),
    share("test_pass_rate"),
    share("api_compatibility"),
    Column("output_tokens", Integer),
    words("status", null=False),
    words("reason"),
    moment("created_at", default=True),
    one_of("set", EVALUATION_SETS),
    one_of("status", RECONSTRUCTION_STATUSES),
    *within("test_pass_rate", "api_compatibility"),
    UniqueConstraint(
        "model_digest",
        "canary_set_digest",
        "item",
        "reconstructor",
        "orchestra",
        "judge_version",
        "decoding",
        name="canary_results_once",
    ),
    Index(None, "version", "canary_set_digest"),
    Index(None, "created_at"),
    comment="One item x reconstructor x version, with provenance (E1).",
)

quality_measurements = Table(
    "quality_measurements",
    metadata,
    identity(),
    Column("version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    moment("measured_at", default=True),
    words("set", null=False),
    Column("n", Integer, nullable=False),
    share("mean"),
    Column("standard_error", Double),
    share("baseline_mean"),
    words("judge_version", null=False),
    words("orchestra"),
    words("set_digest"),
    document("evidence"),
    words("dagster_run_id"),
    one_of("set", EVALUATION_SETS),
    *within("mean", "baseline_mean"),
    CheckConstraint("n >= 0 and standard_error >= 0", name="counts"),
    Index(None, "version", "set", "measured_at"),
    comment="One measurement of production's quality (T2, T8).",
)

# Append-only: every verdict with the evidence and the gate it came from, so that it can be judged again (E5).
gate_verdicts = Table(
    "gate_verdicts",
    metadata,
    identity(),
    Column("version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("production_version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id")),
    words("status", null=False),
    Column("improvement", Double),
    document("verdict"),
    document("evidence"),
    document("gate"),
    words("canary_set_digest", null=False),
    words("orchestra", null=False),
    words("judge_version", null=False),
    words("dagster_run_id"),
    moment("created_at", default=True),
    one_of("status", VERDICTS),
    Index(None, "version"),
    comment="One verdict of the quality gate, with its evidence (E3-E5).",
)

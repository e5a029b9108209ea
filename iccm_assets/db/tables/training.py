"""Training: retrainings, their lineage, model versions and their measurements."""

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
from iccm_assets.db.tables.capture import RECONSTRUCTION_STATUSES

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
EXAMPLE_ROLES = ("new", "rehearsal", "self", "validation")
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
    text_column("version", key=True),
    Column("parent_version", Text, ForeignKey("iccm.model_versions.version")),
    text_column("status", null=False),
    text_column("digest", null=False),
    text_column("path", null=False),
    jsonb_column("metrics"),
    text_column("notes"),
    timestamp_column("created_at", default=True),
    timestamp_column("deployed_at"),
    text_column("kind", default="full"),
    text_column("base_digest"),
    enum_check("kind", ("full", "adapter")),
    # An adapter changes the weights of a whole model, its base (L11).
    CheckConstraint("(kind = 'adapter') = (base_digest is not null)", name="base_digest"),
    enum_check("status", VERSION_STATUSES),
    # At most one production version: demote, then promote, in one transaction (M1).
    Index(
        "model_versions_one_production", "status", unique=True, postgresql_where=text("status = 'production'")
    ),
    Index(None, "digest"),
    Index(None, "parent_version"),
    comment="Model version.",
)

phase4_training_runs = Table(
    "phase4_training_runs",
    metadata,
    id_column(),
    text_column("trigger", null=False),
    text_column("trigger_key", null=False),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    timestamp_column("heartbeat_at"),
    Column("emergency", Boolean, nullable=False, server_default=text("false")),
    text_column("status", default="requested"),
    timestamp_column("timestamp", default=True),
    timestamp_column("training_timestamp"),
    Column("base_version", Text, ForeignKey("iccm.model_versions.version")),
    # Deferred: the transaction that registers the candidate sets it, in either order.
    Column(
        "candidate_version",
        Text,
        ForeignKey("iccm.model_versions.version", deferrable=True, initially="DEFERRED"),
    ),
    text_column("dataset_digest"),
    jsonb_column("config"),
    Column("improvement", Double),
    text_column("verdict"),
    jsonb_column("evidence", null=True),
    text_column("notes"),
    text_column("error"),
    text_column("dagster_run_id"),
    timestamp_column("created_at", default=True),
    timestamp_column("updated_at", default=True),
    # Null: the version in production when the run starts.
    Column("requested_base", Text, ForeignKey("iccm.model_versions.version")),
    # Number of Dagster runs started for the row: the process that increments it starts the run (T6).
    Column("dispatch", BigInteger, nullable=False, server_default=text("0")),
    timestamp_column("dispatched_at"),
    # Null: the window of the settings (T7).
    Column("requested_window_days", Integer),
    UniqueConstraint("trigger_key"),
    enum_check("trigger", TRIGGERS),
    enum_check("status", TRAINING_STATUSES),
    enum_check("verdict", VERDICTS),
    CheckConstraint("attempt >= 0 and fence >= 0", name="counts"),
    CheckConstraint("dispatch >= 0", name="dispatch"),
    CheckConstraint("requested_window_days >= 1", name="requested_window_days"),
    # One retraining at a time, for all triggers together (T6).
    Index(
        "phase4_training_runs_one_running", "status", unique=True, postgresql_where=text("status = 'running'")
    ),
    Index(None, "timestamp"),
    Index(None, "candidate_version"),
    comment="Retraining, from request to outcome.",
)

training_run_examples = Table(
    "training_run_examples",
    metadata,
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id"), primary_key=True),
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), primary_key=True),
    text_column("role", null=False, key=True),
    # The answer that an example of the role `self` is (L12).
    Column("sampled_answer_id", BigInteger, ForeignKey("iccm.sampled_answers.id")),
    enum_check("role", EXAMPLE_ROLES),
    CheckConstraint("(role = 'self') = (sampled_answer_id is not null)", name="sampled_answer"),
    Index(None, "conversation_id"),
    Index(None, "sampled_answer_id", postgresql_where=text("sampled_answer_id is not null")),
    comment="Conversation used by a training run, with its role.",
)

# The cache of sampling, and the lineage of what was learned from it. An erasure takes the text (L12).
sampled_answers = Table(
    "sampled_answers",
    metadata,
    id_column(),
    Column("conversation_id", BigInteger, ForeignKey("iccm.conversations.id"), nullable=False),
    Column("model_version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    text_column("model_digest", null=False),
    text_column("source_sha256", null=False),
    text_column("suite_sha256", null=False),
    text_column("decoding", null=False),
    # 0: the greedy answer, which has no seed.
    Column("sample", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False, server_default=text("0")),
    # Null: erased.
    text_column("text"),
    text_column("content_sha256", null=False),
    fraction_column("test_pass_rate"),
    fraction_column("implementation_variance"),
    # Why it can be no example, whatever its score.
    text_column("rejection"),
    text_column("orchestra", null=False),
    text_column("judge_version", null=False),
    timestamp_column("created_at", default=True),
    CheckConstraint("sample >= 0 and seed >= 0", name="counts"),
    *range_check("test_pass_rate", "implementation_variance"),
    UniqueConstraint(
        *("conversation_id", "source_sha256", "suite_sha256", "model_digest", "decoding", "sample", "seed"),
        *("orchestra", "judge_version"),
        name="sampled_answers_cache_key",
    ),
    comment="Answer that a version gave to be learned from.",
)

# Keyed by the model digest, not by the version: a result may be older than the version's row (E1).
canary_results = Table(
    "canary_results",
    metadata,
    id_column(),
    text_column("version", null=False),
    text_column("model_digest", null=False),
    text_column("set", default="canary_set"),
    text_column("canary_set_digest", null=False),
    text_column("item", null=False),
    text_column("slice", null=False),
    text_column("reconstructor", null=False),
    text_column("orchestra", null=False),
    text_column("judge_version", null=False),
    text_column("decoding", null=False),
    text_column("requirements", null=False),
    fraction_column("test_pass_rate"),
    fraction_column("api_compatibility"),
    Column("output_tokens", Integer),
    text_column("status", null=False),
    text_column("reason"),
    timestamp_column("created_at", default=True),
    enum_check("set", (*EVALUATION_SETS, "audit_set")),
    enum_check("status", RECONSTRUCTION_STATUSES),
    *range_check("test_pass_rate", "api_compatibility"),
    UniqueConstraint(
        "model_digest",
        "canary_set_digest",
        "item",
        "reconstructor",
        "orchestra",
        "judge_version",
        "decoding",
        name="canary_results_cache_key",
    ),
    Index(None, "version", "canary_set_digest"),
    Index(None, "created_at"),
    comment="Score of one item, reconstructor and model version, with provenance.",
)

quality_measurements = Table(
    "quality_measurements",
    metadata,
    id_column(),
    Column("version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    timestamp_column("measured_at", default=True),
    text_column("set", null=False),
    Column("n", Integer, nullable=False),
    fraction_column("mean"),
    Column("standard_error", Double),
    fraction_column("baseline_mean"),
    text_column("judge_version", null=False),
    text_column("orchestra"),
    text_column("set_digest"),
    jsonb_column("evidence"),
    text_column("dagster_run_id"),
    enum_check("set", EVALUATION_SETS),
    *range_check("mean", "baseline_mean"),
    CheckConstraint("n >= 0 and standard_error >= 0", name="counts"),
    Index(None, "version", "set", "measured_at"),
    comment="Measurement of production quality.",
)

# Append-only: every verdict with its evidence and gate, so that it can be replayed (E5).
gate_verdicts = Table(
    "gate_verdicts",
    metadata,
    id_column(),
    Column("version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("production_version", Text, ForeignKey("iccm.model_versions.version"), nullable=False),
    Column("training_run_id", BigInteger, ForeignKey("iccm.phase4_training_runs.id")),
    text_column("status", null=False),
    Column("improvement", Double),
    jsonb_column("verdict"),
    jsonb_column("evidence"),
    jsonb_column("gate"),
    text_column("canary_set_digest", null=False),
    text_column("orchestra", null=False),
    text_column("judge_version", null=False),
    text_column("dagster_run_id"),
    timestamp_column("created_at", default=True),
    enum_check("status", VERDICTS),
    Index(None, "version"),
    comment="Verdict of the quality gate, with its evidence.",
)

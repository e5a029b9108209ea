"""Every table of the schema `iccm` as a SQLAlchemy Core table, under its own name.

The migrations create the schema; queries are written with these definitions. A test compares the two.
"""

from __future__ import annotations

from iccm_assets.db.tables.base import EMBEDDING_DIMENSIONS, SCHEMA, metadata
from iccm_assets.db.tables.capture import (
    conversations,
    feedback,
    reconstructions,
    requests,
    requirements,
)
from iccm_assets.db.tables.curation import (
    embeddings,
    filtered_conversations,
    filtered_days,
    phase4_rejections,
    phase4_training_data,
    pool_days,
)
from iccm_assets.db.tables.governance import erasures
from iccm_assets.db.tables.rollout import (
    LIVE_STATES,
    alert_deliveries,
    alerts,
    deployment_events,
    gateway_replicas,
    gateway_tokens,
    platform,
    registry_events,
    rollback_events,
    rollout_pairs,
    rollout_samples,
    rollouts,
)
from iccm_assets.db.tables.suites import (
    EVIDENCE_KINDS,
    SUITE_ORIGINS,
    SUITE_STATUSES,
    environments,
    test_suites,
)
from iccm_assets.db.tables.training import (
    canary_results,
    gate_verdicts,
    model_versions,
    phase4_training_runs,
    quality_measurements,
    sampled_answers,
    training_run_examples,
)

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "EVIDENCE_KINDS",
    "LIVE_STATES",
    "SCHEMA",
    "SUITE_ORIGINS",
    "SUITE_STATUSES",
    "alert_deliveries",
    "alerts",
    "canary_results",
    "conversations",
    "deployment_events",
    "embeddings",
    "environments",
    "erasures",
    "feedback",
    "filtered_conversations",
    "filtered_days",
    "gate_verdicts",
    "gateway_replicas",
    "gateway_tokens",
    "metadata",
    "model_versions",
    "phase4_rejections",
    "phase4_training_data",
    "phase4_training_runs",
    "platform",
    "pool_days",
    "quality_measurements",
    "reconstructions",
    "registry_events",
    "requests",
    "requirements",
    "rollback_events",
    "rollout_pairs",
    "rollout_samples",
    "rollouts",
    "sampled_answers",
    "test_suites",
    "training_run_examples",
]

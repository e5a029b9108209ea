"""How a Dagster run finds its row of `phase4_training_runs`: by tag, or by making a manual one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.learning.training_runs import TrainingRun

TRAINING_RUN_TAG = "iccm/training_run_id"


class RetrainConfig(dg.Config):
    """What a retrain launched by hand may say; a triggered one brings its row instead."""

    reason: str = Field("", description="Why; stands in phase4_training_runs.notes.")
    emergency: bool = Field(False, description="Emergency selection, epochs and gate (T7, L1, E3).")


def training_run_of(
    context: dg.AssetExecutionContext, engine: sa.Engine, config: RetrainConfig
) -> TrainingRun:
    """The row the run's tag names; without a tag, a manual one keyed by the Dagster run (T4)."""
    from iccm_assets.learning import training_runs, triggers

    tagged = context.run.tags.get(TRAINING_RUN_TAG)
    with engine.begin() as conn:
        if tagged:
            return training_runs.get(conn, int(tagged))
        key = f"manual:{context.run.root_run_id or context.run_id}"
        fire = triggers.manual(key, config.reason or "launched in Dagster", config.emergency)
        return training_runs.request(conn, fire) or training_runs.by_key(conn, fire.key)

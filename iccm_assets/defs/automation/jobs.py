"""Jobs. Daily data and retraining are kept apart, since their partitions differ."""

import dagster as dg

from iccm_assets.defs.automation.ops import apply_retention, import_captured_sessions, score_live_responses
from iccm_assets.settings import load_settings

daily_data_job = dg.define_asset_job(
    "daily_data_job",
    selection=dg.AssetSelection.assets(
        "test_suites", "reconstructions", "filtered_conversations", "training_pool"
    )
    | dg.AssetSelection.checks_for_assets("conversations"),
    description="Record suites, score, filter and deduplicate days of conversations.",
)

production_quality_job = dg.define_asset_job(
    "production_quality_job",
    # The checks of `deployed_model_version` run here and not in a retrain: a failed quality gate ends it
    # and leaves them planned and never executed, which Dagster shows as failed.
    selection=dg.AssetSelection.assets("production_quality")
    | dg.AssetSelection.checks_for_assets("deployed_model_version"),
    description="Measure the production version on the canary set and the production holdout.",
    tags={"dagster/max_runtime": "14400"},
)

retrain_job = dg.define_asset_job(
    "retrain_job",
    selection=dg.AssetSelection.assets(
        "base_model", "canary_set", "fine_tuned_checkpoint", "canary_evaluation"
    )
    | dg.AssetSelection.assets("deployed_model_version").without_checks(),
    description="Train a candidate, measure it against production, deploy it if the quality gate passes.",
    # Attempts are counted in the row of the training run: Dagster's own retries would double them.
    tags={
        "dagster/max_runtime": str(load_settings().training.max_runtime_seconds),
        "dagster/max_retries": "0",
    },
)


@dg.job(
    description="Score new gateway responses that came with tests, so that a rollout has quality evidence.",
    # Dagster does not notice a killed run worker: until this limit the schedule sees an unfinished run.
    tags={"dagster/max_runtime": "900"},
)
def live_scoring_job() -> None:
    score_live_responses()


@dg.job(
    description="Import the coding sessions that were captured on this machine as conversations.",
    tags={"dagster/max_runtime": "900"},
)
def captured_sessions_job() -> None:
    import_captured_sessions()


@dg.job(
    description="Delete checkpoints, datasets and rows past their retention period, never what is in use.",
    tags={"dagster/max_runtime": "7200"},
)
def maintenance_job() -> None:
    apply_retention()

"""The jobs: daily data and retraining are kept apart, since their partitions differ."""

import dagster as dg

daily_data_job = dg.define_asset_job(
    "daily_data_job",
    selection=dg.AssetSelection.assets("reconstructions", "filtered_conversations", "training_pool")
    | dg.AssetSelection.checks_for_assets("conversations"),
    description="Score, filter and deduplicate days of conversations (P6).",
)

production_quality_job = dg.define_asset_job(
    "production_quality_job",
    # Who serves is checked here, every six hours, and not in a retrain: a red gate ends that, and would leave
    # these checks planned and never run, which Dagster shows as failed.
    selection=dg.AssetSelection.assets("production_quality")
    | dg.AssetSelection.checks_for_assets("deployed_model_version"),
    description="Measure the version that serves on the canary set and the production holdout (T8).",
    tags={"dagster/max_runtime": "14400"},
)

retrain_job = dg.define_asset_job(
    "retrain_job",
    selection=dg.AssetSelection.assets(
        "base_model", "canary_set", "fine_tuned_checkpoint", "canary_evaluation"
    )
    | dg.AssetSelection.assets("deployed_model_version").without_checks(),
    description="Train a candidate, measure it against production, deploy it if the quality gate passes.",
    # Its attempts are counted in the training run's row (T6): Dagster's own retries would double them.
    tags={"dagster/max_runtime": "43200", "dagster/max_retries": "0"},
)

"""The jobs: daily data and retraining are kept apart, since their partitions differ."""

import dagster as dg

daily_data_job = dg.define_asset_job(
    "daily_data_job",
    selection=["reconstructions", "filtered_conversations", "training_pool"],
    description="Score, filter and deduplicate days of conversations (P6).",
)

retrain_job = dg.define_asset_job(
    "retrain_job",
    selection=[
        "base_model",
        "canary_set",
        "fine_tuned_checkpoint",
        "canary_evaluation",
        "deployed_model_version",
    ],
    description="Train a candidate, measure it against production, deploy it if the quality gate passes.",
    tags={"dagster/max_runtime": "43200"},
)

"""Checks of the filtered rows and the pool: materialized, fresh, free of contamination and duplicates."""

from iccm_assets.defs.check_factory import platform_check

yesterday_is_materialized = platform_check(
    "filtered_conversations",
    "curation.checks.yesterday_is_materialized",
    "Yesterday's partition is materialized, or has no conversations.",
)
partitions_are_fresh = platform_check(
    "filtered_conversations",
    "curation.checks.partitions_are_fresh",
    "The days of the last week are unchanged since they were materialized.",
)
no_contamination = platform_check(
    "filtered_conversations",
    "curation.checks.no_contamination",
    "The newest 2000 rows hold no holdout session, no erased content and no canary item.",
)
no_duplicates = platform_check(
    "training_pool",
    "curation.checks.no_duplicates",
    "All pairs of the newest 5000 stored vectors are below the similarity threshold.",
)
row_counts_reconcile = platform_check(
    "training_pool",
    "curation.checks.row_counts_reconcile",
    "Every filtered row is in the pool or removed as a duplicate, and every filtered day is deduplicated.",
)
user_cap_leaves_enough_examples = platform_check(
    "training_pool",
    "retraining.checks.user_cap_leaves_enough_examples",
    "The cap on a user's share leaves enough new examples for a retrain, where there are enough.",
)

"""Checks of the filtered rows and the pool: materialized, fresh, free of contamination and duplicates."""

from iccm_assets.defs.check_factory import platform_check

yesterday_is_materialized = platform_check(
    "filtered_conversations",
    "curation.checks.yesterday_is_materialized",
    "Was yesterday's partition materialized?",
)
partitions_are_fresh = platform_check(
    "filtered_conversations",
    "curation.checks.partitions_are_fresh",
    "Are the days of the last week unchanged since they were materialized?",
)
no_contamination = platform_check(
    "filtered_conversations",
    "curation.checks.no_contamination",
    "Is every row free of holdout sessions, erased content and canary items? Checks the newest 2000.",
)
no_duplicates = platform_check(
    "training_pool",
    "curation.checks.no_duplicates",
    "Are all pairs of stored vectors below the similarity threshold? Checks the newest 5000 rows.",
)
row_counts_reconcile = platform_check(
    "training_pool",
    "curation.checks.row_counts_reconcile",
    "Is every filtered row in the pool or removed as a duplicate, and every filtered day deduplicated?",
)

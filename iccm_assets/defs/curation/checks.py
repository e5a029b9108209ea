"""Checks of the filtered rows and the pool: materialized, fresh, free of contamination and duplicates."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


@platform_check("filtered_conversations", "Was yesterday's partition materialized?")
def yesterday_is_materialized(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.capture.checks import load_daily_volumes
    from iccm_assets.curation import checks
    from iccm_assets.db.clock import now

    yesterday = now(conn).date() - timedelta(days=1)
    [volume] = load_daily_volumes(conn, yesterday, yesterday)
    return checks.check_yesterday(yesterday, checks.is_filtered(conn, yesterday), volume.total)


@platform_check(
    "filtered_conversations", "Are the days of the last week unchanged since they were materialized?"
)
def partitions_are_fresh(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation import checks
    from iccm_assets.curation.filtering import find_changed_days
    from iccm_assets.db.clock import now

    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    return checks.check_freshness(
        days, find_changed_days(conn, yesterday - timedelta(days=days - 1), yesterday)
    )


@platform_check(
    "filtered_conversations",
    "Is every row free of holdout sessions, erased content and canary items? Checks the newest 2000.",
)
def no_contamination(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation import checks

    return checks.check_contamination(*checks.load_contamination(conn, "filtered_conversations", settings))


@platform_check(
    "training_pool",
    "Are all pairs of stored vectors below the similarity threshold? Checks the newest 5000 rows.",
)
def no_duplicates(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation import checks

    threshold = settings.curation.duplicate_similarity
    pool = checks.load_pool_vectors(conn)
    pairs = checks.find_similar_pairs(pool.ids, pool.vectors, pool.pinned, threshold)
    return checks.check_duplicates(len(pool.ids), pool.pool_size, pairs, threshold)


@platform_check(
    "training_pool",
    "Is every filtered row in the pool or removed as a duplicate, and every filtered day deduplicated?",
)
def row_counts_reconcile(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation import checks

    return checks.check_row_counts(**checks.load_pool_counts(conn))

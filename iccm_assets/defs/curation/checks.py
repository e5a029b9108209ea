"""Checks of the filtered rows and the pool: fresh, current, free of leaks and duplicates (U4)."""

from datetime import timedelta

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import result


@dg.asset_check(asset="filtered_conversations", description="Was yesterday's partition made?")
def yesterday_is_filtered(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.capture.arrivals import count_days
    from iccm_assets.curation import facts, health
    from iccm_assets.store.clock import now

    with platform.engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
        [arrived] = count_days(conn, yesterday, yesterday)
        filtered = facts.is_filtered(conn, yesterday)
    return result(health.yesterday(yesterday, filtered, arrived.total))


@dg.asset_check(
    asset="filtered_conversations", description="Did inputs of the last week change since they were filtered?"
)
def days_are_current(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation import health
    from iccm_assets.curation.filtering import changed_days
    from iccm_assets.store.clock import now

    back = platform.settings.curation.late_days
    with platform.engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
        changed = changed_days(conn, yesterday - timedelta(days=back - 1), yesterday)
    return result(health.current(back, changed))


@dg.asset_check(
    asset="filtered_conversations",
    description="Is any row held out, erased, or of the canary set (F3, F4)? The newest 2000 rows.",
)
def nothing_leaked(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation import facts, health

    with platform.engine.connect() as conn:
        found = facts.leaks_of(conn, "filtered_conversations", platform.settings)
    return result(health.leaks(found.looked_at, found.held_out, found.erased, found.overlapping))


@dg.asset_check(
    asset="training_pool",
    description="Is any pair of stored vectors at the threshold or above (P2)? The newest 5000 rows.",
)
def no_duplicates(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation import facts, health

    threshold = platform.settings.curation.duplicate_similarity
    with platform.engine.connect() as conn:
        pool = facts.pool_vectors(conn)
    pairs = health.similar_pairs(pool.ids, pool.vectors, pool.pinned, threshold)
    return result(health.duplicates(len(pool.ids), pool.of, pairs, threshold))


@dg.asset_check(
    asset="training_pool",
    description="Is every filtered row in the pool or removed as a duplicate, and no day forgotten (P4)?",
)
def rows_add_up(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation import facts, health

    with platform.engine.connect() as conn:
        counts = facts.pool_counts(conn)
    return result(health.adds_up(**vars(counts)))


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        asset_checks=[yesterday_is_filtered, days_are_current, nothing_leaked, no_duplicates, rows_add_up]
    )

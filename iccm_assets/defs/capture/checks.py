"""Checks of `conversations`: do they arrive, can they be read, does anything wait? (U4)"""

from datetime import timedelta

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import result

USUAL_DAYS = 14


@dg.asset_check(asset="conversations", description="Did yesterday bring about as many as the days before?")
def arrivals_continue(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.capture import arrivals, health
    from iccm_assets.store.clock import now

    with platform.engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
        days = arrivals.count_days(conn, yesterday - timedelta(days=USUAL_DAYS), yesterday)
    *before, last = arrivals.totals(days)
    return result(health.arrivals(before, last))


@dg.asset_check(asset="conversations", description="Can the messages of the last week be read (M3)?")
def content_is_readable(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.capture import arrivals, health
    from iccm_assets.store.clock import now

    with platform.engine.connect() as conn:
        looked_at, unreadable = arrivals.unreadable(conn, now(conn) - timedelta(days=7))
    return result(health.readable(looked_at, unreadable))


@dg.asset_check(asset="conversations", description="Has the database everything the gateways took in (G5)?")
def spool_is_delivered(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.capture import arrivals, health

    state = arrivals.spool_state(platform.settings.home / "spool")
    return result(health.spool(state.refused, state.waiting_bytes, state.oldest_seconds))


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(asset_checks=[arrivals_continue, content_is_readable, spool_is_delivered])

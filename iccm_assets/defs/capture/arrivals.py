"""The arrivals of `conversations`, reported by the run that reads them."""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg

from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.resources import PlatformResource

DISPLAY_DAYS = 14


def report_daily_arrivals(context: dg.AssetExecutionContext, platform: PlatformResource, last: date) -> None:
    """Report the volume of ``last`` if that is yesterday: one point a day in the plots of the asset.

    Days that are materialized again are not reported again; the days before are listed in a table. The report
    is a materialization where conversations arrived, so that the asset is fresh, and otherwise an
    observation. It names no data version: new conversations do not make earlier days stale.
    """
    from iccm_assets.capture.checks import load_daily_volumes
    from iccm_assets.db.clock import now
    from iccm_assets.reporting.formatting import snake_case_keys

    with platform.engine.connect() as conn:
        if last != now(conn).date() - timedelta(days=1):
            return
        days = load_daily_volumes(conn, last - timedelta(days=DISPLAY_DAYS - 1), last)
    newest = days[-1]
    history = [
        {
            "day": volume.day.isoformat(),
            "arrived": volume.total,
            "users": volume.users,
            "with_test_suite": volume.with_test_suite,
            "origins": ", ".join(f"{name} {count}" for name, count in volume.by_origin.items()),
        }
        for volume in reversed(days)
    ]
    event = dg.AssetMaterialization if newest.total else dg.AssetObservation
    context.log_event(
        event(
            asset_key="conversations",
            description=f"{newest.total} conversations of {newest.users} users arrived on {last}",
            metadata={
                "day": last.isoformat(),
                "arrived": newest.total,
                "users": newest.users,
                "with_test_suite": newest.with_test_suite,
                **snake_case_keys(newest.by_origin, "from"),
                "daily_history": table_metadata(history),
            },
        )
    )

"""Observations of `conversations` by the run that reads them."""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg

from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.resources import PlatformResource

DISPLAY_DAYS = 14


def observe_daily_arrivals(context: dg.AssetExecutionContext, platform: PlatformResource, last: date) -> None:
    """Observe the volume of ``last`` if that is yesterday: one point a day in the plots of the asset.

    Days that are materialized again are not observed again; the days before are listed in a table.
    """
    from iccm_assets.capture.checks import load_daily_volumes
    from iccm_assets.db.clock import now

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
            "with test suite": volume.with_test_suite,
            "origin": ", ".join(f"{name} {count}" for name, count in volume.by_origin.items()),
        }
        for volume in reversed(days)
    ]
    context.log_event(
        dg.AssetObservation(
            asset_key="conversations",
            metadata={
                "day": last.isoformat(),
                "arrived": newest.total,
                "users": newest.users,
                "with_test_suite": newest.with_test_suite,
                **{f"from {origin}": count for origin, count in newest.by_origin.items()},
                "daily_history": table_metadata(history),
            },
        )
    )

"""Arrivals of `conversations`, observed by the run that reads them (U1)."""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import table

SHOWN_DAYS = 14


def observe_arrivals(context: dg.AssetExecutionContext, platform: Platform, last: date) -> None:
    """What arrived on a run's ``last`` day, if that is yesterday: one point a day in the asset's plots.

    Older days made again are no news; the days before stand in a table beside the numbers.
    """
    from iccm_assets.capture.arrivals import count_days
    from iccm_assets.store.clock import now

    with platform.engine.connect() as conn:
        if last != now(conn).date() - timedelta(days=1):
            return
        days = count_days(conn, last - timedelta(days=SHOWN_DAYS - 1), last)
    newest = days[-1]
    context.log_event(
        dg.AssetObservation(
            asset_key="conversations",
            metadata={
                "day": last.isoformat(),
                "arrived": newest.total,
                "users": newest.users,
                "with_test_suite": newest.with_test_suite,
                **{f"from {origin}": count for origin, count in newest.by_origin.items()},
                "last_days": table(
                    [
                        {
                            "day": one.day.isoformat(),
                            "arrived": one.total,
                            "users": one.users,
                            "with test suite": one.with_test_suite,
                            "origin": ", ".join(f"{name} {n}" for name, n in one.by_origin.items()),
                        }
                        for one in reversed(days)
                    ]
                ),
            },
        )
    )

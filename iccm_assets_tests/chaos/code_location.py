"""The project's code location with its retrains alone: no schedules, and sensors that look every 5 s."""

from __future__ import annotations

import dagster as dg

from iccm_assets import definitions

LOOK_SECONDS = 5
SENSORS = ("retrain_dispatch_sensor", "run_failure_alert_sensor")


@dg.definitions
def defs() -> dg.Definitions:
    """Everything of the project that a retrain meets; only the pace differs."""
    whole = definitions.defs()
    sensors = [one for one in whole.sensors or [] if one.name in SENSORS]
    for one in sensors:
        one._min_interval = LOOK_SECONDS  # configuration has no word for it
    return dg.Definitions(
        assets=whole.assets,
        asset_checks=whole.asset_checks,
        jobs=whole.jobs,
        sensors=sensors,
        resources=whole.resources,
        executor=whole.executor,
    )

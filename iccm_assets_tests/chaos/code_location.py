"""The project's code location with its retrains alone: no schedules, and sensors that look every 5 s."""

from __future__ import annotations

import dagster as dg

from iccm_assets import definitions

LOOK_SECONDS = 5
SENSORS = ("retrain_dispatch_sensor", "run_failure_alert_sensor")


@dg.definitions
def defs() -> dg.Definitions:
    """Everything of the project that a retrain meets; only the pace differs."""
    project = definitions.defs()
    sensors = [sensor for sensor in project.sensors or [] if sensor.name in SENSORS]
    for sensor in sensors:
        sensor._min_interval = LOOK_SECONDS  # configuration has no word for it
    return dg.Definitions(
        assets=project.assets,
        asset_checks=project.asset_checks,
        jobs=project.jobs,
        sensors=sensors,
        resources=project.resources,
        executor=project.executor,
    )

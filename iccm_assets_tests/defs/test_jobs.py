"""The jobs take their limits from the settings."""

from __future__ import annotations

import os
import subprocess
import sys

TAGS = (
    "from iccm_assets.defs.automation.jobs import retrain_job; print(retrain_job.tags['dagster/max_runtime'])"
)


def test_the_configured_run_time_of_a_retrain_reaches_dagster() -> None:
    def max_runtime(**environment: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if "MAX_RUNTIME" not in name}
        loaded = subprocess.run(
            [sys.executable, "-c", TAGS],
            env=inherited | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return loaded.stdout.strip()

    assert max_runtime() == "43200"
    assert max_runtime(ICCM_TRAINING__MAX_RUNTIME_SECONDS="7200") == "7200"


def test_the_tick_interval_of_the_settings_reaches_the_controllers_sensor() -> None:
    code = (
        "from iccm_assets.defs.automation.sensors import rollout_controller_sensor as sensor;"
        " print(sensor.minimum_interval_seconds)"
    )
    environment = {**os.environ, "ICCM_ROLLOUT__TICK_SECONDS": "45"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["45"]

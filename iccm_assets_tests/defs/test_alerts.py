"""The sensors: the outbox is emptied by the daemon, and a failed run raises one alert (A1, A2)."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import instance_for_test

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db import tables as t
from iccm_assets.defs import resources
from iccm_assets.defs.automation.sensors import (
    alert_delivery_sensor,
    registry_mirror_sensor,
    run_failure_alert_sensor,
)
from iccm_assets.errors import TrainingDivergedError
from iccm_assets.rollout import deployment
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.fake_receiver import run_receiver

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with instance_for_test() as made:
        yield made


def tick(platform: resources.PlatformResource, instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance, resources={"platform": platform}) as context:
        return alert_delivery_sensor.evaluate_tick(context).skip_message or ""


def test_the_sensor_delivers_what_is_due_and_says_what_waits(
    engine: sa.Engine,
    platform: resources.PlatformResource,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine.begin() as conn:
        raise_alert(conn, "k", "warning", "Model Rollback")
    message = tick(platform, instance)
    assert message == "1 alerts are pending, none is due, and ICCM_ALERT_URLS names no channel"
    with run_receiver() as slack:
        monkeypatch.setenv("ICCM_ALERT_URLS", slack.url)
        get_settings.cache_clear()
        assert tick(platform, instance).startswith("1 messages delivered, 0 failed")
        assert tick(platform, instance) == "0 alerts are pending, none is due"
        assert slack.keys() == {"k": 1}


def looked_at(
    instance: dg.DagsterInstance,
    platform: resources.PlatformResource,
    result: dg.ExecuteInProcessResult,
) -> None:
    """The sensor's look at a failed run, twice."""
    [failure] = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
    for _ in range(2):
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_alert_sensor",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=failure,
            resources={"platform": platform},
        ).for_run_failure()
        run_failure_alert_sensor(context)


def test_a_failed_run_raises_one_alert_with_its_cause(
    engine: sa.Engine,
    platform: resources.PlatformResource,
    instance: dg.DagsterInstance,
) -> None:
    @dg.op
    def breaks() -> None:
        raise TrainingDivergedError("loss is NaN at step 3")

    @dg.job
    def some_job() -> None:
        breaks()

    result = some_job.execute_in_process(instance=instance, raise_on_error=False, run_config=QUIET)
    looked_at(instance, platform, result)
    with engine.connect() as conn:
        [row] = conn.execute(sa.select(t.alerts)).all()
    assert (row.key, row.severity, row.title) == (
        f"dagster_run_failed:{result.run_id}", "critical", "some_job failed",
    )  # fmt: skip
    assert "loss is NaN at step 3" in row.body


def test_a_run_that_a_red_check_has_stopped_is_no_failure(
    engine: sa.Engine,
    platform: resources.PlatformResource,
    instance: dg.DagsterInstance,
) -> None:
    @dg.asset(check_specs=[dg.AssetCheckSpec("gate", asset="measured", blocking=True)])
    def measured() -> dg.MaterializeResult:
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name="gate", passed=False)])

    job = dg.Definitions(assets=[measured], jobs=[dg.define_asset_job("gated_job", "*")])
    result = job.resolve_job_def("gated_job").execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET
    )
    looked_at(instance, platform, result)
    with engine.connect() as conn:
        [row] = conn.execute(sa.select(t.alerts)).all()
    assert (row.severity, row.title) == ("info", "gated_job was stopped by a check")


def test_the_mirror_says_what_it_lacks_and_what_waits(
    engine: sa.Engine,
    platform: resources.PlatformResource,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mirror() -> str:
        with dg.build_sensor_context(instance=instance, resources={"platform": platform}) as context:
            return registry_mirror_sensor.evaluate_tick(context).skip_message or ""

    assert mirror() == "ICCM_MLFLOW_MODEL names no registered model"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ICCM_MLFLOW_MODEL", "cet-d")
    get_settings.cache_clear()
    assert mirror() == "0 decisions wait, none is due"
    with engine.begin() as conn:
        deployment.bootstrap(conn, digest="a" * 64, path="/base", base_model="base")
    assert "MLFLOW_TRACKING_URI is not set" in mirror()

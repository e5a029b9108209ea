"""The live scoring job and its schedule: a run when there is something to score, else a reason (U2)."""

from __future__ import annotations

import dagster as dg
import sqlalchemy as sa
from dagster._core.test_utils import create_run_for_test

from iccm_assets.defs import resources
from iccm_assets.defs.automation.jobs import live_scoring_job
from iccm_assets.defs.automation.schedules import live_scoring_schedule
from iccm_assets.defs.workers import LocalWorkers
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.scorable_rows import load_model_rows, serve_request

TEXT = "The function `f` shall take `x`.\nIt shall return 2 times `x`."


def tick(platform: resources.PlatformResource, instance: dg.DagsterInstance) -> dg.ScheduleExecutionData:
    with dg.build_schedule_context(instance=instance, resources={"platform": platform}) as context:
        return live_scoring_schedule.evaluate_tick(context)


def test_the_schedule_says_how_much_there_is_to_score(
    engine: sa.Engine,
    settings: Settings,
    platform: resources.PlatformResource,
    stored_instance: dg.DagsterInstance,
) -> None:
    assert tick(platform, stored_instance).skip_message == "0 responses with tests are waiting for a score"
    serve_request(engine, settings, "r", "s")
    assert len(tick(platform, stored_instance).run_requests) == 1
    at_work = create_run_for_test(
        stored_instance, job_name="live_scoring_job", status=dg.DagsterRunStatus.STARTED
    )
    message = tick(platform, stored_instance).skip_message
    assert message == f"1 responses are waiting, and run {at_work.run_id[:8]} is started"


def test_the_job_scores_and_tells_its_story(
    engine: sa.Engine,
    settings: Settings,
    platform: resources.PlatformResource,
    stored_instance: dg.DagsterInstance,
) -> None:
    serve_request(engine, settings, "r", "s", text=TEXT)
    result = live_scoring_job.execute_in_process(
        instance=stored_instance,
        resources={"platform": platform, "workers": LocalWorkers()},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    assert result.success
    assert load_model_rows(engine)["r"].scored_at is not None
    [event] = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    observation = event.asset_observation_data.asset_observation
    assert observation.asset_key == dg.AssetKey("deployed_model_version")
    assert (
        observation.metadata["production_version"].value == "v1"
        and observation.metadata["production_requests"].value == 1
    )
    [output] = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    assert metadata["texts_scored"].value + metadata["texts_inconclusive"].value == 1
    assert metadata["texts"].value == 1 and metadata["pending"].value == 0
    assert [record.data["arm"] for record in metadata["arms"].records] == ["production"]

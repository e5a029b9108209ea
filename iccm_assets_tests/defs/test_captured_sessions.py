"""The job and the schedule that import captured sessions: a run when some are waiting, else a reason."""

from __future__ import annotations

import dagster as dg
import sqlalchemy as sa
from dagster._core.test_utils import create_run_for_test

from iccm_assets.defs import resources
from iccm_assets.defs.automation.jobs import captured_sessions_job
from iccm_assets.defs.automation.schedules import captured_sessions_schedule
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.session_hooks import run_hook, session_end, write_session


def tick(platform: resources.PlatformResource, instance: dg.DagsterInstance) -> dg.ScheduleExecutionData:
    with dg.build_schedule_context(instance=instance, resources={"platform": platform}) as context:
        return captured_sessions_schedule.evaluate_tick(context)


def test_waiting_sessions_are_imported_by_a_run(
    engine: sa.Engine,
    settings: Settings,
    platform: resources.PlatformResource,
    stored_instance: dg.DagsterInstance,
    tmp_path,
) -> None:
    assert tick(platform, stored_instance).skip_message == "0 captured sessions are waiting"
    write_session(tmp_path)
    run_hook(settings.home, session_end(tmp_path / "s.jsonl"))
    assert len(tick(platform, stored_instance).run_requests) == 1
    at_work = create_run_for_test(
        stored_instance, job_name="captured_sessions_job", status=dg.DagsterRunStatus.STARTED
    )
    message = tick(platform, stored_instance).skip_message
    assert message == f"1 captured sessions are waiting, and run {at_work.run_id[:8]} is started"
    result = captured_sessions_job.execute_in_process(
        instance=stored_instance,
        resources={"platform": platform},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    assert result.success
    with engine.connect() as conn:
        assert conn.execute(sa.text("select session_id from iccm.conversations")).scalars().all() == ["s"]
    assert tick(platform, stored_instance).skip_message == "0 captured sessions are waiting"


def test_a_session_that_cannot_be_imported_fails_the_run_once(
    engine: sa.Engine,
    settings: Settings,
    platform: resources.PlatformResource,
    stored_instance: dg.DagsterInstance,
    tmp_path,
) -> None:
    (tmp_path / "bad.jsonl").write_text("no transcript\n")
    run_hook(settings.home, session_end(tmp_path / "bad.jsonl"))
    for success in (False, True):
        result = captured_sessions_job.execute_in_process(
            instance=stored_instance,
            resources={"platform": platform},
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        assert result.success is success

"""The schedules: one retraining per cause, and a skip that says why with its numbers (T1, P6)."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import sqlalchemy as sa

from iccm_assets.defs import resources
from iccm_assets.defs.automation.schedules import daily_data_schedule, weekly_retrain_schedule
from iccm_assets_tests.factories.platform_rows import NOW, conversation, training_run, version


def evaluate(
    schedule: dg.ScheduleDefinition, platform: resources.PlatformResource
) -> list[dg.RunRequest] | str:
    """The run requests of a tick at `NOW` (a Sunday, 02:00 UTC), or the reason it was skipped."""
    context = dg.build_schedule_context(scheduled_execution_time=NOW, resources={"platform": platform})
    result = schedule.evaluate_tick(context)
    return result.skip_message or list(result.run_requests or [])


def fill(engine: sa.Engine, examples: int) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        for number in range(1, examples + 1):
            conversation(conn, number, user=f"u{number % 20}")


def test_with_too_few_examples_the_week_is_skipped_with_its_number(
    engine: sa.Engine, platform: resources.PlatformResource
) -> None:
    fill(engine, 41)
    message = evaluate(weekly_retrain_schedule, platform)
    assert isinstance(message, str) and "of 50" in message
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.phase4_training_runs")).scalar_one() == 0


def test_with_enough_examples_the_week_gets_exactly_one_retraining(
    engine: sa.Engine, platform: resources.PlatformResource
) -> None:
    fill(engine, 80)
    [request] = evaluate(weekly_retrain_schedule, platform)
    with engine.connect() as conn:
        [row] = conn.execute(sa.text("select id, trigger, status from iccm.phase4_training_runs")).all()
    assert request.tags["iccm/training_run_id"] == str(row.id)
    assert (row.trigger, row.status) == ("weekly", "requested")
    again = evaluate(weekly_retrain_schedule, platform)
    assert isinstance(again, str) and "already has a retraining" in again


def test_what_production_has_learned_does_not_count_again(
    engine: sa.Engine, platform: resources.PlatformResource
) -> None:
    fill(engine, 60)
    with engine.begin() as conn:
        training_run(
            conn, 1, "v1", examples=dict.fromkeys(range(1, 31), "new"), trained_at=NOW - timedelta(days=7)
        )
    assert isinstance(evaluate(weekly_retrain_schedule, platform), str)


def test_the_daily_data_job_takes_yesterday_and_the_days_that_changed(
    engine: sa.Engine, platform: resources.PlatformResource
) -> None:
    with engine.begin() as conn:
        for number, age in enumerate((2, 3, 6, 20), start=1):
            conversation(conn, number, at=NOW - timedelta(days=age), pool=False, filtered=False)
    requests = evaluate(daily_data_schedule, platform)
    ranges = [
        (run.tags["dagster/asset_partition_range_start"], run.tags["dagster/asset_partition_range_end"])
        for run in requests
    ]
    assert ranges == [("2026-02-23", "2026-02-23"), ("2026-02-26", "2026-02-28")]

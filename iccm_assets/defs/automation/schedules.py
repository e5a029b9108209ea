"""Schedules. Each skipped tick logs the reason with its numbers."""

from datetime import UTC, date, timedelta

import dagster as dg

from iccm_assets.defs.automation.jobs import (
    captured_sessions_job,
    daily_data_job,
    live_scoring_job,
    maintenance_job,
    production_quality_job,
    retrain_job,
)
from iccm_assets.defs.automation.tick_transaction import request_run_or_skip, tick_transaction
from iccm_assets.defs.partitions import FIRST_DAY
from iccm_assets.defs.resources import PlatformResource

RUNNING = dg.DefaultScheduleStatus.RUNNING


@dg.schedule(
    job=daily_data_job,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Daily at 01:00 UTC: yesterday, if new, and days of the last week whose inputs changed.",
)
def daily_data_schedule(
    context: dg.ScheduleEvaluationContext, platform: PlatformResource
) -> list[dg.RunRequest] | dg.SkipReason:
    from iccm_assets.curation.checks import is_filtered
    from iccm_assets.curation.filtering import find_changed_days

    yesterday = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    lookback_days = platform.settings.curation.lookback_days
    earliest = max(FIRST_DAY, yesterday - timedelta(days=lookback_days - 1))
    with platform.engine.connect() as conn:
        days = set(find_changed_days(conn, earliest, yesterday))
        if not is_filtered(conn, yesterday):
            days.add(yesterday)
    if not days:
        return dg.SkipReason(f"the last {lookback_days} days are unchanged since they were filtered")
    return [
        dg.RunRequest(
            run_key=f"{yesterday}:{first}:{last}",
            tags={
                "dagster/asset_partition_range_start": first.isoformat(),
                "dagster/asset_partition_range_end": last.isoformat(),
            },
        )
        for first, last in _consecutive_ranges(sorted(days))
    ]


def _consecutive_ranges(days: list[date]) -> list[tuple[date, date]]:
    """Group sorted days into (first, last) ranges of consecutive days."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and day - ranges[-1][1] == timedelta(days=1):
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


@dg.schedule(
    job=production_quality_job,
    cron_schedule="0 */6 * * *",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Every six hours, once there is a production version.",
)
def production_quality_schedule(
    context: dg.ScheduleEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.registry import versions

    with tick_transaction(platform) as conn:
        production = versions.get_production_version(conn)
    if production is None:
        return dg.SkipReason("there is no production version yet")
    scheduled = context.scheduled_execution_time.astimezone(UTC)
    return dg.RunRequest(run_key=f"{scheduled:%Y-%m-%dT%H:%M}", tags={"iccm/version": production.version})


@dg.schedule(
    job=retrain_job,
    cron_schedule="0 2 * * 0",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Sunday 02:00 UTC, when there are enough selectable new examples.",
)
def weekly_retrain_schedule(
    context: dg.ScheduleEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.retraining import trigger_evaluation

    scheduled = context.scheduled_execution_time.astimezone(UTC)
    with tick_transaction(platform) as conn:
        return request_run_or_skip(
            conn, platform, trigger_evaluation.evaluate_weekly_trigger(conn, scheduled, platform.settings)
        )


@dg.schedule(
    job=live_scoring_job,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Every five minutes, when there are responses to score and no run scores them already.",
)
def live_scoring_schedule(
    context: dg.ScheduleEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.scoring.scoring_queue import count_rows, unscored_live_responses

    pending = count_rows(platform.engine, unscored_live_responses())
    if not pending:
        return dg.SkipReason("0 responses with tests are waiting for a score")
    if unfinished := _describe_unfinished_run(context, live_scoring_job.name):
        return dg.SkipReason(f"{pending} responses are waiting, and {unfinished}")
    return dg.RunRequest(run_key=None)


def _describe_unfinished_run(context: dg.ScheduleEvaluationContext, job: str) -> str:
    """Name a run of the job that is not finished, with its status; empty without one."""
    from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

    unfinished = dg.RunsFilter(job_name=job, statuses=NOT_FINISHED_STATUSES)
    runs = context.instance.get_runs(unfinished, limit=1)
    return f"run {runs[0].run_id[:8]} is {runs[0].status.value.lower()}" if runs else ""


@dg.schedule(
    job=captured_sessions_job,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Every five minutes, when the hook of a coding agent has captured sessions on this machine.",
)
def captured_sessions_schedule(
    context: dg.ScheduleEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.capture.claude_code.session_spool import list_captured_sessions

    waiting = len(list_captured_sessions(platform.settings.home))
    if not waiting:
        return dg.SkipReason("0 captured sessions are waiting")
    if unfinished := _describe_unfinished_run(context, captured_sessions_job.name):
        return dg.SkipReason(f"{waiting} captured sessions are waiting, and {unfinished}")
    return dg.RunRequest(run_key=None)


@dg.schedule(
    job=maintenance_job,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=RUNNING,
    description="Daily at 04:00 UTC.",
)
def maintenance_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}")

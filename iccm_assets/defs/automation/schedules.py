"""When the platform acts by itself; every skip says why, with its numbers."""

from datetime import UTC, date, timedelta

import dagster as dg

from iccm_assets.defs.automation.jobs import daily_data_job, production_quality_job, retrain_job
from iccm_assets.defs.automation.ticks import started, tick
from iccm_assets.defs.resources import Platform


@dg.schedule(
    job=daily_data_job,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday, and the days of the last week whose inputs changed since (P6).",
)
def daily_data_schedule(context: dg.ScheduleEvaluationContext, platform: Platform):
    from iccm_assets.curation.filtering import changed_days

    yesterday = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    earliest = yesterday - timedelta(days=platform.settings.curation.late_days - 1)
    with platform.engine.connect() as conn:
        days = changed_days(conn, earliest, yesterday)
    ranges = _ranges(sorted({*days, yesterday}))
    return [_run_of(yesterday, first, last) for first, last in ranges]


@dg.schedule(
    job=production_quality_job,
    cron_schedule="0 */6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every six hours, once there is a production version (T8).",
)
def production_quality_schedule(context: dg.ScheduleEvaluationContext, platform: Platform):
    from iccm_assets.learning import versions

    with tick(platform) as conn:
        serving = versions.production(conn)
    if serving is None:
        return dg.SkipReason("there is no production version yet")
    at = context.scheduled_execution_time.astimezone(UTC)
    return dg.RunRequest(run_key=f"{at:%Y-%m-%dT%H:%M}", tags={"iccm/version": serving.version})


@dg.schedule(
    job=retrain_job,
    cron_schedule="0 2 * * 0",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Sunday 02:00 UTC, when there are enough selectable new examples (T1).",
)
def weekly_retrain_schedule(context: dg.ScheduleEvaluationContext, platform: Platform):
    from iccm_assets.learning import causes

    at = context.scheduled_execution_time.astimezone(UTC)
    with tick(platform) as conn:
        return started(conn, platform, causes.weekly(conn, at, platform.settings))


def _ranges(days: list[date]) -> list[tuple[date, date]]:
    """Sorted days as runs of consecutive ones."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and day - ranges[-1][1] == timedelta(days=1):
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


def _run_of(yesterday: date, first: date, last: date) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{yesterday}:{first}:{last}",
        tags={
            "dagster/asset_partition_range_start": first.isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
        },
    )

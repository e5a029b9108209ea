"""Daily maintenance: what nobody needs any more goes, and the run says what went and why (V3)."""

import dagster as dg

from iccm_assets.defs.resources import Platform


@dg.op(tags={"kind": "python"}, out=dg.Out(dg.Nothing))
def remove_what_is_past_its_time(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Checkpoints, training sets and old rows that no rule keeps."""
    from iccm_assets.governance.housekeeping import tidy

    report = tidy(platform.engine, platform.settings)
    for fate in report.removed:
        context.log.info(f"{fate.kind} {fate.name[:12]} removed: {fate.reason}")
    lines = ["| | | | why |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {fate.kind} | {fate.name[:12]} | {'removed' if fate.goes else 'kept'} | {fate.reason} |"
        for fate in report.fates
    ]
    context.add_output_metadata(
        {
            "removed": len(report.removed),
            "kept": len(report.fates) - len(report.removed),
            "freed_bytes": report.freed_bytes,
            **{f"old_{table}": count for table, count in report.rows.items()},
            "abandoned_staging": len(report.staging),
            "fates": dg.MetadataValue.md("\n".join(lines)),
        }
    )


@dg.job(
    description="Remove checkpoints, training sets and rows past their time; never what serves or is needed.",
    tags={"dagster/max_runtime": "7200"},
)
def maintenance_job():
    remove_what_is_past_its_time()


@dg.schedule(
    job=maintenance_job,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Daily at 04:00 UTC (V3).",
)
def maintenance_schedule(context: dg.ScheduleEvaluationContext):
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}")

"""Scoring of live traffic: an unpartitioned job, since the daily assets complete a day at 01:00 (U2, R11)."""

import dagster as dg

from iccm_assets.defs.resources import Platform


@dg.op(tags={"kind": "python"}, out=dg.Out(dg.Nothing))
def score_live_answers(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Score the gateway's answers that came with tests and have no score yet, evidence first."""
    from iccm_assets.judging.live import count_live, score_live

    total, done = count_live(platform.engine), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        context.log.info(f"scored {done} of {max(done, total)} answers")

    report = score_live(
        platform.engine,
        platform.orchestra,
        platform.settings,
        seconds=platform.settings.scoring.pass_seconds,
        progress=progress,
    )
    context.log.info(report.sentence())
    for arm in report.arms:
        context.log.info(arm.sentence())
    if report.arms:
        # Numbers of observations become plots over time on the asset's page (A3).
        context.log_event(dg.AssetObservation("deployed_model_version", metadata=_plotted(report.arms)))
    context.add_output_metadata(
        {
            "scored": report.scored.scored,
            "inconclusive": report.scored.inconclusive,
            "bad_suites": report.scored.bad_suites,
            "members_missing": report.scored.answers["missing"],
            "left": report.left,
            "seconds": report.seconds,
            "arms": dg.MetadataValue.md(report.table()),
        }
    )


def _plotted(arms) -> dict:
    """Both arms' figures as numbers with names that stay the same from version to version."""
    found: dict = {}
    for one in sorted(arms, key=lambda arm: arm.requests):  # of two versions the one that served more
        figures = one.row()
        found[f"{one.arm} version"] = figures.pop("version")
        figures.pop("arm")
        found |= {f"{one.arm} {name}": value for name, value in figures.items() if value is not None}
    return found


@dg.job(
    description="Score new live answers that came with tests, so that a rollout sees both arms' quality.",
    # A killed run is not noticed before: until then the schedule believes it is still at it.
    tags={"dagster/max_runtime": "900"},
)
def live_scoring_job():
    score_live_answers()


@dg.schedule(
    job=live_scoring_job,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every five minutes, when there is something to score and no run is at it.",
)
def live_scoring_schedule(context: dg.ScheduleEvaluationContext, platform: Platform):
    from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

    from iccm_assets.judging.live import count_live

    waiting = count_live(platform.engine)
    if not waiting:
        return dg.SkipReason("0 answers with tests wait for a score")
    unfinished = dg.RunsFilter(job_name=live_scoring_job.name, statuses=NOT_FINISHED_STATUSES)
    at_work = context.instance.get_runs(unfinished, limit=1)
    if at_work:
        status = at_work[0].status.value.lower()
        return dg.SkipReason(f"{waiting} answers wait, and run {at_work[0].run_id[:8]} is {status} already")
    return dg.RunRequest(run_key=None)


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(jobs=[live_scoring_job], schedules=[live_scoring_schedule])

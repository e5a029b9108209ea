"""`iccm demo`: the whole loop on simulated traffic, from HTTP requests to promotion and rollback."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine, text

from iccm_assets.cli import simulate
from iccm_assets.cli.console import AsJson, echo_json, err, out, print_headline
from iccm_assets.cli.context import ensure_production_version
from iccm_assets.cli.run_job import JobResult, report_to_dagster, run_job
from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.db.clock import now
from iccm_assets.db.database import connect
from iccm_assets.db.embedded.owned_server import owned_server
from iccm_assets.demo import weekly_cycle
from iccm_assets.demo.background_work import BackgroundWork, WorkAhead
from iccm_assets.demo.weekly_cycle import WeekResult
from iccm_assets.errors import IccmError, UsageError
from iccm_assets.gateway.subprocess_gateway import get_token, run_gateway
from iccm_assets.registry import hub
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import PACKAGED_MODEL, Settings, get_settings

if TYPE_CHECKING:
    from iccm_assets.demo.rollout_report import RolloutReport
    from iccm_assets.simulation.developers.drift import Drift
    from iccm_assets.simulation.developers.traffic_summary import PendingSession

DAY = timedelta(days=1)
# Time on the platform's clock that a rollout and a rollback take at most; a demo never ends in the future.
ROLLOUT_TIME = timedelta(hours=3)
# A rejected candidate or a skipped run is a result; any other unsuccessful retrain is an error.
_RESULT_STATUSES = ("gate_failed", "inconclusive", "skipped")


def demo(
    weeks: Annotated[int, typer.Option(min=1, max=12, help="Number of weekly cycles.")] = 1,
    conversations: Annotated[
        int, typer.Option(min=1, max=20000, help="Simulated conversations a week.")
    ] = 200,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days of one cycle, ending yesterday.")] = 7,
    drift: Annotated[
        str,
        typer.Option(
            help="As for `iccm simulate`, over all weeks; default for several: domains appear one by one."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 2,
    rollout: Annotated[
        bool | None,
        typer.Option(
            help="Roll out the candidate under live traffic, then roll back a degraded one; without, a"
            " candidate that passes is promoted immediately. Default: yes for one week, local profile."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on an empty database: converse, score, filter, deduplicate, retrain, gate, roll out.

    Simulated developers use a gateway over HTTP all the time. After the retrain the candidate is rolled out
    to 10 %, 50 % and 100 % of their traffic, and a degraded, forced candidate is rolled back automatically;
    the demo fails unless all acceptance checks pass.

    With --weeks, it repeats the week under drifting traffic, each with the model that the week before left in
    production; it fails unless the last version is significantly better than the base, without forgetting.
    The database and the models of this ICCM_HOME are deleted first, unless they hold conversations that were
    not simulated: then nothing is changed.
    """
    settings = get_settings()
    with_rollout = (weeks == 1 and settings.profile == "local") if rollout is None else rollout
    if with_rollout and weeks > 1:
        raise UsageError("a demo of several weeks promotes immediately", hint="Leave out --rollout.")
    if weeks > 1 and days != weekly_cycle.WEEK.days:
        raise UsageError(f"a demo of {weeks} weeks has weeks of 7 days, not {days}", hint="Leave out --days.")
    mix = _parse_drift(drift, weeks, days)
    if settings.base_model != str(PACKAGED_MODEL):
        err.print(f"[dim]base model: {settings.base_model}[/]")
    validate_inputs(settings)
    with owned_server(settings):
        _run(settings, weeks, conversations, days, mix, seed, with_rollout, as_json)


def _run(
    settings: Settings,
    weeks: int,
    conversations: int,
    days: int,
    mix: Drift,
    seed: int,
    with_rollout: bool,
    as_json: bool,
) -> None:
    from iccm_assets.demo import rollout_scenario
    from iccm_assets.demo.reset import reset_platform
    from iccm_assets.simulation.developers.developers import plan_conversations

    started = time.monotonic()
    print_headline("Empty database, base model in production")
    reset_platform(settings)
    engine = connect(settings)
    with engine.connect() as conn:
        end = weekly_cycle.last_trigger_time(now(conn) - (ROLLOUT_TIME if with_rollout else timedelta()))
    total, n_days = weeks * conversations, weeks * days
    err.print(f"[dim]planning {total} sessions with simulated developers over {n_days} days[/]")
    plan = plan_conversations(seed, n=total, days=n_days, end=end.date() - DAY, drift=mix)
    results: list[WeekResult] = []
    pending: list[PendingSession] = []
    retrain: JobResult | None = None
    rollouts: RolloutReport | None = None
    token = get_token(settings)
    with weekly_cycle.reset_clock_afterwards(engine), ExitStack() as stack:
        # The base model serves from the first day on, on the clock of everything that follows.
        weekly_cycle.set_platform_clock(engine, end - n_days * DAY - DAY)
        embedding = WorkAhead(
            "embeddings of the canary set",
            lambda check: weekly_cycle.embed_canary_set(engine, settings, check),
        )
        stack.callback(embedding.stop)
        ensure_production_version(settings)
        url = stack.enter_context(run_gateway(settings))
        for number in range(1, weeks + 1):
            week_end = end - (weeks - number) * weekly_cycle.WEEK
            last_day = week_end.date() - DAY
            first_day = last_day - (days - 1) * DAY
            start, stop = simulate.end_of_day(first_day - DAY), simulate.end_of_day(last_day)
            sessions = [session for session in plan if start <= session.asked_at < stop]
            title = f"{first_day:%b %d} to {last_day:%b %d}, {len(sessions)} conversations"
            print_headline(f"Week {number} of {weeks}: {title}" if weeks > 1 else title)
            week, retrain, pending = weekly_cycle.run_week(
                engine,
                settings,
                url,
                token,
                number,
                week_end,
                days,
                sessions,
                pending,
                manual=weeks == 1,
                rollout=with_rollout,
            )
            results.append(week)
            if retrain and not retrain.success and week.outcome not in _RESULT_STATUSES:
                raise IccmError(
                    f"the retrain of week {number} failed: {retrain.error}",
                    hint=f"See the log of Dagster run {retrain.run_id}.",
                )
        # A rollback leaves most of the machine idle: it needs so many sessions an hour of the clock. The
        # measurement asks the gateway, which this block ends.
        quality = BackgroundWork("production quality", lambda: _measure_quality(Console(quiet=True)))
        if with_rollout and results[0].is_measured:
            rollouts = rollout_scenario.run_scenario(
                engine, settings, url, token, seed, results[0], before_rollback=quality.start
            )
            quality.finish()
    if rollouts is None:
        print_headline("Production quality")
        _measure_quality(err)
    report_to_dagster(settings, engine)
    _report(engine, settings, results, retrain, rollouts, time.monotonic() - started, as_json)


def _measure_quality(console: Console) -> None:
    """Measure the quality of the version in production."""
    result = run_job("production_quality_job", title="production quality", console=console)
    if not result.success:
        error = escape(f"{result.error}; see the log of Dagster run {result.run_id}")
        err.print(f"[yellow]production quality was not measured: {error}[/]", highlight=False)


def _report(
    engine: Engine,
    settings: Settings,
    weeks: list[WeekResult],
    retrain: JobResult | None,
    rollouts: RolloutReport | None,
    seconds: float,
    as_json: bool,
) -> None:
    print_headline("Report")
    if not any(week.is_measured for week in weeks):
        _report_nothing_measured(engine, weeks, as_json)
    summary = _summarize(weeks, rollouts, seconds)
    if len(weeks) == 1 and weeks[0].run and retrain and not as_json:
        _print_week(engine, settings, weeks[0].run.id, retrain, rollouts, summary)
    else:
        _print_weeks(engine, settings, weeks, rollouts, summary, seconds, as_json)
    if rollouts is not None:
        _raise_on_failure(rollouts)


def _print_week(
    engine: Engine,
    settings: Settings,
    training_run_id: int,
    retrain: JobResult,
    rollouts: RolloutReport | None,
    summary: str,
) -> None:
    """Print the retrain of a demo of one week, and its rollouts."""
    from iccm_assets.demo import demo_report, rollout_report

    demo_report.print_retrain(engine, training_run_id, retrain, settings.evaluation, out)
    if rollouts is not None:
        rollout_report.print_rollout_report(rollouts, out)
    demo_report.print_locations(settings, summary, out)


def _print_weeks(
    engine: Engine,
    settings: Settings,
    weeks: list[WeekResult],
    rollouts: RolloutReport | None,
    summary: str,
    seconds: float,
    as_json: bool,
) -> None:
    """Compare the last version with the base; raise unless several weeks have improved it."""
    from iccm_assets.demo import demo_report, weeks_report

    comparison = weeks_report.compare_with_base(engine, settings, _base_version(engine))
    if as_json:
        report = weeks_report.to_json(weeks, comparison) | (rollouts.to_json() if rollouts else {})
        echo_json(report | {"summary": summary, "seconds": round(seconds, 1)})
    else:
        weeks_report.print_report(weeks, comparison, out)
        demo_report.print_locations(settings, summary, out)
    if len(weeks) > 1 and not comparison.is_improvement:
        raise IccmError(
            f"{comparison.last} is not proven better than {comparison.base} without forgetting:"
            f" {comparison.reason}",
            hint="See `iccm status` and the Dagster runs; another --seed gives other weeks.",
        )


def _raise_on_failure(rollouts: RolloutReport) -> None:
    """Raise the error that ended the rollouts, or the acceptance checks that failed."""
    if rollouts.error is not None:
        raise rollouts.error
    if rollouts.failures:
        raise IccmError(
            f"{len(rollouts.failures)} of {len(rollouts.checks)} acceptance checks failed:"
            f" {'; '.join(rollouts.failures)}",
            hint="See `iccm rollout show` and the alerts; another --seed gives another week.",
        )


def _report_nothing_measured(engine: Engine, weeks: list[WeekResult], as_json: bool) -> NoReturn:
    """Print how far the conversations came; raise the cause why no candidate was evaluated."""
    from iccm_assets.demo import demo_report

    with engine.connect() as conn:
        cause = demo_report.find_missing_cause(conn)
        if not as_json:
            demo_report.print_funnel(conn, weeks[-1].run, out)
    last = weeks[-1]
    trigger = last.trigger if last.run is None else last.run.notes or last.run.error or last.trigger
    raise IccmError(
        f"no candidate was evaluated ({last.outcome}): {cause or trigger}",
        hint="`iccm orchestra check` tests each reconstructor."
        if cause
        else "More --conversations or --days give more examples.",
    )


def _summarize(weeks: list[WeekResult], rollouts: RolloutReport | None, seconds: float) -> str:
    """Summarize the demo in one sentence."""
    last = weeks[-1]
    parts = [f"quality gate {last.outcome.removeprefix('gate_')}", f"{last.production} in production"]
    if rollouts is not None:
        passed = sum(check.ok is True for check in rollouts.checks)
        parts = [f"{passed} of {len(rollouts.checks)} acceptance checks passed"]
        if record := rollouts.rollout:
            parts.append(f"{record.candidate} {record.state}")
        if record := rollouts.rollback:
            parts.append(
                f"degraded {record.candidate} {record.state.replace('_', ' ')}"
                f" after {record.sessions} sessions"
            )
    return f"{'; '.join(parts)}; the demo took {seconds:.0f} s."


def _base_version(engine: Engine) -> str:
    """The first version of the database."""
    statement = "select version from iccm.model_versions where parent_version is null order by created_at"
    with engine.connect() as conn:
        return str(conn.execute(text(f"{statement} limit 1")).scalar_one())


def _parse_drift(drift: str, weeks: int, days: int) -> Drift:
    from iccm_assets.simulation.developers.drift import make_weekly_drift, parse_drift
    from iccm_assets.simulation.language.families import NEW_FAMILIES

    return parse_drift(drift, NEW_FAMILIES, weeks * days) if drift else make_weekly_drift(NEW_FAMILIES, weeks)


def validate_inputs(settings: Settings) -> None:
    """Load everything the demo needs before anything is deleted; raises the first error."""
    from iccm_assets.training.dataset import load_rehearsal

    load_canary_set(settings.canary_set)
    load_rehearsal(settings.rehearsal)
    load_orchestra_from_settings(settings)
    hub.check_loadable(hub.resolve(settings.base_model))

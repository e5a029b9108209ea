"""`iccm demo`: the whole loop on the reference world, from HTTP traffic to promotion and rollback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli import cycle, demo_report, rollout_report, simulate
from iccm_assets.cli.console import AsJson, echo_json, err, out
from iccm_assets.cli.cycle import Week
from iccm_assets.cli.fresh import start_fresh
from iccm_assets.cli.launch import Launched
from iccm_assets.cli.own_gateway import own_gateway, token_of
from iccm_assets.cli.rollout_report import Told
from iccm_assets.errors import IccmError, InputError
from iccm_assets.settings import REFERENCE_MODEL, Settings, get_settings
from iccm_assets.store.database import close_engines

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.reference.drift import Drift
    from iccm_assets.reference.traffic import Pending

DAY = timedelta(days=1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    weeks: Annotated[int, typer.Option(min=1, max=12, help="Weekly cycles, one after the other.")] = 1,
    conversations: Annotated[
        int, typer.Option(min=1, max=20000, help="Simulated conversations a week.")
    ] = 200,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days of one cycle, ending yesterday.")] = 7,
    drift: Annotated[
        str,
        typer.Option(help="As of `iccm simulate`, over all weeks [several weeks: new domains one by one]."),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated world.")] = 1,
    rollout: Annotated[
        bool | None,
        typer.Option(
            help="Roll the candidate out under live traffic, then take a degraded one back"
            " [yes, for one week under the local profile]; else a candidate that passes is promoted at once."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on a fresh database: converse, score, filter, deduplicate, retrain, gate, roll out.

    Developers use a gateway over HTTP all along. After the retrain the candidate goes through 10 %, 50 % and
    100 % of their traffic, and a degraded one, forced in, is taken back by itself; the demo fails when any of
    that is not as the acceptance story says.

    With --weeks, that many weeks in a row under drifting traffic, each with the model the one before left in
    production; it fails unless the last version is better than the base with evidence and no slice was lost.
    The database and the models of this ICCM_HOME are made anew, unless they hold conversations that were
    not simulated: then nothing is touched.
    """
    settings = get_settings()
    rolls = (weeks == 1 and settings.profile == "local") if rollout is None else rollout
    if rolls and weeks > 1:
        raise InputError("a demo of several weeks promotes at once", hint="Leave out --rollout.")
    if weeks > 1 and days != cycle.WEEK.days:
        raise InputError(f"a demo of {weeks} weeks has weeks of 7 days, not {days}", hint="Leave out --days.")
    mix = _drift(drift, weeks, days)
    if settings.base_model != str(REFERENCE_MODEL):
        err.print(f"[dim]base model: {settings.base_model}[/]")
    check_inputs(settings)
    with server_of_the_demo(settings):
        _run(settings, weeks, conversations, days, mix, seed, rolls, as_json)


def _run(
    settings: Settings,
    weeks: int,
    conversations: int,
    days: int,
    mix: Drift,
    seed: int,
    rolls: bool,
    as_json: bool,
) -> None:
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.reference.developers import plan_conversations
    from iccm_assets.rollout.bootstrap import ensure_production
    from iccm_assets.store.clock import now
    from iccm_assets.store.database import connect

    started = time.monotonic()
    _headline("A fresh database, and the base model in production")
    start_fresh(settings)
    engine = connect(settings)
    ensure_production(engine, ModelStore(settings.home), settings)
    with engine.connect() as conn:
        end = cycle.last_moment(now(conn))
    total = weeks * days
    err.print(
        f"[dim]planning {weeks * conversations} sessions with simulated developers over {total} days[/]"
    )
    plan = plan_conversations(
        seed, n=weeks * conversations, days=total, end=end.date() - timedelta(days=1), drift=mix
    )
    lived: list[Week] = []
    pending: list[Pending] = []
    retrain: Launched | None = None
    told: Told | None = None
    token = token_of(settings)
    with cycle.platform_clock(engine), own_gateway(settings) as url:
        hold = cycle.Gateway(url, token)
        for number in range(1, weeks + 1):
            moment = end - (weeks - number) * cycle.WEEK
            since = simulate.end_of(moment.date() - timedelta(days=days + 1))
            sessions = [one for one in plan if since <= one.asked_at < simulate.end_of(moment.date() - DAY)]
            _headline(_title(number, weeks, since.date(), moment.date() - DAY, len(sessions)))
            week, retrain, pending = cycle.live(
                engine,
                settings,
                hold,
                number,
                moment,
                days,
                sessions,
                pending,
                by_hand=weeks == 1,
                rollout=rolls,
            )
            lived.append(week)
            _stop_if_broken(week, retrain)
        if rolls:
            told = _roll_out(engine, settings, url, token, seed, lived[0])
    _report(engine, settings, lived, retrain, told, time.monotonic() - started, as_json)


def _roll_out(engine: sa.Engine, settings: Settings, url: str, token: str, seed: int, week: Week) -> Told:
    """The rollout of what the week has learned, then the rollback of something worse."""
    from iccm_assets.cli import rollout_facts, rollout_story
    from iccm_assets.reference.visitors import code_base

    modules = code_base(seed, week.last + DAY)
    at = rollout_story.Stage(engine, settings, url, token, modules, seed)
    seconds, replies = dict(week.seconds), {}
    run = week.run
    checks = rollout_facts.check_learning(run.status if run else None, run.improvement if run else None)
    rollout_id, carried = rollout_story.live_rollout(engine), None
    if rollout_id is not None:
        _headline("Rollout: 10 %, 50 %, 100 % of the traffic")
        with cycle.timed(seconds, "rollout"):
            carried, replies["rollout"] = rollout_story.carry(at, rollout_id)
        checks += rollout_facts.check_rollout(carried)
    elif run is not None and run.status == "gate_passed":
        checks.append(rollout_facts.Check("a rollout of the candidate", False, "none is live"))
    _headline("A degraded candidate, forced in")
    serving = cycle.serving(engine)
    with cycle.timed(seconds, "rollback"):
        back, replies["rollback"] = rollout_story.take_back(at)
    checks += rollout_facts.check_rollback(back, serving)
    checks.append(rollout_facts.check_replies([*(replies.values())]))
    return Told(carried, back, tuple(checks), replies, seconds)


def _report(
    engine: sa.Engine,
    settings: Settings,
    lived: list[Week],
    retrain: Launched | None,
    told: Told | None,
    seconds: float,
    as_json: bool,
) -> None:
    from iccm_assets.cli import story

    _headline("Report")
    if len(lived) == 1 and lived[0].run and retrain and not as_json:
        demo_report.show_learning(engine, lived[0].run.id, retrain, out)
        if told is not None:
            rollout_report.show(told, out)
        demo_report.show_places(settings, seconds, out)
    else:
        compared = story.tell(engine, settings, _base(engine))
        if as_json:
            second = {} if told is None else told.to_json()
            echo_json({**story.as_json(lived, compared), **second, "seconds": round(seconds, 1)})
        else:
            story.show(lived, compared, out)
            demo_report.show_places(settings, seconds, out)
        if len(lived) > 1 and not compared.holds:
            raise IccmError(
                f"{compared.last} is not proven better than {compared.base} with no slice lost:"
                f" {compared.reason}",
                hint="`iccm status` and the Dagster runs tell each week; another --seed brings other weeks.",
            )
    if told is not None and told.failures:
        raise IccmError(
            f"{len(told.failures)} of {len(told.checks)} checks of the story failed:"
            f" {'; '.join(told.failures)}",
            hint="`iccm rollout show` and the alerts tell more; another --seed brings another week.",
        )


def _stop_if_broken(week: Week, retrain: Launched | None) -> None:
    """A refused candidate is an answer; a retrain that broke is none."""
    if retrain and not retrain.success and not (week.run and cycle.refused(week.run)):
        raise IccmError(
            f"the retrain of week {week.number} failed: {retrain.error}",
            hint=f"Dagster run {retrain.run_id} has its log.",
        )


def _base(engine: sa.Engine) -> str:
    """The version the database began with."""
    import sqlalchemy as sa

    with engine.connect() as conn:
        statement = "select version from iccm.model_versions where parent_version is null order by created_at"
        return str(conn.execute(sa.text(f"{statement} limit 1")).scalar_one())


def _drift(text: str, weeks: int, days: int) -> Drift:
    from iccm_assets.reference.drift import parse_drift, week_by_week
    from iccm_assets.reference.world import NEW_FAMILIES

    return parse_drift(text, NEW_FAMILIES, weeks * days) if text else week_by_week(NEW_FAMILIES, weeks)


def _title(number: int, weeks: int, first: date, last: date, sessions: int) -> str:
    span = f"{first:%b %d} to {last:%b %d}, {sessions} conversations"
    return f"Week {number} of {weeks}: {span}" if weeks > 1 else f"{span} with simulated developers"


@contextmanager
def server_of_the_demo(settings: Settings) -> Iterator[None]:
    """An embedded server that the demo started ends with it, unless somebody else uses it by then (S2)."""
    from iccm_assets.store.embedded import EmbeddedServer

    server = EmbeddedServer(settings.home)
    ours = settings.database_url is None and server.running() is None
    try:
        yield
    finally:
        if ours:
            close_engines()
            server.stop_unless_used()


def check_inputs(settings: Settings) -> None:
    """Read everything the demo will need before anything is deleted; raises what is wrong with it."""
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.judging.orchestra import orchestra_of
    from iccm_assets.learning.dataset import load_rehearsal
    from iccm_assets.models.resolve import check_loadable, resolve

    load_canary_set(settings.canary_set)
    load_rehearsal(settings.rehearsal)
    orchestra_of(settings)
    check_loadable(resolve(settings.base_model))


def _headline(title: str) -> None:
    err.rule(f"[bold]{title}", align="left")

"""One week of the platform's life, with no hand on it: traffic, data, trigger, retrain, and what came of it.

A demo of several weeks is this, several times, on the platform's clock (S4): the last week ends with the last
whole day, and each ends at 02:00 UTC of the day after, when the weekly trigger looks (T1).
"""

from __future__ import annotations

import time as clock_time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from iccm_assets.cli import simulate
from iccm_assets.cli.console import err
from iccm_assets.cli.launch import Launched, run_days, run_retrain
from iccm_assets.errors import IccmError
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from iccm_assets.learning.training_runs import TrainingRun
    from iccm_assets.learning.triggers import Fire, Skip
    from iccm_assets.reference.developers import PlannedSession
    from iccm_assets.reference.traffic import Pending, Traffic
    from iccm_assets.reference.wire import Wire

LOOKS_AT = time(2, tzinfo=UTC)
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Funnel:
    """A week's conversations, from captured to the pool, and what CET-D's own answers scored."""

    captured: int
    scored: int
    filtered: int
    pool: int
    first_answers: float | None


@dataclass(frozen=True)
class Week:
    """One cycle. ``run`` is None when the trigger did not fire, and ``trigger`` says why.

    ``late`` sessions of an earlier week were heard of in this one; ``learned_from`` counts the training set
    by role and origin; ``pass_rate`` is that of the version in production at the end, on the canary set.
    """

    number: int
    first: date
    last: date
    traffic: Traffic
    late: int
    trigger: str
    run: TrainingRun | None
    funnel: Funnel
    learned_from: dict[str, int]
    production: str
    pass_rate: float | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """What became of the retrain, in one word."""
        return self.run.status if self.run else "no retrain"


def last_moment(now: datetime) -> datetime:
    """The newest 02:00 UTC that is over: the end of a demo's last week."""
    today = datetime.combine(now.date(), LOOKS_AT)
    return today if today <= now else today - timedelta(days=1)


@contextmanager
def platform_clock(engine: sa.Engine) -> Iterator[None]:
    """Whatever the block makes of the platform's clock, it is the server's again afterwards."""
    from iccm_assets.store.clock import reset_clock

    try:
        yield
    finally:
        with engine.begin() as conn:
            reset_clock(conn)


@dataclass(frozen=True)
class Gateway:
    """The gateway the developers use."""

    url: str
    token: str


def live(
    engine: sa.Engine,
    settings: Settings,
    gateway: Gateway,
    number: int,
    moment: datetime,
    days: int,
    sessions: Sequence[PlannedSession],
    pending: Sequence[Pending],
    *,
    by_hand: bool,
    rollout: bool,
) -> tuple[Week, Launched | None, list[Pending]]:
    """Live one cycle that ends at ``moment``; ``by_hand`` asks for the retrain where the trigger would wait.

    A candidate that passes its gate has a ``rollout`` before it, or is promoted at once.

    Returns what happened, the retrain's Dagster run, and the sessions still to be heard of. Raises
    ``IccmError`` when something broke; a refused candidate is an outcome.
    """
    last = moment.date() - timedelta(days=1)
    first = last - timedelta(days=days - 1)
    _set_clock(engine, moment)
    seconds: dict[str, float] = {}
    with timed(seconds, "traffic"):
        still, held, new = _converse(engine, gateway, sessions, pending, moment)
    with timed(seconds, "data"):
        _checked(run_days(_first_changed(engine, first, last), last, title="daily_data_job", console=err))
    with timed(seconds, "retrain"):
        decision, run_id = _ask(engine, settings, by_hand)
        launched = None if run_id is None else run_retrain(run_id, rollout=rollout, console=err)
    return (
        _told(engine, number, first, last, held, len(pending) - len(still), decision, run_id, seconds),
        launched,
        [*still, *new],
    )


def _converse(
    engine: sa.Engine,
    gateway: Gateway,
    sessions: Sequence[PlannedSession],
    pending: Sequence[Pending],
    moment: datetime,
) -> tuple[list[Pending], Traffic, list[Pending]]:
    """The week's sessions over HTTP, and the ends of earlier ones that are heard of by now."""
    from contextlib import closing

    from iccm_assets.reference import http_traffic
    from iccm_assets.reference.wire import Wire

    with closing(Wire(gateway.url, gateway.token)) as wire:
        await_clock(wire, moment)
        still, late = http_traffic.deliver(wire, pending, by=moment)
    simulate.check_replies(late)
    held, new, replies = simulate.over_http(gateway.url, gateway.token, sessions, by=moment)
    simulate.show(held)
    simulate.show_replies(replies)
    simulate.check_replies(replies)
    _await_answers(engine, [one.session_id for one in sessions])
    return still, held, new


def await_clock(wire: Wire, moment: datetime, seconds: float = 60.0) -> None:
    """Until the gateway knows that it is ``moment``, which it looks up every second or so: to a gateway that
    lives in the week before, this week's sessions lie in the future and would all be stored as of now."""
    deadline = clock_time.monotonic() + seconds
    while (told := datetime.fromisoformat(wire.get("/v1/routing")["now"])) < moment:
        if clock_time.monotonic() > deadline:
            raise IccmError(f"the gateway's clock says {told:%Y-%m-%d %H:%M} and not {moment:%Y-%m-%d %H:%M}")
        clock_time.sleep(0.1)


def _await_answers(engine: sa.Engine, sessions: Sequence[str], seconds: float = 60.0) -> None:
    """Until the gateway's spool has brought the answers of these sessions (G5: within about a second)."""
    query = sa.text(
        "select count(distinct session_id) from iccm.requirements"
        " where kind = 'model' and session_id = any(:sessions)"
    )
    deadline = clock_time.monotonic() + seconds
    while True:
        with engine.connect() as conn:
            stored = conn.execute(query, {"sessions": list(sessions)}).scalar_one()
        if stored == len(sessions):
            return
        if clock_time.monotonic() > deadline:
            raise IccmError(
                f"{len(sessions) - stored} answers of the gateway were not stored in {seconds:g} s"
            )
        clock_time.sleep(0.1)


def refused(run: TrainingRun) -> bool:
    """Whether the retrain ended in an answer other than ``pass``: the platform working as it should."""
    return run.status in ("gate_failed", "inconclusive", "skipped")


def serving(engine: sa.Engine) -> str:
    """The version in production."""
    from iccm_assets.learning import versions

    with engine.connect() as conn:
        return versions.get(conn, "production").version


def _set_clock(engine: sa.Engine, moment: datetime) -> None:
    from iccm_assets.store.clock import now, set_clock

    with engine.begin() as conn:
        set_clock(conn, shift=moment - now(conn))


def _first_changed(engine: sa.Engine, first: date, last: date) -> date:
    """The first day to materialize: of this week, or an earlier one that late conversations changed (P6)."""
    from iccm_assets.curation.filtering import changed_days

    with engine.connect() as conn:
        return min([first, *changed_days(conn, first - WEEK, last)])


def _ask(engine: sa.Engine, settings: Settings, by_hand: bool) -> tuple[Fire | Skip, int | None]:
    """The weekly trigger's decision (T1) and the run it requested; by hand, a manual one (T4)."""
    from iccm_assets.learning import proposal, training_runs, triggers
    from iccm_assets.store.clock import now

    with engine.begin() as conn:
        at = now(conn)
        decision: Fire | Skip = triggers.manual("demo", "the demo's retrain")
        if not by_hand:
            selection = proposal.propose(conn, at, settings.selection)
            decision = triggers.weekly(at, selection.selectable, settings.triggers)
        if isinstance(decision, triggers.Skip):
            return decision, None
        row = training_runs.request(conn, decision, dispatched=True)
    if row is None:
        raise IccmError(f"{decision.key} has its retraining already")
    return decision, row.id


_FUNNEL = """
select
    (select count(*) from iccm.conversations c where c."timestamp" >= :start and c."timestamp" < :end),
    (select count(*) from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
     where r.kind = 'accepted' and r.test_pass_rate is not null
       and c."timestamp" >= :start and c."timestamp" < :end),
    (select count(*) from iccm.filtered_conversations where day between :first and :last),
    (select count(*) from iccm.phase4_training_data where day between :first and :last),
    (select avg(r.test_pass_rate)
     from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
     where r.kind = 'model' and c."timestamp" >= :start and c."timestamp" < :end)
"""


def _told(
    engine: sa.Engine,
    number: int,
    first: date,
    last: date,
    held: Traffic,
    late: int,
    decision: Fire | Skip,
    run_id: int | None,
    seconds: dict[str, float],
) -> Week:
    from iccm_assets.learning import training_runs, versions

    start, end = datetime.combine(first, time(), UTC), simulate.end_of(last)
    with engine.connect() as conn:
        counts = conn.execute(
            sa.text(_FUNNEL), {"first": first, "last": last, "start": start, "end": end}
        ).one()
        run = None if run_id is None else training_runs.get(conn, run_id)
        trained = versions.get(conn, run.candidate_version).metrics if run and run.candidate_version else {}
        now_serving = versions.get(conn, "production")
    return Week(
        number=number,
        first=first,
        last=last,
        traffic=held,
        late=late,
        trigger=decision.reason,
        run=run,
        funnel=Funnel(*counts),
        learned_from=trained.get("training", {}).get("counts", {}),
        production=now_serving.version,
        pass_rate=now_serving.metrics.get("evaluation", {}).get("test_pass_rate"),
        seconds=seconds,
    )


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    started = clock_time.monotonic()
    yield
    seconds[name] = round(clock_time.monotonic() - started, 1)


def _checked(launched: Launched) -> None:
    if not launched.success:
        raise IccmError(f"{launched.error}", hint=f"Dagster run {launched.run_id} has its log.")

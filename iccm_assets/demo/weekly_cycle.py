"""One week of the platform's life without intervention: traffic, data, trigger, retrain, deployment.

A demo of several weeks repeats this on the platform's clock: the last week ends with the last whole day, and
each week ends at 02:00 UTC of the next day, when the weekly trigger is evaluated.
"""

from __future__ import annotations

import time as clock_time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

from iccm_assets.cli import simulate
from iccm_assets.cli.console import err
from iccm_assets.cli.run_job import JobResult, run_daily_data, run_retrain
from iccm_assets.db.clock import now, reset_clock, set_clock
from iccm_assets.demo.background_work import WorkAhead
from iccm_assets.errors import IccmError
from iccm_assets.registry import training_runs, versions
from iccm_assets.registry.training_runs import TrainingRun, TriggerFired
from iccm_assets.retraining import triggers
from iccm_assets.retraining.example_queries import propose_selection
from iccm_assets.retraining.triggers import TriggerSkipped
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from iccm_assets.simulation.developers.developers import PlannedSession
    from iccm_assets.simulation.developers.gateway_client import GatewayClient
    from iccm_assets.simulation.developers.traffic_summary import PendingSession, TrafficSummary

TRIGGER_TIME = time(2, tzinfo=UTC)
WEEK = timedelta(days=7)
# Texts that are embedded and stored at a time ahead of the filter, which embeds what is missing.
EMBEDDED_AHEAD = 96


@dataclass(frozen=True)
class WeekResult:
    """The result of one cycle; ``run`` is None if the trigger did not fire, for the reason in ``trigger``.

    ``funnel`` counts conversations captured, scored, filtered and in the pool, and has the mean test pass
    rate of CET-D's first responses, None without any. ``late_sessions`` of an earlier week ended in this
    one; ``trained_on`` counts the training set by role and origin; ``pass_rate`` on the canary set is that
    of the version in production at the end.
    """

    number: int
    first: date
    last: date
    traffic: TrafficSummary
    late_sessions: int
    trigger: str
    run: TrainingRun | None
    funnel: dict[str, Any]
    trained_on: dict[str, int]
    production: str
    pass_rate: float | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether a candidate was evaluated, whatever its verdict."""
        return self.run is not None and self.run.improvement is not None

    @property
    def outcome(self) -> str:
        """The status of the retrain."""
        return self.run.status if self.run else "no retrain"


def last_trigger_time(now: datetime) -> datetime:
    """Return the last 02:00 UTC before now: the end of a demo's last week."""
    today = datetime.combine(now.date(), TRIGGER_TIME)
    return today if today <= now else today - timedelta(days=1)


@contextmanager
def reset_clock_afterwards(engine: Engine) -> Iterator[None]:
    """Reset the platform's clock to the server's at the end of the block."""
    try:
        yield
    finally:
        with engine.begin() as conn:
            reset_clock(conn)


def run_week(
    engine: Engine,
    settings: Settings,
    url: str,
    token: str,
    number: int,
    week_end: datetime,
    days: int,
    sessions: Sequence[PlannedSession],
    pending: Sequence[PendingSession],
    *,
    manual: bool,
    rollout: bool,
) -> tuple[WeekResult, JobResult | None, list[PendingSession]]:
    """Run one cycle that ends at ``week_end``; ``manual`` requests the retrain where the trigger would wait.

    A candidate that passes its gate is rolled out with ``rollout``, else promoted immediately.

    Returns the week's result, the retrain's Dagster run, and the sessions that end in a later week. Raises
    ``IccmError`` if a step failed; a rejected candidate is a result.
    """
    from iccm_assets.curation.filtering import find_changed_days

    last = week_end.date() - timedelta(days=1)
    first = last - timedelta(days=days - 1)
    set_platform_clock(engine, week_end)
    seconds: dict[str, float] = {}
    with measure_seconds(seconds, "traffic"):
        still_pending, traffic, new_pending = _converse(engine, url, token, sessions, pending, week_end)
    with measure_seconds(seconds, "data"):
        with engine.connect() as conn:  # late conversations may have changed days of an earlier week
            start = min([first, *find_changed_days(conn, first - WEEK, last)])
        materialized = run_daily_data(start, last, title="daily_data_job", console=err)
        if not materialized.success:
            raise IccmError(materialized.error, hint=f"See the log of Dagster run {materialized.run_id}.")
    with measure_seconds(seconds, "retrain"):
        decision, run = _request_retrain(engine, settings, manual)
        with _production_scored_meanwhile(engine, settings):
            result = None if run is None else run_retrain(run.id, rollout=rollout, console=err)
    since, until = simulate.end_of_day(first - timedelta(days=1)), simulate.end_of_day(last)
    bounds = {"first": first, "last": last, "start": since, "end": until}
    with engine.connect() as conn:
        funnel = dict(conn.execute(text(_FUNNEL), bounds).mappings().one())
        run = None if run is None else training_runs.get_run(conn, run.id)
        trained = (
            versions.get_version(conn, run.candidate_version).metrics if run and run.candidate_version else {}
        )
        production = versions.get_version(conn, "production")
    week = WeekResult(
        number=number,
        first=first,
        last=last,
        traffic=traffic,
        late_sessions=len(pending) - len(still_pending),
        trigger=decision.reason,
        run=run,
        funnel=funnel,
        trained_on=trained.get("training", {}).get("counts", {}),
        production=production.version,
        pass_rate=production.metrics.get("evaluation", {}).get("test_pass_rate"),
        seconds=seconds,
    )
    return week, result, [*still_pending, *new_pending]


def embed_canary_set(engine: Engine, settings: Settings, check: Callable[[], None]) -> None:
    """Embed the canary set, with which the data of every day are compared, as far as ``check`` lets it."""
    from iccm_assets.curation.decontamination import load_canary_index
    from iccm_assets.curation.embeddings import embed_texts
    from iccm_assets.models.embedding import Embedder
    from iccm_assets.models.generation import set_threads

    texts = load_canary_index(settings.canary_set).requirements
    embedder = Embedder.load(settings)
    set_threads(settings.training.threads)  # of the whole process, in which days are embedded as well
    for start in range(0, len(texts), EMBEDDED_AHEAD):
        check()
        embed_texts(engine, texts[start : start + EMBEDDED_AHEAD], embedder)


@contextmanager
def _production_scored_meanwhile(engine: Engine, settings: Settings) -> Iterator[None]:
    """Score production on the canary set while the block trains: that uses one core of a local machine.

    The evaluation that follows scores what is missing then.
    """

    def score(check: Callable[..., None]) -> None:
        from iccm_assets.evaluation.evaluation_worker import score_production

        score_production(engine, settings, check)

    if settings.profile != "local":  # elsewhere a model may fill the memory that the trainer needs
        yield
        return
    work = WorkAhead("scores of the version in production", score)
    try:
        yield
    finally:
        work.stop()


def _converse(
    engine: Engine,
    url: str,
    token: str,
    sessions: Sequence[PlannedSession],
    pending: Sequence[PendingSession],
    timestamp: datetime,
) -> tuple[list[PendingSession], TrafficSummary, list[PendingSession]]:
    """Run the week's sessions over HTTP, and the ends of earlier ones that are due by now."""
    from iccm_assets.simulation.developers import gateway_client, http_sessions

    with closing(gateway_client.GatewayClient(url, token)) as client:
        wait_for_clock(client, timestamp)
        still_pending, late_replies = http_sessions.finish_pending(client, pending, as_of=timestamp)
    simulate.raise_on_failures(late_replies)
    traffic, new_pending, replies = simulate.run_sessions(url, token, sessions, now=timestamp)
    simulate.print_traffic(traffic, replies)
    simulate.raise_on_failures(replies)
    _wait_for_spool(engine, [session.session_id for session in sessions])
    return still_pending, traffic, new_pending


def wait_for_clock(client: GatewayClient, timestamp: datetime, timeout_seconds: float = 60.0) -> None:
    """Wait until the gateway's clock, which it polls every second or so, has reached ``timestamp``.

    A gateway whose clock still shows the week before mistakes this week's sessions for future ones and
    stores all of them as of now.
    """

    def find_problem() -> str:
        gateway_time = datetime.fromisoformat(client.get("/v1/routing")["now"])
        problem = f"the gateway's clock says {gateway_time:%Y-%m-%d %H:%M} and not {timestamp:%Y-%m-%d %H:%M}"
        return problem if gateway_time < timestamp else ""

    _wait(find_problem, timeout_seconds)


def _wait_for_spool(engine: Engine, sessions: Sequence[str], seconds: float = 60.0) -> None:
    """Wait until the gateway has flushed the responses of these sessions, normally about a second."""
    query = text(
        "select count(distinct session_id) from iccm.requirements"
        " where kind = 'model' and session_id = any(:sessions)"
    )

    def find_problem() -> str:
        with engine.connect() as conn:
            missing = len(sessions) - conn.execute(query, {"sessions": list(sessions)}).scalar_one()
        return f"{missing} responses of the gateway were not stored in {seconds:g} s" if missing else ""

    _wait(find_problem, seconds)


def _wait(find_problem: Callable[[], str], seconds: float) -> None:
    """Poll until there is no problem; raise the problem as ``IccmError`` after so many seconds."""
    deadline = clock_time.monotonic() + seconds
    while problem := find_problem():
        if clock_time.monotonic() > deadline:
            raise IccmError(problem)
        clock_time.sleep(0.1)


def set_platform_clock(engine: Engine, timestamp: datetime) -> None:
    """Set the platform's clock to ``timestamp``; it runs on from there."""
    with engine.begin() as conn:
        set_clock(conn, shift=timestamp - now(conn))


def _request_retrain(
    engine: Engine, settings: Settings, manual: bool
) -> tuple[TriggerFired | TriggerSkipped, TrainingRun | None]:
    """Evaluate the weekly trigger, or a manual one, and request the run."""
    with engine.begin() as conn:
        timestamp = now(conn)
        decision: TriggerFired | TriggerSkipped = triggers.manual_trigger("demo", "the demo's retrain")
        if not manual:
            share = propose_selection(conn, timestamp, settings.selection).fair_share
            decision = triggers.decide_weekly(timestamp, share.size, settings.triggers, share.note)
        if isinstance(decision, TriggerSkipped):
            return decision, None
        run = training_runs.create_run(conn, decision, dispatched=True)
    if run is None:
        raise IccmError(f"{decision.key} already has its retrain")
    return decision, run


_FUNNEL = """
select
    (select count(*) from iccm.conversations c where c."timestamp" >= :start and c."timestamp" < :end)
        as captured,
    (select count(*) from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
     where r.kind = 'accepted' and r.test_pass_rate is not null
       and c."timestamp" >= :start and c."timestamp" < :end) as scored,
    (select count(*) from iccm.filtered_conversations where day between :first and :last) as filtered,
    (select count(*) from iccm.phase4_training_data where day between :first and :last) as pool,
    (select avg(r.test_pass_rate)
     from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
     where r.kind = 'model' and c."timestamp" >= :start and c."timestamp" < :end) as first_response_pass_rate
"""


@contextmanager
def measure_seconds(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record the duration of the block."""
    started = clock_time.monotonic()
    yield
    seconds[name] = round(clock_time.monotonic() - started, 1)

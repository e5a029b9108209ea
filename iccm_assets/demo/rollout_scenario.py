"""The demo's second half: roll out a candidate to 100 %, then have a degraded one rolled back."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta

from rich.markup import escape
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from iccm_assets.cli.console import err, print_headline
from iccm_assets.db.clock import set_clock
from iccm_assets.demo import acceptance_checks
from iccm_assets.demo.acceptance_checks import AcceptanceCheck, RolloutRecord
from iccm_assets.demo.rollout_driver import ClockPacer, background_loops, set_rate, watch_rollout
from iccm_assets.demo.rollout_progress import RolloutSnapshot
from iccm_assets.demo.rollout_report import RolloutReport
from iccm_assets.demo.weekly_cycle import WeekResult, measure_seconds
from iccm_assets.errors import IccmError, OperationNotAllowedError, first_line
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout import repository
from iccm_assets.rollout.controller import execute_command
from iccm_assets.rollout.opening import open_rollout
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import Settings
from iccm_assets.simulation.base_model.degraded import register_degraded_model
from iccm_assets.simulation.developers.developers import PlannedSession
from iccm_assets.simulation.developers.gateway_client import GatewayClient
from iccm_assets.simulation.developers.http_sessions import ResponseStats, make_response_stats
from iccm_assets.simulation.developers.live_sessions import (
    LiveSession,
    draw_live_sessions,
    make_code_base,
    run_live_session,
)
from iccm_assets.simulation.developers.load_generator import LoadGenerator

# Target number of sessions while the canary arm is at 10, 50, 100 %. Arms are drawn at random: the observed
# shares miss 8 to 12 % and 46 to 54 % by chance in 0.1 % of the demos each.
TARGET_SESSIONS = {1: 2400, 2: 1600, 3: 100}
# Fraction of sessions with a test suite, in the rollout and with the degraded candidate.
SUITE_FRACTION, DEGRADED_SUITE_FRACTION = 0.3, 0.8
WORKERS = 24
# Response time in seconds above which fewer developers come: a canary arm times out after ten.
MAX_RESPONSE_SECONDS = 2.0
# Sessions an hour of the platform's clock with the degraded candidate.
SESSIONS_PER_HOUR = 400
# Maximum rate of the platform's clock with it; its actual rate follows the sessions.
MAX_DEGRADED_CLOCK_RATE = 40.0
# Its minimum with live traffic, and the responses waiting for their scores above which it falls: live scoring
# has as little of the machine's time as the clock is fast.
MIN_DEGRADED_CLOCK_RATE, MAX_UNSCORED = 4.0, 60
# Life of the canary weight then, in real seconds: several ticks of the controller.
LEASE_SECONDS = 15.0
WEIGHT_NOISE = 0.5
# Sessions a second while the gateway loads the candidate.
INITIAL_RATE = 4.0
MIN_RATE, MAX_RATE = 0.5, 60.0
# Minimum number of responses for a mean response time.
MIN_LATENCY_SAMPLES = 10
# Of one rollout, in real seconds.
TIMEOUT_SECONDS = 2700.0


@dataclass(frozen=True)
class ScenarioContext:
    """What both halves need: database, settings, gateway and the developers' code base."""

    engine: Engine
    settings: Settings
    url: str
    token: str
    modules: Sequence[PlannedSession]
    seed: int
    # Part of the session ids, from which the arms are drawn: each demo draws its own.
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))


def run_scenario(
    engine: Engine, settings: Settings, url: str, token: str, seed: int, week: WeekResult
) -> RolloutReport:
    """Roll out the week's candidate, then have a degraded one rolled back; checks both.

    An error ends the scenario, not the report: it is the report's ``error``, and a failed check.
    """
    context = ScenarioContext(
        engine, settings, url, token, make_code_base(seed, week.last + timedelta(days=1)), seed
    )
    run = week.run
    report = RolloutReport(
        acceptance_checks.check_retrain(run.status if run else None, run.improvement if run else None),
        seconds=dict(week.seconds),
    )
    try:
        _run_rollout_phase(context, report, required=run is not None and run.status == "gate_passed")
        _run_rollback_phase(context, report)
    except Exception as error:  # raised again after the report
        report.error = error
        report.checks.append(AcceptanceCheck("the rollouts ended", False, first_line(error)))
        _abort_live_rollout(context)
    report.checks.append(acceptance_checks.check_responses([*report.replies.values()]))
    return report


def _run_rollout_phase(context: ScenarioContext, report: RolloutReport, required: bool) -> None:
    """Roll out the candidate whose rollout is open; a ``required`` one that is not is a failed check."""
    rollout_id = get_live_rollout_id(context.engine)
    if rollout_id is not None:
        print_headline("Rollout: 10 %, 50 %, 100 % of the traffic")
        with measure_seconds(report.seconds, "rollout"):
            report.rollout, report.replies["rollout"] = run_rollout(context, rollout_id)
        report.checks += acceptance_checks.check_rollout(report.rollout)
    elif required:
        report.checks.append(AcceptanceCheck("a rollout of the candidate", False, "none is live"))


def _run_rollback_phase(context: ScenarioContext, report: RolloutReport) -> None:
    """Have a degraded candidate rolled back."""
    print_headline("Rollback: a degraded, forced candidate")
    with context.engine.connect() as conn:
        production = versions.get_version(conn, "production").version
    with measure_seconds(report.seconds, "rollback"):
        report.rollback, report.replies["rollback"] = run_rollback(context)
    report.checks += acceptance_checks.check_rollback(report.rollback, production)


def _abort_live_rollout(context: ScenarioContext) -> None:
    """Abort the rollout that an error left live, so that production gets all traffic again."""
    try:
        execute_command(context.engine, context.settings, "abort", actor="demo", note="the demo failed")
    except OperationNotAllowedError:
        pass  # none is live
    except (IccmError, SQLAlchemyError) as error:
        err.print(f"[yellow]the live rollout could not be aborted: {escape(first_line(error))}[/]")


def get_live_rollout_id(engine: Engine) -> int | None:
    """Return the id of the live rollout."""
    with engine.connect() as conn:
        state = repository.get_live_rollout(conn)
    return None if state is None else state.id


def run_rollout(context: ScenarioContext, rollout_id: int) -> tuple[RolloutRecord, ResponseStats]:
    """Send traffic through 10 %, 50 % and 100 % until the rollout is closed."""
    pacer, rate = ClockPacer(context.engine, TARGET_SESSIONS), INITIAL_RATE
    with TrafficSource(context, "rollout", tests=SUITE_FRACTION, rate=INITIAL_RATE) as traffic:

        def steer(snapshot: RolloutSnapshot) -> None:
            nonlocal rate
            pacer(snapshot)
            if snapshot.state.weight and (latency := traffic.recent_latency()) is not None:
                rate = adjust_rate(rate, latency)
                traffic.load_generator.set_rate(rate)

        _watch(context, context.settings, rollout_id, traffic, steer)
    return _load_record(context.engine, rollout_id), traffic.replies()


def run_rollback(context: ScenarioContext) -> tuple[RolloutRecord, ResponseStats]:
    """Force a degraded candidate into a rollout, at 400 sessions an hour, until it is rolled back."""
    lease = max(context.settings.rollout.lease_seconds, LEASE_SECONDS * MAX_DEGRADED_CLOCK_RATE)
    rollout = context.settings.rollout.model_copy(update={"lease_seconds": lease})
    settings = context.settings.model_copy(update={"rollout": rollout})
    degraded = register_degraded_model(context.engine, ModelStore.open(settings), noise=WEIGHT_NOISE)
    with context.engine.begin() as conn:
        set_clock(conn, rate=1.0)
    reason = f"demo: {degraded.parent_version} with noise on its weights, to demonstrate the rollback"
    open_rollout(context.engine, settings, degraded.version, actor="demo", force_reason=reason)
    rollout_id = get_live_rollout_id(context.engine)
    if rollout_id is None:
        raise IccmError(f"no rollout of {degraded.version} is live")
    err.print(f"[dim]{degraded.version} forced: {reason}[/]", highlight=False)
    with TrafficSource(
        context, "degraded", tests=DEGRADED_SUITE_FRACTION, rate=SESSIONS_PER_HOUR / 3600
    ) as traffic:
        started, limit = 0.0, MAX_DEGRADED_CLOCK_RATE

        def steer(snapshot: RolloutSnapshot) -> None:
            nonlocal started, limit
            started = started or (time.monotonic() if snapshot.state.weight else 0.0)
            limit = adjust_clock_limit(limit, snapshot.unscored)
            clock_rate = (
                compute_degraded_clock_rate(snapshot.total, time.monotonic() - started, limit)
                if started
                else 1.0
            )
            set_rate(context.engine, snapshot, clock_rate)
            traffic.load_generator.set_rate(
                SESSIONS_PER_HOUR / 3600 * (limit if snapshot.state.weight else 1.0)
            )

        _watch(context, settings, rollout_id, traffic, steer)
    return _load_record(context.engine, rollout_id), traffic.replies()


def compute_degraded_clock_rate(sessions: int, seconds: float, limit: float) -> float:
    """Compute the clock rate, up to a limit, at which so many sessions in so many seconds are 400 an hour."""
    return min(limit, max(1.0, sessions / max(seconds, 2.0) * 3600 / SESSIONS_PER_HOUR))


def adjust_clock_limit(limit: float, unscored: int) -> float:
    """Compute the next limit of the clock rate: lower while many responses wait for their scores."""
    if unscored > MAX_UNSCORED:
        return max(MIN_DEGRADED_CLOCK_RATE, 0.9 * limit)
    return min(MAX_DEGRADED_CLOCK_RATE, 1.05 * limit)


def adjust_rate(rate: float, response_seconds: float) -> float:
    """Compute the next rate of sessions a second from the present one and the mean response time."""
    return (
        max(MIN_RATE, 0.7 * rate) if response_seconds > MAX_RESPONSE_SECONDS else min(MAX_RATE, 1.15 * rate)
    )


def _watch(
    context: ScenarioContext,
    settings: Settings,
    rollout_id: int,
    traffic: TrafficSource,
    steer: Callable[[RolloutSnapshot], None],
) -> None:
    """Run controller and scoring until the rollout is closed."""

    def check_and_steer(snapshot: RolloutSnapshot) -> None:
        if traffic.load_generator.has_failed:
            traffic.load_generator.join()
        steer(snapshot)

    with background_loops(context.engine, load_orchestra_from_settings(settings), settings) as loops:
        watch_rollout(
            context.engine, rollout_id, loops, check_and_steer, console=err, timeout_seconds=TIMEOUT_SECONDS
        )
    for loop in loops:
        if loop.errors:
            err.print(f"[yellow]{loop.errors} failed passes of the {loop.name} were retried[/]")


class TrafficSource:
    """A stream of developers from ``with`` until its end, their response times and replies."""

    def __init__(self, context: ScenarioContext, name: str, *, tests: float, rate: float) -> None:
        self._client = GatewayClient(context.url, context.token, connections=WORKERS)
        self._arms: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._mutex = threading.Lock()
        name = f"{name}-{context.seed}-{context.nonce}"
        stream = draw_live_sessions(context.modules, name, test_fraction=tests, seed=context.seed)
        self.load_generator: LoadGenerator[LiveSession] = LoadGenerator(
            stream, self._run_session, workers=WORKERS, rate=rate
        )

    def __enter__(self) -> TrafficSource:
        self.load_generator.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Start no further session and wait for those under way; raises the error of a failed one."""
        with closing(self._client):
            self.load_generator.stop()
            self.load_generator.join()

    def replies(self) -> ResponseStats:
        """Return arms, response statuses, retries and failures."""
        return make_response_stats(self._client, self.load_generator.failures, self._arms)

    def recent_latency(self) -> float | None:
        """Return the mean seconds of the responses since the last call; None while there are few."""
        with self._mutex:
            if len(self._latencies) < MIN_LATENCY_SAMPLES:
                return None
            latencies, self._latencies = self._latencies, []
        return sum(latencies) / len(latencies)

    def _run_session(self, planned: LiveSession) -> None:
        reply = run_live_session(self._client, planned)
        with self._mutex:
            self._arms[reply.arm] += 1
            self._latencies.append(reply.latency_ms / 1000)


def _load_record(engine: Engine, rollout_id: int, seconds: float = 15.0) -> RolloutRecord:
    """Load the record once the gateway's spool has delivered the rollout's last requests."""
    before = -1
    deadline = time.monotonic() + seconds
    while True:
        with engine.connect() as conn:
            record = acceptance_checks.load_rollout_record(conn, rollout_id)
        if record.sessions == before or time.monotonic() > deadline:
            return record
        before = record.sessions
        time.sleep(1.0)

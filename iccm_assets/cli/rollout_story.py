"""The demo's second half: roll out a candidate to 100 %, and let a degraded one be rolled back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, select

from iccm_assets.cli import rollout_facts
from iccm_assets.cli.console import err, print_headline
from iccm_assets.cli.cycle import Week, timed
from iccm_assets.cli.rollout_drive import Pacer, machinery, set_rate, watch
from iccm_assets.cli.rollout_facts import Facts
from iccm_assets.cli.rollout_report import Told
from iccm_assets.cli.rollout_watch import Moment
from iccm_assets.errors import IccmError
from iccm_assets.judging.orchestra import orchestra_of
from iccm_assets.learning import versions
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.reference.crowd import Crowd
from iccm_assets.reference.degraded import degraded
from iccm_assets.reference.developers import PlannedSession
from iccm_assets.reference.http_traffic import Replies
from iccm_assets.reference.visitors import Visit, code_base, visit, visits
from iccm_assets.reference.wire import Wire
from iccm_assets.rollout.opening import open_rollout
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import set_clock

# Target number of sessions while the canary arm is at 10 %, 50 %, 100 %.
WANTED = {1: 1560, 2: 700, 3: 100}
# Fraction of sessions with a test suite, in the rollout and with the degraded candidate.
TESTED, ALL_TESTED = 0.3, 0.8
WORKERS = 24
# Response time in seconds above which fewer developers come: a canary arm times out after ten.
COMFORT = 2.0
# Sessions an hour of the platform's clock with the degraded candidate.
HOURLY = 400
# Maximum rate of the platform's clock with it; its actual rate follows the sessions.
CLOCK = 40.0
# Life of the canary weight then, in real seconds: several ticks of the controller.
LEASE_SECONDS = 15.0
NOISE = 0.5
# Sessions a second while the gateway loads the candidate.
BEFORE = 4.0
SLOWEST_PACE, FASTEST_PACE = 0.5, 60.0
# Minimum number of responses for a mean response time.
LATELY = 10
LONGEST = 900.0


@dataclass(frozen=True)
class Stage:
    """What both halves need: database, settings, gateway and the developers' code base."""

    engine: Engine
    settings: Settings
    url: str
    token: str
    modules: Sequence[PlannedSession]
    seed: int


def demonstrate(engine: Engine, settings: Settings, url: str, token: str, seed: int, week: Week) -> Told:
    """Roll out the week's candidate, then let a degraded one be rolled back; checks both."""
    context = Stage(engine, settings, url, token, code_base(seed, week.last + timedelta(days=1)), seed)
    seconds, replies = dict(week.seconds), {}
    run = week.run
    checks = rollout_facts.check_learning(run.status if run else None, run.improvement if run else None)
    rollout_id, completed = live_rollout(engine), None
    if rollout_id is not None:
        print_headline("Rollout: 10 %, 50 %, 100 % of the traffic")
        with timed(seconds, "rollout"):
            completed, replies["rollout"] = carry(context, rollout_id)
        checks += rollout_facts.check_rollout(completed)
    elif run is not None and run.status == "gate_passed":
        checks.append(rollout_facts.Check("a rollout of the candidate", False, "none is live"))
    print_headline("Rollback: a degraded, forced candidate")
    with engine.connect() as conn:
        production = versions.get(conn, "production").version
    with timed(seconds, "rollback"):
        rolled_back, replies["rollback"] = take_back(context)
    checks += rollout_facts.check_rollback(rolled_back, production)
    checks.append(rollout_facts.check_replies([*replies.values()]))
    return Told(completed, rolled_back, tuple(checks), replies, seconds)


def live_rollout(engine: Engine) -> int | None:
    """Return the id of the live rollout."""
    query = select(t.rollouts.c.id).where(t.rollouts.c.state.in_(t.LIVE_STATES))
    with engine.connect() as conn:
        return conn.execute(query).scalar_one_or_none()


def carry(at: Stage, rollout_id: int) -> tuple[Facts, Replies]:
    """Send traffic through 10 %, 50 % and 100 % until the rollout is closed, with whatever result."""
    pacer, rate = Pacer(at.engine, WANTED), BEFORE
    with Visitors(at, "rollout", tests=TESTED, rate=BEFORE) as traffic:

        def steer(snapshot: Moment) -> None:
            nonlocal rate
            pacer(snapshot)
            if snapshot.state.weight and (latency := traffic.recent_latency()) is not None:
                rate = comfortable(rate, latency)
                traffic.crowd.pace(rate)

        _watch(at, at.settings, rollout_id, traffic, steer)
    return _load_facts(at.engine, rollout_id), traffic.replies()


def take_back(at: Stage) -> tuple[Facts, Replies]:
    """Force a degraded candidate into a rollout, at 400 sessions an hour, until it is rolled back."""
    lease = max(at.settings.rollout.lease_seconds, LEASE_SECONDS * CLOCK)
    rollout = at.settings.rollout.model_copy(update={"lease_seconds": lease})
    settings = at.settings.model_copy(update={"rollout": rollout})
    worse = degraded(at.engine, ModelStore(settings.home), noise=NOISE)
    with at.engine.begin() as conn:
        set_clock(conn, rate=1.0)
    reason = f"demo: {worse.parent_version} with noise on its weights, to demonstrate the rollback"
    open_rollout(at.engine, settings, worse.version, actor="demo", force_reason=reason)
    rollout_id = live_rollout(at.engine)
    if rollout_id is None:
        raise IccmError(f"no rollout of {worse.version} is live")
    err.print(f"[dim]{worse.version} forced: {reason}[/]", highlight=False)
    with Visitors(at, "degraded", tests=ALL_TESTED, rate=HOURLY / 3600) as traffic:
        started = 0.0

        def steer(snapshot: Moment) -> None:
            nonlocal started
            started = started or (time.monotonic() if snapshot.state.weight else 0.0)
            clock_rate = hourly(snapshot.total, time.monotonic() - started) if started else 1.0
            set_rate(at.engine, snapshot, clock_rate)
            traffic.crowd.pace(HOURLY / 3600 * (CLOCK if snapshot.state.weight else 1.0))

        _watch(at, settings, rollout_id, traffic, steer)
    return _load_facts(at.engine, rollout_id), traffic.replies()


def hourly(sessions: int, seconds: float) -> float:
    """Compute the clock rate at which so many sessions in so many seconds are 400 an hour."""
    return min(CLOCK, max(1.0, sessions / max(seconds, 2.0) * 3600 / HOURLY))


def comfortable(pace: float, took: float) -> float:
    """Compute the next rate of sessions a second from the present one and the mean response time."""
    return max(SLOWEST_PACE, 0.7 * pace) if took > COMFORT else min(FASTEST_PACE, 1.15 * pace)


def _watch(
    at: Stage, settings: Settings, rollout_id: int, traffic: Visitors, steer: Callable[[Moment], None]
) -> None:
    """Run controller and scoring until the rollout is closed."""

    def check_and_steer(snapshot: Moment) -> None:
        if traffic.crowd.broken:
            traffic.crowd.join()
        steer(snapshot)

    with machinery(at.engine, orchestra_of(settings), settings) as helpers:
        watch(at.engine, rollout_id, helpers, check_and_steer, console=err, seconds=LONGEST)
    for helper in helpers:
        if helper.errors:
            err.print(f"[yellow]{helper.errors} failed passes of the {helper.name} were retried[/]")


class Visitors:
    """A stream of developers from ``with`` until its end, their response times and replies."""

    def __init__(self, at: Stage, name: str, *, tests: float, rate: float) -> None:
        self._wire = Wire(at.url, at.token, connections=WORKERS)
        self._arms: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._mutex = threading.Lock()
        stream = visits(at.modules, name, tests=tests, seed=at.seed)
        self.crowd: Crowd[Visit] = Crowd(stream, self._visit, workers=WORKERS, rate=rate)

    def __enter__(self) -> Visitors:
        self.crowd.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Start no further session and wait for those under way; raises the error of a failed one."""
        with closing(self._wire):
            self.crowd.stop()
            self.crowd.join()

    def replies(self) -> Replies:
        """Return arms, response statuses, retries and failures."""
        wire = self._wire
        return Replies(dict(self._arms), dict(wire.statuses), wire.retried, tuple(self.crowd.failures))

    def recent_latency(self) -> float | None:
        """Return the mean seconds of the responses since the last call; None while there are few."""
        with self._mutex:
            if len(self._latencies) < LATELY:
                return None
            latencies, self._latencies = self._latencies, []
        return sum(latencies) / len(latencies)

    def _visit(self, planned: Visit) -> None:
        reply = visit(self._wire, planned)
        with self._mutex:
            self._arms[reply.arm] += 1
            self._latencies.append(reply.latency_ms / 1000)


def _load_facts(engine: Engine, rollout_id: int, seconds: float = 15.0) -> Facts:
    """Load the record once the gateway's spool has delivered the rollout's last requests."""
    before = -1
    deadline = time.monotonic() + seconds
    while True:
        with engine.connect() as conn:
            record = rollout_facts.facts(conn, rollout_id)
        if record.sessions == before or time.monotonic() > deadline:
            return record
        before = record.sessions
        time.sleep(1.0)

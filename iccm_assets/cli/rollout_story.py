"""The demo's second half: roll out a candidate to 100 %, and let a degraded one be rolled back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, select

from iccm_assets.cli import rollout_facts
from iccm_assets.cli.console import err
from iccm_assets.cli.rollout_drive import Pacer, machinery, set_rate, watch
from iccm_assets.cli.rollout_facts import Facts
from iccm_assets.cli.rollout_watch import Moment
from iccm_assets.errors import IccmError
from iccm_assets.judging.orchestra import orchestra_of
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.reference.crowd import Crowd
from iccm_assets.reference.degraded import degraded
from iccm_assets.reference.developers import PlannedSession
from iccm_assets.reference.http_traffic import Replies
from iccm_assets.reference.visitors import Visit, visit, visits
from iccm_assets.reference.wire import Wire
from iccm_assets.rollout.opening import open_rollout
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import set_clock

WANTED = {1: 1560, 2: 700, 3: 100}
"""Target number of sessions while the canary arm is at 10 %, 50 %, 100 %."""
TESTED, ALL_TESTED = 0.3, 0.8
"""Fraction of sessions with a test suite, in the rollout and with the degraded candidate."""
WORKERS = 24
COMFORT = 2.0
"""Response time in seconds above which fewer developers come: a canary arm times out after ten."""
HOURLY = 400
"""Sessions an hour of the platform's clock with the degraded candidate."""
CLOCK = 40.0
"""Maximum rate of the platform's clock with it; its actual rate follows the sessions."""
LEASE_SECONDS = 15.0
"""Life of the canary weight then, in real seconds: several ticks of the controller."""
NOISE = 0.5
BEFORE = 4.0
"""Sessions a second while the gateway loads the candidate."""
SLOWEST_PACE, FASTEST_PACE = 0.5, 60.0
LATELY = 10
"""Minimum number of responses for a mean response time."""
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


def live_rollout(engine: Engine) -> int | None:
    """Return the id of the live rollout."""
    with engine.connect() as conn:
        query = select(t.rollouts.c.id).where(t.rollouts.c.state.in_(t.LIVE_STATES))
        return conn.execute(query).scalar_one_or_none()


def carry(at: Stage, rollout_id: int) -> tuple[Facts, Replies]:
    """Send traffic through 10 %, 50 % and 100 % until the rollout is closed, with whatever result."""
    pacer, rate = Pacer(at.engine, WANTED), BEFORE
    with _visitors(at, "rollout", tests=TESTED, rate=BEFORE) as traffic:

        def steer(snapshot: Moment) -> None:
            nonlocal rate
            pacer(snapshot)
            if snapshot.state.weight and (latency := traffic.recent_latency()) is not None:
                rate = comfortable(rate, latency)
                traffic.crowd.pace(rate)

        return _watch(at, at.settings, rollout_id, traffic, steer)


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
    with _visitors(at, "degraded", tests=ALL_TESTED, rate=HOURLY / 3600) as traffic:
        started = 0.0

        def steer(snapshot: Moment) -> None:
            nonlocal started
            started = started or (time.monotonic() if snapshot.state.weight else 0.0)
            clock_rate = hourly(snapshot.total, time.monotonic() - started) if started else 1.0
            set_rate(at.engine, snapshot, clock_rate)
            traffic.crowd.pace(HOURLY / 3600 * (CLOCK if snapshot.state.weight else 1.0))

        return _watch(at, settings, rollout_id, traffic, steer)


def hourly(sessions: int, seconds: float) -> float:
    """Compute the clock rate at which so many sessions in so many seconds are 400 an hour."""
    return min(CLOCK, max(1.0, sessions / max(seconds, 2.0) * 3600 / HOURLY))


def comfortable(pace: float, took: float) -> float:
    """Compute the next rate of sessions a second from the present one and the mean response time."""
    return max(SLOWEST_PACE, 0.7 * pace) if took > COMFORT else min(FASTEST_PACE, 1.15 * pace)


def _watch(
    at: Stage, settings: Settings, rollout_id: int, traffic: Visitors, steer: Callable[[Moment], None]
) -> tuple[Facts, Replies]:
    """Run controller and scoring until the rollout is closed; returns its record and the replies."""

    def check_and_steer(snapshot: Moment) -> None:
        if traffic.crowd.broken:
            traffic.crowd.join()
        steer(snapshot)

    with machinery(at.engine, orchestra_of(settings), settings) as helpers:
        watch(at.engine, rollout_id, helpers, check_and_steer, console=err, seconds=LONGEST)
    for helper in helpers:
        if helper.errors:
            err.print(f"[yellow]{helper.errors} failed passes of the {helper.name} were retried[/]")
    traffic.stop()
    return _load_facts(at.engine, rollout_id), traffic.replies()


class Visitors:
    """A stream of developers, the response times, and the replies."""

    def __init__(self, wire: Wire, stream: Iterator[Visit], rate: float) -> None:
        self._wire = wire
        self._arms: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._mutex = threading.Lock()
        self.crowd: Crowd[Visit] = Crowd(stream, self._visit, workers=WORKERS, rate=rate)

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

    def stop(self) -> None:
        """Start no further session and wait for those under way."""
        self.crowd.stop()
        self.crowd.join()

    def _visit(self, planned: Visit) -> None:
        reply = visit(self._wire, planned)
        with self._mutex:
            self._arms[reply.arm] += 1
            self._latencies.append(reply.latency_ms / 1000)


@contextmanager
def _visitors(at: Stage, name: str, *, tests: float, rate: float) -> Iterator[Visitors]:
    """Run a stream of developers until the block ends."""
    with closing(Wire(at.url, at.token, connections=WORKERS)) as wire:
        traffic = Visitors(wire, visits(at.modules, name, tests=tests, seed=at.seed), rate)
        traffic.crowd.start()
        try:
            yield traffic
        finally:
            traffic.stop()


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

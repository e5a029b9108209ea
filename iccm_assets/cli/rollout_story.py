"""The demo's second half: a candidate carried to 100 %, and a worse one taken back (story 2 and 3)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from iccm_assets.cli import rollout_facts
from iccm_assets.cli.console import err
from iccm_assets.cli.rollout_drive import Helper, Pacer, machinery, watch
from iccm_assets.cli.rollout_facts import Facts
from iccm_assets.cli.rollout_watch import Moment
from iccm_assets.errors import IccmError
from iccm_assets.reference.http_traffic import Replies
from iccm_assets.settings import Settings
from iccm_assets.store.clock import set_clock

if TYPE_CHECKING:
    from iccm_assets.reference.crowd import Crowd
    from iccm_assets.reference.developers import PlannedSession
    from iccm_assets.reference.visitors import Visit
    from iccm_assets.reference.wire import Wire

WANTED = {1: 1560, 2: 700, 3: 100}
"""Sessions that are to come while the canary arm is at 10 %, 50 %, 100 %."""
TESTED, ALL_TESTED = 0.3, 0.8
"""Share of sessions that bring a test suite, in the rollout and beside the degraded candidate."""
WORKERS = 24
COMFORT = 2.0
"""Seconds an answer may take before fewer developers come: a canary arm gives up after ten (G3)."""
HOURLY = 400
"""Sessions an hour of the platform's clock beside the degraded candidate (story 3)."""
CLOCK = 40.0
"""How fast the platform's clock runs then, at most: as fast as the sessions really come."""
LEASE_SECONDS = 15.0
"""Life of the canary weight then, in seconds of the machine's clock: several ticks of the controller."""
NOISE = 0.5
BEFORE = 4.0
"""Sessions a second while the candidate is being loaded."""
SLOWEST_PACE, FASTEST_PACE = 0.5, 60.0
LATELY = 10
"""Answers over which their time is averaged."""
LONGEST = 900.0


@dataclass(frozen=True)
class Stage:
    """What both halves need: the database, the gateway, the code base and who scores."""

    engine: sa.Engine
    settings: Settings
    url: str
    token: str
    modules: Sequence[PlannedSession]
    seed: int


def live_rollout(engine: sa.Engine) -> int | None:
    """The id of the live rollout."""
    from iccm_assets.store import tables as t

    with engine.connect() as conn:
        query = sa.select(t.rollouts.c.id).where(t.rollouts.c.state.in_(t.LIVE_STATES))
        found = conn.execute(query).scalar_one_or_none()
        return None if found is None else int(found)


def carry(at: Stage, rollout_id: int) -> tuple[Facts, Replies]:
    """Story 2: real requests through 10 %, 50 % and 100 %, until the rollout is closed, however it ends."""
    pacer, pace = Pacer(at.engine, WANTED), BEFORE
    with _visitors(at, "rollout", tests=TESTED, pace=BEFORE) as come:

        def steer(seen: Moment) -> None:
            nonlocal pace
            pacer(seen)
            if seen.state.weight and (took := come.lately()) is not None:
                pace = comfortable(pace, took)
                come.crowd.pace(pace)

        _watched(at, at.settings, rollout_id, come.crowd, steer)
    return _facts(at.engine, rollout_id), come.replies()


def take_back(at: Stage) -> tuple[Facts, Replies]:
    """Story 3: a degraded candidate, forced in with a reason, at 400 sessions an hour."""
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.reference.degraded import degraded
    from iccm_assets.rollout.opening import open_rollout

    lease = max(at.settings.rollout.lease_seconds, LEASE_SECONDS * CLOCK)
    rollout = at.settings.rollout.model_copy(update={"lease_seconds": lease})
    settings = at.settings.model_copy(update={"rollout": rollout})
    worse = degraded(at.engine, ModelStore(settings.home), noise=NOISE)
    with at.engine.begin() as conn:
        set_clock(conn, rate=1.0)
    reason = f"demo: {worse.parent_version} with noise on its weights, to see it taken back"
    open_rollout(at.engine, settings, worse.version, actor="demo", force_reason=reason)
    rollout_id = live_rollout(at.engine)
    if rollout_id is None:
        raise IccmError(f"no rollout of {worse.version} is live")
    err.print(f"[dim]{worse.version} forced: {reason}[/]", highlight=False)
    with _visitors(at, "degraded", tests=ALL_TESTED, pace=HOURLY / 3600) as come:
        since = 0.0

        def steer(seen: Moment) -> None:
            nonlocal since
            since = since or (time.monotonic() if seen.state.weight else 0.0)
            rate = hourly(seen.held, time.monotonic() - since) if since else 1.0
            if abs(rate / seen.rate - 1.0) > 0.1:
                with at.engine.begin() as conn:
                    set_clock(conn, rate=rate)
            come.crowd.pace(HOURLY / 3600 * (CLOCK if seen.state.weight else 1.0))

        _watched(at, settings, rollout_id, come.crowd, steer)
    return _facts(at.engine, rollout_id), come.replies()


def hourly(sessions: int, seconds: float) -> float:
    """The clock's rate at which so many sessions in so many seconds are 400 an hour. Pure."""
    return min(CLOCK, max(1.0, sessions / max(seconds, 2.0) * 3600 / HOURLY))


def comfortable(pace: float, took: float) -> float:
    """How many sessions a second may come when answers took so many seconds lately. Pure."""
    return max(SLOWEST_PACE, 0.7 * pace) if took > COMFORT else min(FASTEST_PACE, 1.15 * pace)


def _watched(
    at: Stage, settings: Settings, rollout_id: int, crowd: Crowd[Visit], steer: Callable[[Moment], None]
) -> None:
    from iccm_assets.judging.orchestra import orchestra_of

    def steered(seen: Moment) -> None:
        if crowd.broken:
            crowd.join()
        steer(seen)

    with machinery(at.engine, orchestra_of(settings), settings) as helpers:
        watch(at.engine, rollout_id, helpers, steered, console=err, seconds=LONGEST)
    _remark(helpers)


def _remark(helpers: Sequence[Helper]) -> None:
    for one in helpers:
        if one.errors:
            err.print(f"[yellow]{one.errors} passes of the {one.name} failed and were made again[/]")


class Visitors:
    """Developers who keep coming, how long their answers took, and the replies they got."""

    def __init__(self, wire: Wire, coming: Iterator[Visit], pace: float) -> None:
        from iccm_assets.reference.crowd import Crowd

        self._wire = wire
        self._arms: Counter[str] = Counter()
        self._took: list[float] = []
        self._mutex = threading.Lock()
        self.crowd: Crowd[Visit] = Crowd(coming, self._visit, workers=WORKERS, rate=pace)

    def replies(self) -> Replies:
        """What the gateway made of them."""
        wire = self._wire
        return Replies(dict(self._arms), dict(wire.statuses), wire.retried, tuple(self.crowd.failures))

    def lately(self) -> float | None:
        """Mean seconds of the answers since the last call; None while there are few."""
        with self._mutex:
            if len(self._took) < LATELY:
                return None
            took, self._took = self._took, []
        return sum(took) / len(took)

    def _visit(self, one: Visit) -> None:
        from iccm_assets.reference.visitors import visit

        told = visit(self._wire, one)
        with self._mutex:
            self._arms[told.arm] += 1
            self._took.append(told.latency_ms / 1000)


@contextmanager
def _visitors(at: Stage, name: str, *, tests: float, pace: float) -> Iterator[Visitors]:
    """Developers who come as long as the block takes."""
    from iccm_assets.reference.visitors import visits
    from iccm_assets.reference.wire import Wire

    with closing(Wire(at.url, at.token, connections=WORKERS)) as wire:
        come = Visitors(wire, visits(at.modules, name, tests=tests, seed=at.seed), pace)
        come.crowd.start()
        try:
            yield come
        finally:
            come.crowd.stop()
            come.crowd.join()


def _facts(engine: sa.Engine, rollout_id: int, seconds: float = 15.0) -> Facts:
    """The facts, once the gateway's spool has brought the last requests of the rollout."""
    before = -1
    deadline = time.monotonic() + seconds
    while True:
        with engine.connect() as conn:
            found = rollout_facts.facts(conn, rollout_id)
        if found.sessions == before or time.monotonic() > deadline:
            return found
        before = found.sessions
        time.sleep(1.0)

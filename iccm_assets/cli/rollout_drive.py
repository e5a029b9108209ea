"""Carrying a rollout through in one process: developers, scorer and controller at the same time.

A platform that runs has Dagster for the last two; here they are threads, and the platform's clock (S4) is
scaled so that a stage's time and the sessions it is to see come to an end together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from rich.console import Console
from rich.live import Live

from iccm_assets.cli import rollout_watch
from iccm_assets.cli.rollout_watch import Moment
from iccm_assets.errors import IccmError
from iccm_assets.settings import Settings
from iccm_assets.store.clock import set_clock

if TYPE_CHECKING:
    from iccm_assets.judging.orchestra import Orchestra

log = logging.getLogger("iccm.demo")

TICK_SECONDS = 1.0
SCORE_SECONDS = 1.5
LOOK_SECONDS = 0.5
LINE_SECONDS = 10.0
SLOWEST, FASTEST = 0.25, 12.0
"""Bounds of the clock's rate: a lease of 180 s lives 15 s of a second hand at its fastest."""
PATIENCE = 10
"""Errors in a row after which a helper gives up."""


class Helper:
    """A thread that does one thing again and again; what goes wrong is kept, and in the end raised."""

    def __init__(self, name: str, do: Callable[[], float]) -> None:
        self.name = name
        self.errors = 0
        self._do, self._over = do, threading.Event()
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after what is under way."""
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raises what made the helper give up."""
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        row = 0
        while not self._over.is_set():
            try:
                pause, row = self._do(), 0
            except Exception as error:
                pause, row = TICK_SECONDS, row + 1
                self.errors += 1
                log.warning("%s: %s", self.name, str(error).splitlines()[0])
                if row >= PATIENCE or not isinstance(error, sa.exc.DBAPIError):
                    self._broken = error
                    return
            self._over.wait(pause)


@contextmanager
def machinery(engine: sa.Engine, orchestra: Orchestra, settings: Settings) -> Iterator[list[Helper]]:
    """The controller and live scoring, as long as the block takes."""
    from iccm_assets.judging.live import score_live
    from iccm_assets.rollout.controller import tick

    def ticking() -> float:
        tick(engine, settings)
        return TICK_SECONDS

    def scoring() -> float:
        done = score_live(engine, orchestra, settings, seconds=SCORE_SECONDS)
        return 0.0 if done.left else LOOK_SECONDS

    helpers = [Helper("controller", ticking), Helper("live scoring", scoring)]
    try:
        yield helpers
    finally:
        for one in helpers:
            one.stop()


def watch(
    engine: sa.Engine,
    rollout_id: int,
    helpers: list[Helper],
    steer: Callable[[Moment], None],
    *,
    console: Console,
    seconds: float,
) -> Moment:
    """Show the rollout until it is closed; ``steer`` is told every look and may move clock and traffic.

    Raises ``IccmError`` when it is still live after so many seconds, and whatever broke a helper.
    """
    begun = time.monotonic()
    said = begun - LINE_SECONDS
    stage: Any = None
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            for one in helpers:
                one.check()
            with engine.connect() as conn:
                seen = rollout_watch.moment(conn, rollout_id)
            if console.is_terminal:
                live.update(rollout_watch.panel(seen))
            elif time.monotonic() - said >= LINE_SECONDS or (seen.state.state, seen.state.stage) != stage:
                console.print(rollout_watch.line(seen), soft_wrap=True, highlight=False)
                said, stage = time.monotonic(), (seen.state.state, seen.state.stage)
            if not seen.state.live:
                return seen
            if time.monotonic() - begun > seconds:
                raise IccmError(
                    f"rollout {rollout_id} is still {seen.state.state} after {seconds:.0f} s:"
                    f" {seen.state.reason}",
                    hint="`iccm rollout show` tells more; a slower machine may need more time.",
                )
            steer(seen)
            time.sleep(LOOK_SECONDS)


def paced(seconds_left: float, sessions_left: int, sessions_per_second: float) -> float:
    """The clock's rate at which a stage's time and its sessions run out together. Pure.

    When only samples are missing it is the machine's.
    """
    if seconds_left <= 0:
        return 1.0
    if sessions_left <= 0 or sessions_per_second <= 0:
        return FASTEST if sessions_left <= 0 else SLOWEST
    return min(FASTEST, max(SLOWEST, seconds_left * sessions_per_second / sessions_left))


class Pacer:
    """Keeps the platform's clock in step with the traffic: ``wanted`` sessions by stage."""

    def __init__(self, engine: sa.Engine, wanted: dict[int, int]) -> None:
        self._engine, self._wanted = engine, wanted
        self._stage: tuple[int, float] = (0, 0.0)
        self._since, self._held = 0.0, 0
        self._set_at = 0.0

    def __call__(self, seen: Moment) -> None:
        """Set the clock's rate anew every few seconds, when it is off by a tenth."""
        state, at = seen.state, time.monotonic()
        if (state.stage, state.weight) != self._stage:
            self._stage, self._since, self._held = (state.stage, state.weight), at, seen.held
        if at - self._set_at < 2.0 or at - self._since < 2.0 or not state.weight:
            return
        pace = (seen.held - self._held) / (at - self._since)
        left = state.policy.stage_seconds[state.stage - 1] - state.healthy_seconds
        rate = paced(max(0.0, left), self._wanted[state.stage] - seen.held, pace)
        if abs(rate / seen.rate - 1.0) > 0.1:
            with self._engine.begin() as conn:
                set_clock(conn, rate=rate)
        self._set_at = at

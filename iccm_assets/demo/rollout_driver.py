"""Run a rollout in one process: developers, live scoring and controller at the same time.

A running platform has Dagster for the last two; here they are threads. The platform's clock is scaled so that
a stage reaches its minimum time and its required sessions together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from iccm_assets.cli.run_job import report_to_dagster
from iccm_assets.db.clock import set_clock
from iccm_assets.demo import rollout_progress
from iccm_assets.demo.rollout_progress import RolloutSnapshot
from iccm_assets.errors import IccmError, first_line
from iccm_assets.rollout.controller import tick
from iccm_assets.scoring.live_scoring import score_live_responses
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

TICK_INTERVAL_SECONDS = 1.0
SCORING_BUDGET_SECONDS = 1.5
REFRESH_INTERVAL_SECONDS = 0.5
LOG_INTERVAL_SECONDS = 10.0
# Bounds of the clock's rate. At the maximum, a lease of 180 s lasts 15 s of real time; at the minimum, a
# machine that serves one session in two seconds reaches the sessions of a stage before its end.
MIN_CLOCK_RATE, MAX_CLOCK_RATE = 0.05, 12.0
# Consecutive errors after which a background loop stops.
MAX_CONSECUTIVE_ERRORS = 10


class BackgroundLoop(threading.Thread):
    """A thread that repeats one function; it keeps the error that stopped it for ``raise_error``."""

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        super().__init__(name=name, daemon=True)
        self.errors = 0
        self._step, self._stopping = step, threading.Event()
        self._error: Exception | None = None
        self.start()

    def stop(self) -> None:
        """Finish the current call and end the thread."""
        self._stopping.set()
        self.join()

    def raise_error(self) -> None:
        """Raise the error that stopped the loop."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """Repeat the function until ``stop`` or an error that would recur."""
        consecutive = 0
        while not self._stopping.is_set():
            try:
                pause, consecutive = self._step(), 0
            except Exception as error:
                pause, consecutive = TICK_INTERVAL_SECONDS, consecutive + 1
                self.errors += 1
                log.warning("%s: %s", self.name, first_line(error))
                # The database may be away for a moment; any other error is a defect and would recur.
                if consecutive >= MAX_CONSECUTIVE_ERRORS or not isinstance(error, DBAPIError):
                    self._error = error
                    return
            self._stopping.wait(pause)


@contextmanager
def background_loops(
    engine: Engine, orchestra: Orchestra, settings: Settings
) -> Iterator[list[BackgroundLoop]]:
    """Run the controller and live scoring until the block ends."""

    def run_controller() -> float:
        decision = tick(engine, settings)
        if decision is not None and decision.events:
            report_to_dagster(settings, engine)
        return TICK_INTERVAL_SECONDS

    def run_scoring() -> float:
        report = score_live_responses(engine, orchestra, settings, time_budget_seconds=SCORING_BUDGET_SECONDS)
        return 0.0 if report.remaining else REFRESH_INTERVAL_SECONDS

    loops = [BackgroundLoop("controller", run_controller), BackgroundLoop("live scoring", run_scoring)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.stop()


def watch_rollout(
    engine: Engine,
    rollout_id: int,
    loops: list[BackgroundLoop],
    steer: Callable[[RolloutSnapshot], None],
    *,
    console: Console,
    timeout_seconds: float,
) -> RolloutSnapshot:
    """Show the rollout until it is closed; ``steer`` gets every snapshot and may change clock and traffic.

    Raises ``IccmError`` if it is still live after so many seconds, and the error of a failed loop.
    """
    started = time.monotonic()
    printed = started - LOG_INTERVAL_SECONDS
    stage: Any = None
    with Live(console=console, refresh_per_second=4, transient=True) as screen:
        while True:
            for loop in loops:
                loop.raise_error()
            with engine.connect() as conn:
                snapshot = rollout_progress.load_snapshot(conn, rollout_id)
            state = snapshot.state
            if console.is_terminal:
                screen.update(rollout_progress.render_panel(snapshot))
            elif time.monotonic() - printed >= LOG_INTERVAL_SECONDS or (state.state, state.stage) != stage:
                console.print(rollout_progress.format_line(snapshot), soft_wrap=True, highlight=False)
                printed, stage = time.monotonic(), (state.state, state.stage)
            if not state.is_live:
                return snapshot
            if time.monotonic() - started > timeout_seconds:
                raise IccmError(
                    f"rollout {rollout_id} is {state.state} after {timeout_seconds:.0f} s: {state.reason}",
                    hint="See `iccm rollout show`; a slower machine may need more time.",
                )
            steer(snapshot)
            time.sleep(REFRESH_INTERVAL_SECONDS)


def compute_clock_rate(
    remaining_seconds: float, remaining_sessions: int, sessions_per_second: float
) -> float:
    """Compute the clock rate at which a stage's time and its required sessions end together.

    It is 1 if only sessions are missing.
    """
    if remaining_seconds <= 0:
        return 1.0
    if remaining_sessions <= 0 or sessions_per_second <= 0:
        return MAX_CLOCK_RATE if remaining_sessions <= 0 else MIN_CLOCK_RATE
    return min(
        MAX_CLOCK_RATE, max(MIN_CLOCK_RATE, remaining_seconds * sessions_per_second / remaining_sessions)
    )


def set_rate(engine: Engine, snapshot: RolloutSnapshot, rate: float) -> None:
    """Set the rate of the platform's clock if it is off by more than a tenth."""
    if abs(rate / snapshot.rate - 1.0) > 0.1:
        with engine.begin() as conn:
            set_clock(conn, rate=rate)


class ClockPacer:
    """Keep the platform's clock in step with the traffic: ``target_sessions`` by stage."""

    def __init__(self, engine: Engine, target_sessions: dict[int, int]) -> None:
        self._engine, self._target_sessions = engine, target_sessions
        self._stage: tuple[int, float] = (0, 0.0)
        self._entered_at, self._set_at, self._sessions_before = 0.0, 0.0, 0

    def __call__(self, snapshot: RolloutSnapshot) -> None:
        """Adjust the clock's rate every two seconds, by the traffic since the stage began."""
        state, timestamp = snapshot.state, time.monotonic()
        if (state.stage, state.weight) != self._stage:
            self._stage = (state.stage, state.weight)
            self._entered_at, self._sessions_before = timestamp, snapshot.total
        if timestamp - max(self._set_at, self._entered_at) < 2.0 or not state.weight:
            return
        pace = (snapshot.total - self._sessions_before) / (timestamp - self._entered_at)
        remaining = max(0.0, state.policy.stage_seconds[state.stage - 1] - state.healthy_seconds)
        rate = compute_clock_rate(remaining, self._target_sessions[state.stage] - snapshot.total, pace)
        set_rate(self._engine, snapshot, rate)
        self._set_at = timestamp

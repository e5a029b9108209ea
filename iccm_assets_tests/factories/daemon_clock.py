"""`dagster-daemon` on another clock.

    python -m iccm_assets_tests.factories.daemon_clock 2026-03-01T01:59:50 1 run


The daemon is Dagster's own, with all its threads. Its two clock functions, which Dagster's `freeze_time`
replaces too, start at a moment of the past when they are first read and run so many times as fast: the 60 s
between two ticks of a sensor then pass in a few. Waits, time limits of calls and the code server's time stay
real.

The moment has to lie in the past. Dagster's storage dates runs by the database's clock, so that a later one
would have the run monitoring end every run as overdue.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import dagster._time


class Clock:
    """Starts at ``at`` when it is first read."""

    def __init__(self, at: datetime, rate: float) -> None:
        self.at, self.rate = at.timestamp(), rate
        self.started: float | None = None

    def timestamp(self) -> float:
        read = time.monotonic()
        if self.started is None:
            self.started = read
        return self.at + (read - self.started) * self.rate

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp(), UTC)


def main(at: str, rate: str, *arguments: str) -> None:
    clock = Clock(datetime.fromisoformat(at).replace(tzinfo=UTC), float(rate))
    dagster._time._mockable_get_current_timestamp = clock.timestamp
    dagster._time._mockable_get_current_datetime = clock.now
    from dagster._daemon.cli import main as daemon

    sys.argv = ["dagster-daemon", *arguments]
    daemon()


if __name__ == "__main__":
    main(*sys.argv[1:])

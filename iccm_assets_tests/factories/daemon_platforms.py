"""A platform whose clock the test sets, and the Dagster daemons that are started on it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import dagster as dg
import numpy as np
import sqlalchemy as sa
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from iccm_assets.db import tables as t
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import conversation
from iccm_assets_tests.factories.processes import start_dagster

USERS = 40
# Every example's vector: there is no holdout here that it could be compared with.
DIRECTION = np.full(384, 384**-0.5, dtype=np.float32)
# A retrain takes 20 s on two idle cores; a busy machine may take ten times as long.
TIMEOUT_SECONDS = 200
DONE = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Daemon:
    """A daemon's process and its log file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


@dataclass
class Platform:
    """A platform whose clock says ``at``, its Dagster instance, and the daemons started on it."""

    settings: Settings
    engine: sa.Engine
    instance: dg.DagsterInstance
    environment: dict[str, str]
    at: datetime
    daemons: list[Daemon] = field(default_factory=list)
    examples: int = 0

    def add_examples(self, count: int, conn: sa.Connection | None = None) -> None:
        """So many more selectable examples, of yesterday."""
        with nullcontext(conn) if conn is not None else self.engine.begin() as conn:
            for number in range(self.examples + 1, self.examples + count + 1):
                conversation(conn, number, user=f"u{number % USERS}", at=self.at - timedelta(days=1))
            conn.execute(t.phase4_training_data.update().values(embedding=DIRECTION))
        self.examples += count

    def start_daemons(self, count: int = 1, rate: float = 1.0) -> None:
        """Start daemons whose clock starts at ``at`` when they have loaded the project."""
        clock = [
            sys.executable,
            "-m",
            "iccm_assets_tests.factories.daemon_clock",
            self.at.isoformat(),
            str(rate),
        ]
        for number in range(count):
            log = self.settings.home / f"daemon-{number}.log"
            self.daemons.append(Daemon(start_dagster([*clock, "run"], self.environment, log), log))

    def ticks(self, name: str) -> list[InstigatorTick]:
        """The ticks of a sensor or a schedule that are over, oldest first; none of them may have failed."""
        known = {state.instigator_name: state for state in self.instance.all_instigator_state()}
        if name not in known:
            return []
        ticks = self.instance.get_ticks(known[name].instigator_origin_id, known[name].selector_id)
        assert [tick.error for tick in ticks if tick.status == TickStatus.FAILURE] == []
        return [tick for tick in reversed(ticks) if tick.status != TickStatus.STARTED]

    def skip_reasons(self, name: str) -> list[str]:
        """The reasons its ticks gave for starting nothing, oldest first."""
        return [tick.skip_reason for tick in self.ticks(name) if tick.skip_reason]

    def retrains(self) -> list[dg.DagsterRun]:
        """The launched runs of `retrain_job`, oldest first."""
        return list(reversed(self.instance.get_runs(dg.RunsFilter(job_name="retrain_job"))))

    def training_runs(self) -> list[sa.Row]:
        with self.engine.connect() as conn:
            rows = t.phase4_training_runs
            return list(conn.execute(sa.select(rows).order_by(rows.c.id)))

    def until(self, get_value: Callable[[], Value]) -> Value:
        """Wait for the first true value of ``get_value``; a timeout shows the end of the daemons' logs."""
        limit = time.monotonic() + TIMEOUT_SECONDS
        while not (value := get_value()):
            dead = [daemon.process.pid for daemon in self.daemons if daemon.process.poll() is not None]
            if dead or time.monotonic() > limit:
                logs = "\n".join(daemon.output[-4000:] for daemon in self.daemons)
                raise AssertionError(
                    f"not within {TIMEOUT_SECONDS} s, or daemons have died ({dead}):\n{logs}"
                )
            time.sleep(0.2)
        return value

    def until_over(self, count: int) -> None:
        """Wait until so many retrains were launched and have ended."""
        self.until(lambda: sum(run.status in DONE for run in self.retrains()) >= count)

    def let_tick(self, name: str, times: int = 2) -> None:
        """Wait for more ticks of a sensor; the first may have looked before the call."""
        before = len(self.ticks(name))
        self.until(lambda: len(self.ticks(name)) >= before + times)

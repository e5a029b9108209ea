"""A platform with daemons: the project's dagster.yaml and workspace.yaml, `dagster-daemon run`, real runs.

Every test has databases of its own on the tests' server, and a base model of 30 000 weights, so that a
retrain takes seconds. Nothing of the daemon is replaced but its clock (`clock.py`), and its runs are ordinary
processes.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from iccm_assets.cli.env import get_dagster_environment as dagster_environment
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, set_clock
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout.deployment import ensure_production
from iccm_assets.settings import PACKAGED_CANARY_SET, Settings, load_settings
from iccm_assets_tests.models.tiny_models import tiny_t5
from iccm_assets_tests.processes import bare_environment, start_dagster, stop
from iccm_assets_tests.retraining.factories import conversation

USERS = 40
# What a random model of 30 000 weights and a test of a minute need; everything else is the default.
SMALL = {
    "ICCM_TRAINING__LEARNING_RATE": "1e-3",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_TRAINING__EMERGENCY_EPOCHS": "1",
    "ICCM_TRAINING__THREADS": "1",
    "ICCM_EVALUATION__MAX_NEW_TOKENS": "16",
    "ICCM_EVALUATION__LATENCY_ITEMS": "5",
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
}
CANARY_ITEMS = 6
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
            "iccm_assets_tests.integration.daemons.clock",
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


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model and a canary set of next to nothing, as settings."""
    home = tmp_path_factory.mktemp("small")
    items = gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().splitlines()
    canary_set = home / "canary.jsonl"
    canary_set.write_text("\n".join(items[:: len(items) // CANARY_ITEMS][:CANARY_ITEMS]) + "\n", "utf-8")
    return {"ICCM_BASE_MODEL": str(tiny_t5(home / "model")), "ICCM_CANARY_SET": str(canary_set)}


@pytest.fixture
def make_platform(
    new_database: Callable[..., str],
    small_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Platform]]:
    """`make_platform(at)`: a platform with the base model in production, whose clock says ``at``."""
    made: list[Platform] = []

    def make(at: datetime, **settings: str) -> Platform:
        own = SMALL | small_models | settings
        own |= {"ICCM_HOME": str(tmp_path / f"iccm-{len(made)}"), "ICCM_DATABASE_URL": plain(new_database())}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        loaded = load_settings()
        for_dagster = dagster_environment(loaded)
        monkeypatch.setenv("DAGSTER_PG_URL", for_dagster["DAGSTER_PG_URL"])
        engine = sa.create_engine(sa.make_url(own["ICCM_DATABASE_URL"]).set(drivername="postgresql+psycopg"))
        instance = dg.DagsterInstance.from_config(for_dagster["DAGSTER_HOME"])
        assert (
            instance.run_storage and instance.event_log_storage and instance.schedule_storage
        )  # connect now
        made.append(Platform(loaded, engine, instance, bare_environment() | own | for_dagster, at))
        with engine.begin() as conn:
            set_clock(conn, shift=at - now(conn))
        ensure_production(engine, ModelStore(loaded.home), loaded)
        return made[-1]

    yield make
    stop([daemon.process for platform in made for daemon in platform.daemons])
    for platform in made:
        platform.instance.dispose()
        platform.engine.dispose()


def plain(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

"""Registries for the tests of the mirror: one in memory that fails at random, and MLflow's own server."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, set_clock
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.registry import versions
from iccm_assets.registry.mlflow_registry import VersionRecord
from iccm_assets.registry.registry_events import record_verdict
from iccm_assets.rollout import controller, deployment, opening, repository
from iccm_assets.rollout.assessment import Assessment
from iccm_assets.rollout.rollback import roll_back_production
from iccm_assets.rollout.transitions import enter_stage
from iccm_assets.settings import Settings

START_SECONDS = 120.0
VERSIONS = 4
_TABLES = (
    *("registry_events", "rollback_events", "deployment_events", "rollouts", "gate_verdicts", "alerts"),
    "model_versions",
)


@dataclass
class MemoryRegistry:
    """A registry whose calls fail at random, before their effect or after it, as a lost answer does."""

    chance: random.Random
    failure_rate: float
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    history: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def ensure_version(self, record: VersionRecord) -> None:
        with self._unreliable():
            self.versions.setdefault(record.version, {}).update(record.tags)

    def add_history(self, key: str, value: str) -> None:
        with self._unreliable():
            assert self.history.setdefault(key, value) == value, f"{key} is another decision"

    def read_history(self) -> dict[str, str]:
        with self._unreliable():
            return dict(self.history)

    def set_alias(self, alias: str, version: str | None) -> None:
        with self._unreliable():
            assert version is None or version in self.versions
            self.aliases.pop(alias, None)
            if version is not None:
                self.aliases[alias] = version

    @contextmanager
    def _unreliable(self) -> Iterator[None]:
        fails = self.chance.random() < self.failure_rate
        if fails and self.chance.random() < 0.5:
            raise ConnectionError("refused")
        yield
        if fails:
            raise ConnectionError("the answer was lost")


@dataclass
class DecisionHistory:
    """A platform without weights, whose decisions are made by the product's own functions."""

    engine: sa.Engine
    settings: Settings
    versions: list[str] = field(default_factory=list)

    def bootstrap(self) -> DecisionHistory:
        """Start anew with one version in production and others that may follow it."""
        with self.engine.begin() as conn:
            # Without the triggers that keep the history of a real platform.
            conn.execute(sa.text("set local session_replication_role = replica"))
            for table in _TABLES:
                conn.execute(sa.text(f"delete from iccm.{table}"))
            conn.execute(sa.text("set local session_replication_role = origin"))
            first = deployment.bootstrap(conn, digest="0" * 64, path="/base", base_model="base")
            self.versions = [first.version]
            for number in range(1, VERSIONS):
                values = {"digest": f"{number}" * 64, "path": f"/{number}", "status": "candidate"}
                made = versions.register_version(conn, parent=first.version, **values)
                self.versions.append(made.version)
        return self

    def do(self, decision: str, number: int, seconds: float) -> None:
        """Let time pass and make a decision; one that is not allowed now changes nothing."""
        with self.engine.begin() as conn:
            set_clock(conn, shift=timedelta(seconds=seconds))
        version = self.versions[number % VERSIONS]
        try:
            getattr(self, f"_{decision}")(version)
        except OperationNotAllowedError:
            return

    def served(self) -> list[Any]:
        """Return the times of all traffic events, and some around them."""
        with self.engine.connect() as conn:
            times = conn.execute(sa.select(t.deployment_events.c.timestamp)).scalars().all()
        return sorted({at + timedelta(seconds=shift) for at in times for shift in (-1e-6, 0.0, 1e-6, 0.4)})

    def _pass(self, version: str) -> None:
        self._verdict(version, "pass")

    def _fail(self, version: str) -> None:
        self._verdict(version, "fail")

    def _verdict(self, version: str, status: str) -> None:
        values = {"canary_set_digest": "c", "orchestra": "o", "judge_version": "j", "improvement": 0.05}
        with self.engine.begin() as conn:
            statement = t.gate_verdicts.insert().values(
                version=version,
                production_version=self.versions[0],
                status=status,
                verdict={"status": status, "reasons": ["improvement: +0.05"]},
                created_at=now(conn),
                **values,
            )
            record_verdict(conn, conn.execute(statement.returning(t.gate_verdicts.c.id)).scalar_one())

    def _promote(self, version: str) -> None:
        deployment.deploy(self.engine, version, actor="user:ada", force_reason="drill")

    def _roll_back(self, _: str) -> None:
        roll_back_production(self.engine, actor="user:ada", reason="slow")

    def _open(self, version: str) -> None:
        with self.engine.begin() as conn:
            deployment.require_no_live_rollout(conn, version)
            opening._open(conn, self.settings, version, actor="user:ada", force_reason="drill")

    def _advance(self, _: str) -> None:
        with self.engine.begin() as conn:
            repository.lock_deployment(conn)
            state = repository.get_live_rollout(conn, lock=True)
            if state is None or state.stage == 3:
                return
            assessment = Assessment(state, state, now(conn))
            following = 1 if state.weight == 0 else state.stage + 1
            decision = enter_stage(assessment, following, "advanced", "healthy")
            assert repository.persist_decision(conn, state, decision)

    def _abort(self, _: str) -> None:
        controller.execute_command(self.engine, self.settings, "abort", actor="user:ada")

    def _take_back(self, _: str) -> None:
        controller.execute_command(self.engine, self.settings, "rollback", actor="user:ada")


DECISIONS = ("pass", "fail", "promote", "roll_back", "open", "advance", "abort", "take_back")


@dataclass
class MlflowServer:
    """MLflow's server on this machine, with its files in a directory; it can be stopped and started again."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db"),
            *("--artifacts-destination", str(self.directory / "artifacts")),
        ]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.directory, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                log_text = (self.directory / "server.log").read_text(errors="replace")[-3000:]
                assert self.process.poll() is None and time.monotonic() < deadline, log_text
                time.sleep(0.3)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def run_mlflow_server(directory: Path) -> Iterator[MlflowServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = MlflowServer(directory, probe.getsockname()[1])
    server.start()
    try:
        yield server
    finally:
        server.stop()

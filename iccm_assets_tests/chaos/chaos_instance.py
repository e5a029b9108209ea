"""A real platform whose processes may be killed: PostgreSQL, code server, daemon, run workers, trainers.

Code server, daemon, and a PostgreSQL that is not the platform's own, are restarted a second after they died,
as by a supervisor. The platform's processes are identified by the ``ICCM_HOME`` in their environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import dagster as dg
import psutil
import sqlalchemy as sa
import yaml
from dagster_postgres.utils import DagsterPostgresException

from iccm_assets.cli.env import DAGSTER_YAML
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.database import create_engine_for
from iccm_assets.db.embedded import process_discovery
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import generate_example
from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import write_canary_items
from iccm_assets_tests.factories.processes import bare_environment, free_port
from iccm_assets_tests.factories.tiny_models import tiny_t5

ROOT = Path(__file__).parents[2]
RUN_WORKER, TRAINER, CODE_SERVER, DAEMON = "run worker", "trainer", "code server", "daemon"
# ALL are all but the database.
DATABASE, ALL = "database", "all"
PROCESSES = (RUN_WORKER, TRAINER, CODE_SERVER, DAEMON)
VICTIMS = (*PROCESSES, DATABASE, ALL)
RESTART_SECONDS = 1.0
HEARTBEAT_SECONDS = 15
ITEMS = 20

# A short retrain and early detection of a death. An emergency's gate passes any harmless candidate.
SHORT = {
    "ICCM_TRIGGERS__MIN_EXAMPLES": "5",
    "ICCM_TRIGGERS__RETRY_MINUTES": "0.05",
    "ICCM_TRIGGERS__DISPATCH_TIMEOUT_SECONDS": "30",
    "ICCM_TRAINING__HEARTBEAT_TIMEOUT_SECONDS": str(HEARTBEAT_SECONDS),
    "ICCM_EVALUATION__CONFIDENCE": "0.51",
    "ICCM_EVALUATION__EMERGENCY_BOUND": "-1",
    "ICCM_EVALUATION__MAX_LATENCY_RATIO": "1000",
    "ICCM_EVALUATION__LATENCY_ITEMS": str(ITEMS),
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
    "COLUMNS": "160",
}
TINY = {"ICCM_TRAINING__LEARNING_RATE": "1e-3", "ICCM_EVALUATION__MAX_NEW_TOKENS": "8"}
MONITORING = {
    "start_timeout_seconds": 40,
    "cancel_timeout_seconds": 20,
    "poll_interval_seconds": 5,
    "free_slots_after_run_end_seconds": 5,
}


@dataclass
class Instance:
    """The platform's home and the processes that are kept running."""

    home: Path
    environment: dict[str, str]
    engine: sa.Engine
    dagster: dg.DagsterInstance
    commands: dict[str, list[str]]
    server: EmbeddedServer
    is_external: bool = False
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    died: dict[str, float] = field(default_factory=dict)

    def supervise(self) -> None:
        """Start the processes that are not running, a second after they died."""
        for name, command in self.commands.items():
            process = self.running.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None and time.monotonic() - self.died.setdefault(name, time.monotonic()) < (
                RESTART_SECONDS
            ):
                continue
            self.died.pop(name, None)
            with (self.home / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    command, env=self.environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
                )
        if self.is_external and self.server.has_died():
            if time.monotonic() - self.died.setdefault(DATABASE, time.monotonic()) >= RESTART_SECONDS:
                self.server.revive()
        else:
            self.died.pop(DATABASE, None)

    def wait(self, condition: Callable[[], bool], seconds: float, every: float = 0.2) -> bool:
        """Supervise until the condition holds or the time is over; return whether it holds."""
        limit = time.monotonic() + seconds
        while not (reached := _holds(condition)) and time.monotonic() < limit:
            self.supervise()
            time.sleep(every)
        return reached

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the platform's running processes by kind."""
        processes: dict[str, list[psutil.Process]] = {name: [] for name in PROCESSES}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                kind = get_process_kind(process.cmdline())
                if kind and process.environ().get("ICCM_HOME") == self.environment["ICCM_HOME"]:
                    processes[kind].append(process)
        return processes

    def kill(self, victim: str) -> int:
        """Kill all processes of a kind, or of every kind, with SIGKILL; return their number."""
        if victim == DATABASE:
            postmaster = process_discovery.find_postmaster(self.server.data)
            if postmaster is not None:
                postmaster.kill()
            return int(postmaster is not None)
        processes = self.processes()
        doomed = [
            process for kind, running in processes.items() if victim in (kind, ALL) for process in running
        ]
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(doomed)

    def stop(self) -> None:
        """End everything, the database last."""
        self.kill(ALL)
        for process in self.running.values():
            process.wait()
        self.dagster.dispose()
        self.engine.dispose()
        self.server.stop()
        for path in [self.home, *self.home.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(self.home, ignore_errors=True)


def _holds(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds; none does that asks a database which is away."""
    try:
        return condition()
    except (sa.exc.OperationalError, sa.exc.InterfaceError, DagsterPostgresException):
        return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def get_process_kind(command: list[str]) -> str | None:
    """Return the kind of process of a command line; the code server spawns run workers."""
    line = " ".join(command)
    if "iccm_assets.training.trainer_worker" in line or "iccm_assets.evaluation.evaluation_worker" in line:
        return TRAINER
    if "multiprocessing.spawn" in line:
        return RUN_WORKER
    if " api grpc " in line:
        return CODE_SERVER
    return DAEMON if "dagster-daemon" in line else None


@contextmanager
def platform(*, tiny: bool = True, external: bool = False) -> Iterator[Instance]:
    """A platform with forty examples in its pool, code server and daemon running; gone afterwards.

    Without ``tiny`` the model is the packaged one, with its own rehearsal. With ``external`` the platform
    knows the URL of its PostgreSQL and nothing else of it.
    """
    home = Path(tempfile.mkdtemp(prefix="iccm-chaos-"))
    environment = bare_environment() | SHORT
    environment |= {
        "ICCM_HOME": str(home / "iccm"),
        "ICCM_CANARY_SET": write_canary_items(home / "canary.jsonl", ITEMS),
    }
    if tiny:
        environment |= TINY | {"ICCM_BASE_MODEL": str(tiny_t5(home / "model"))}
    server = EmbeddedServer(home / ("server" if external else "iccm"))
    if external:
        server.root.parent.mkdir()
        environment["ICCM_DATABASE_URL"] = server.ensure_running()
    started = run([*ICCM, "db", "upgrade" if external else "start"], environment, 600)
    if started.returncode:
        raise RuntimeError(started.stderr[-3000:])
    engine = create_engine_for(run([*ICCM, "db", "url"], environment, 300).stdout.strip())
    shown = run([*ICCM, "env"], environment, 120).stdout
    environment |= dict(line.removeprefix("export ").split("=", 1) for line in shown.splitlines())
    environment["DAGSTER_HOME"] = str(_dagster_home(home))
    os.environ["DAGSTER_PG_URL"] = environment["DAGSTER_PG_URL"]
    made = Instance(
        home,
        environment,
        engine,
        dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]),
        _commands(home, free_port()),
        server,
        external,
    )
    try:
        add_examples(engine, Random(0), 40)
        made.supervise()
        yield made
    finally:
        made.stop()


def _dagster_home(home: Path) -> Path:
    """Write the packaged dagster.yaml with shorter limits for its run monitoring."""
    config = yaml.safe_load(DAGSTER_YAML.read_text("utf-8"))
    config["run_monitoring"] |= MONITORING
    directory = home / "dagster"
    directory.mkdir()
    (directory / "dagster.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return directory


def _commands(home: Path, port: int) -> dict[str, list[str]]:
    workspace = {
        "load_from": [{"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": "iccm_assets"}}]
    }
    (home / "workspace.yaml").write_text(yaml.safe_dump(workspace), "utf-8")
    scripts = Path(sys.executable).parent
    served = ["-h", "127.0.0.1", "-p", str(port), "-m", "iccm_assets_tests.chaos.code_location"]
    return {
        CODE_SERVER: [str(scripts / "dagster"), "api", "grpc", *served],
        DAEMON: [str(scripts / "dagster-daemon"), "run", "-w", str(home / "workspace.yaml")],
    }


def add_examples(engine: sa.Engine, rng: Random, count: int) -> None:
    """Add new conversations of yesterday to the training pool, so that no candidate equals another."""
    with engine.begin() as conn:
        at: datetime = now(conn) - timedelta(days=1)
        for _ in range(count):
            module = generate_example(sorted(FAMILIES)[rng.randrange(len(FAMILIES))], rng)
            session = f"session-{rng.getrandbits(64):x}"
            conversation_id = conn.execute(
                t.conversations.insert()
                .values(session_id=session, timestamp=at, origin="simulated")
                .returning(t.conversations.c.id)
            ).scalar_one()
            example = {
                "conversation_id": conversation_id,
                "day": at.date(),
                "session_id": session,
                "source_code": module.source_code,
                "requirements": module.requirements,
                "test_pass_rate": 1.0,
                "implementation_variance": 0.0,
                "quality_score": 1.0,
                "content_sha256": f"{conversation_id:064d}",
                "evidence": "cases",
                "test_suite_origin": "attached",
            }
            conn.execute(t.filtered_conversations.insert().values(**example))
            vector = [rng.gauss(0, 1) for _ in range(384)]  # no two alike
            conn.execute(t.phase4_training_data.insert().values(**example, embedding=vector))

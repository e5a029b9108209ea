"""Gateway processes with stub models, and the rows of the database that control their routing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.notify import notify_routing

SOURCE = "def add(a, b):\n    return a + b\n"


def database_url(engine: sa.Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


class RunningGateway:
    """One gateway process and a client on it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.client = httpx2.Client(base_url=url, timeout=30)

    def request(self, session: str | None = None, **more: Any) -> httpx2.Response:
        body = {"source_code": SOURCE, **({"session_id": session} if session else {}), **more}
        return self.client.post("/v1/requirements", json=body)

    def routing(self) -> dict[str, Any]:
        return self.client.get("/v1/routing").json()

    def effective_weight(self) -> float:
        """The canary arm's traffic fraction in force; 0 without a rollout."""
        rollout = self.routing()["rollout"]
        return rollout["effective_weight"] if rollout else 0.0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def eventually(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Return the result of a condition once it is true; the generous deadline only ends a broken test."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
            if result:
                return result
        except httpx2.HTTPError:
            result = None
        assert time.monotonic() < deadline, what or f"not within {seconds} s: {result!r}"
        time.sleep(0.05)


@contextmanager
def gateway(
    url: str | None, home: Path, *, faults: dict[str, str] | None = None, seconds: float = 0.0,
    hold: Path | None = None, ready: bool = True, port: int = 0, **variables: str,
) -> Iterator[RunningGateway]:  # fmt: skip
    """Run a gateway process with stub models on this database, without a URL on the home's embedded one.

    None of the models responds while the file `hold` exists.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"gateway-{time.monotonic_ns()}.log"
    environment = {
        **os.environ, "ICCM_HOME": str(home),
        "ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS": "50",
        "ICCM_GATEWAY__POLL_INTERVAL_SECONDS": "0.5", **variables,
    }  # fmt: skip
    environment.pop("ICCM_DATABASE_URL", None)
    if url is not None:
        environment["ICCM_DATABASE_URL"] = url
    command = [sys.executable, "-m", "benchmarks.stub_backend", "--faults", json.dumps(faults or {})]
    command += ["--seconds", str(seconds), "--port", str(port)]
    command += ["--hold", str(hold)] if hold else []
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stream)
    assert process.stdout is not None
    address = process.stdout.readline().decode().strip()
    assert address.startswith("http"), log.read_text()
    running = RunningGateway(process, address, log)
    try:
        if ready:
            eventually(lambda: running.client.get("/readyz").status_code == 200, what="never ready")
        yield running
    finally:
        running.client.close()
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def version(conn: sa.Connection, name: str, status: str) -> None:
    conn.execute(
        t.model_versions.insert().values(version=name, status=status, digest=f"d-{name}", path=f"/m/{name}")
    )


def rollout(conn: sa.Connection, weight: float, lease: float = 600.0, **more: Any) -> int:
    """Insert a live rollout of v2 against v1, as the controller would."""
    values = {
        "candidate": "v2", "production": "v1", "weight": weight, **more,
        "lease_until": sa.text(f"iccm.now() + interval '{lease} seconds'"),
    }  # fmt: skip
    rollout_id = conn.execute(t.rollouts.insert().values(values).returning(t.rollouts.c.id)).scalar_one()
    notify_routing(conn)
    return int(rollout_id)


def set_weight(engine: sa.Engine, weight: float, lease: float = 600.0, **more: Any) -> None:
    with engine.begin() as conn:
        conn.execute(
            t.rollouts.update().values(
                weight=weight, lease_until=sa.text(f"iccm.now() + interval '{lease} seconds'"), **more
            )
        )
        notify_routing(conn)


def rows(engine: sa.Engine, query: str, **values: Any) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.text(query), values))

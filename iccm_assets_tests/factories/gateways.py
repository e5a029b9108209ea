"""Gateway processes with stub models, and the rows of the database that control their routing."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from iccm_assets.db import tables as t
from iccm_assets.db.notify import notify_routing
from iccm_assets_tests.factories.forked_processes import ForkedProcess, start

TIMEOUT_SECONDS = 120.0  # only ends a broken test
SUITE = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}
SOURCE = "def add(a, b):\n    return a + b\n"


def database_url(engine: sa.Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


class RunningGateway:
    """One gateway process and a client on it."""

    def __init__(self, process: ForkedProcess, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.client = httpx2.Client(base_url=url, timeout=TIMEOUT_SECONDS, verify=False)

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
        self.process.terminate()
        return self.process.wait(timeout=TIMEOUT_SECONDS)


def eventually(condition: Callable[[], Any], seconds: float = TIMEOUT_SECONDS, what: str = "") -> Any:
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
    hold: Path | None = None, ready: bool = True, port: int = 0, lookup_seconds: float | None = None,
    **variables: str,
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
    arguments = ["--faults", json.dumps(faults or {}), "--seconds", str(seconds), "--port", str(port)]
    arguments += ["--hold", str(hold)] if hold else []
    arguments += ["--lookup-seconds", str(lookup_seconds)] if lookup_seconds else []
    reading, writing = os.pipe()
    with log.open("wb") as stream:
        process = start("benchmarks.stub_backend:main", arguments, environment, stdout=writing, stderr=stream)
    os.close(writing)
    with open(reading, encoding="utf-8") as output:
        address = output.readline().strip()
        assert address.startswith("http"), log.read_text()
        running = RunningGateway(process, address, log)
        try:
            if ready:
                eventually(lambda: running.client.get("/readyz").status_code == 200, what="never ready")
            yield running
        finally:
            running.client.close()
            process.kill()
            process.wait()


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


def two_versions(engine: sa.Engine) -> None:
    """v1 in production, v2 a canary."""
    with engine.begin() as conn:
        version(conn, "v1", "production")
        version(conn, "v2", "canary")


def stored(engine: sa.Engine) -> set[str]:
    return {row[0] for row in rows(engine, "select request_id from iccm.requests")}


class Traffic:
    """Requests from several threads until it is stopped, with the outcome of each."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.acknowledged: set[str] = set()
        self.statuses: Counter[object] = Counter()
        self._url, self._stopping = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        # A connection each time: one kept alive may be closed by the server just as it is used again.
        while not self._stopping.is_set():
            try:
                # No request uses TLS: without `verify=False` each would load the certificate authorities.
                response = httpx2.post(
                    f"{self._url}/v1/requirements", json={"source_code": SOURCE}, timeout=30, verify=False
                )
            except httpx2.ConnectError:
                self.statuses["refused"] += 1
                self._stopping.wait(0.05)  # the next ones would be refused, too
                continue
            except httpx2.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[response.status_code] += 1
            if response.status_code == 200:
                self.acknowledged.add(response.json()["request_id"])


@contextmanager
def gateway_with_traffic(engine: sa.Engine, home: Path) -> Iterator[RunningGateway]:
    """A gateway with a rollout at 50 %, requests on both arms, and scores; it reads the database often."""
    url = database_url(engine)
    with engine.begin() as conn:
        rollout(conn, 0.5, stage=2)
    with gateway(url, home, ICCM_GATEWAY__DATABASE_METRICS_INTERVAL_SECONDS="1") as running:
        eventually(lambda: running.routing()["rollout"]["effective_weight"] == 0.5, TIMEOUT_SECONDS)
        for number in range(24):
            assert running.request(f"s{number}", request_id=f"r{number}", tests=SUITE).status_code == 200
        assert running.client.post("/v1/feedback", json={"request_id": "r0", "rating": 1}).status_code == 200
        stored = "select from iccm.requirements where kind = 'model' union all select from iccm.feedback"
        eventually(lambda: len(rows(engine, stored)) == 25, TIMEOUT_SECONDS)
        with engine.begin() as conn:
            r = t.requirements
            conn.execute(
                r.update().where(r.c.kind == "model").values(
                    test_pass_rate=sa.case((r.c.arm == "canary", 0.5), else_=1.0),
                    scored_at=sa.text("iccm.now()"), implementation_variance=0.02, api_compatibility=0.75,
                )
            )  # fmt: skip
        yield running


def metric_samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and the values of their labels, in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

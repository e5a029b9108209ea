"""Killed processes, a database that goes away, too many requests: nothing acknowledged is lost (G5, G6)."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.gateway.conftest import two_versions
from iccm_assets_tests.gateway.factories import (
    SOURCE,
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
    set_weight,
)


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
                response = httpx2.post(
                    f"{self._url}/v1/requirements", json={"source_code": SOURCE}, timeout=30
                )
            except httpx2.ConnectError:
                self.statuses["refused"] += 1
                continue
            except httpx2.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[response.status_code] += 1
            if response.status_code == 200:
                self.acknowledged.add(response.json()["request_id"])


def stored(engine: sa.Engine) -> set[str]:
    return {row[0] for row in rows(engine, "select request_id from iccm.requests")}


def test_a_killed_process_loses_nothing_acknowledged_and_the_other_process_serves(fresh, tmp_path):
    slow = {"ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS": "60000"}  # its responses stay in its spool
    with (
        gateway(database_url(fresh), tmp_path, **slow) as killed,
        gateway(database_url(fresh), tmp_path) as other,
    ):
        acknowledged = {killed.request(f"s-{number}").json()["request_id"] for number in range(40)}
        assert not stored(fresh) & acknowledged
        killed.kill()
        assert other.request("s-1").status_code == 200
        # The other process finds the dead one's spool by itself.
        eventually(lambda: stored(fresh) >= acknowledged)
        assert len(stored(fresh)) == 41
        assert rows(fresh, "select count(*) from iccm.requirements where kind = 'model'")[0][0] == 41


def test_sigterm_under_load_finishes_requests_in_flight_and_flushes_the_spool(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path, seconds=0.2) as running:
        traffic = Traffic(running.url, threads=8)
        eventually(lambda: traffic.statuses[200] >= 20)
        assert running.terminate() == 0
        traffic.stop()
        assert set(traffic.statuses) <= {200, "refused"}
        assert stored(fresh) == traffic.acknowledged
        assert rows(fresh, "select from iccm.gateway_replicas") == []
        assert not list((tmp_path / "spool").iterdir())


@pytest.fixture
def own_server(tmp_path):
    """A database server of the test's own, to be stopped."""
    server = EmbeddedServer(tmp_path / "server", durable=False)
    engine = create_engine_for(server.ensure_running())
    upgrade(engine)
    two_versions(engine)
    yield server, engine
    engine.dispose()
    server.stop()


def test_without_the_database_production_keeps_serving_and_everything_is_stored_later(
    own_server, tmp_path: Path
):
    server, engine = own_server
    with gateway(server.ensure_running(), tmp_path) as running:
        with engine.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: running.effective_weight() == 1.0)
        set_weight(engine, 1.0, lease=3.0)
        eventually(lambda: running.routing()["rollout"]["lease_seconds_left"] <= 3)
        traffic = Traffic(running.url, threads=2)
        eventually(lambda: traffic.statuses[200] >= 10)
        engine.dispose()
        assert server.stop()
        eventually(lambda: not running.routing()["database"])
        eventually(
            lambda: running.request().json()["arm"] == "production"
        )  # the lease ended without a database
        away = running.client.post("/v1/conversations", json={"session_id": "s", "messages": []})
        assert away.status_code == 503 and "Retry-After" in away.headers
        before = traffic.statuses[200]
        eventually(lambda: traffic.statuses[200] >= before + 20)
        server.ensure_running()
        eventually(lambda: running.routing()["database"])
        traffic.stop()
        assert set(traffic.statuses) == {200}
        eventually(lambda: stored(engine) >= traffic.acknowledged)


def test_too_many_requests_are_rejected_at_once_and_the_gateway_recovers(fresh, tmp_path):
    batch = queue = 4
    limits = {"ICCM_GATEWAY__QUEUE_SIZE": str(queue), "ICCM_GATEWAY__BATCH_SIZE": str(batch)}
    patient = {"ICCM_GATEWAY__TIMEOUT_SECONDS": "100", "ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "90"}
    hold = tmp_path / "hold"
    hold.touch()
    with gateway(database_url(fresh), tmp_path, hold=hold, **limits, **patient) as running:
        with ThreadPoolExecutor(30) as pool:
            asked = [pool.submit(running.request, f"s-{number}") for number in range(30)]
            # Requests beyond the queue are rejected while the model has not responded to any.
            early = eventually(lambda: _done(asked, 30 - batch - queue))
            assert {response.status_code for response in early} == {503}
            assert all(int(response.headers["Retry-After"]) >= 1 for response in early)
            hold.unlink()
        statuses = Counter(response.result().status_code for response in asked)
        assert set(statuses) == {200, 503} and queue <= statuses[200] <= batch + queue
        assert running.request("after").status_code == 200
        eventually(lambda: len(stored(fresh)) == 31)
        statuses_stored = Counter(row[0] for row in rows(fresh, "select status from iccm.requests"))
        assert statuses_stored == {"ok": statuses[200] + 1, "rejected": statuses[503]}


def _done(asked: list[Future[httpx2.Response]], least: int) -> list[httpx2.Response]:
    responses = [future.result() for future in asked if future.done()]
    return responses if len(responses) >= least else []


def test_a_hanging_production_model_causes_a_timeout(fresh, tmp_path):
    limits = {"ICCM_GATEWAY__TIMEOUT_SECONDS": "0.6", "ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "0.3"}
    with gateway(database_url(fresh), tmp_path, faults={"v1": "hang"}, **limits) as running:
        response = running.request("s", request_id="r")
        assert (
            response.status_code == 504 and response.json()["detail"] == "the model did not respond in time"
        )
        eventually(
            lambda: rows(fresh, "select from iccm.requests where request_id = 'r' and status = 'timeout'")
        )


def test_a_full_spool_rejects_requests_instead_of_losing_them(own_server, tmp_path):
    server, engine = own_server
    with gateway(server.ensure_running(), tmp_path, ICCM_GATEWAY__SPOOL_MAX_MIB="0.005") as running:
        engine.dispose()
        server.stop()
        acknowledged = 0
        while (response := running.request()).status_code == 200:
            acknowledged += 1
            assert acknowledged < 100
        assert response.status_code == 503 and "could not be recorded" in response.json()["detail"]
        server.ensure_running()
        eventually(lambda: running.request().status_code == 200)
        eventually(lambda: len(stored(engine)) >= acknowledged + 1)

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
from iccm_assets_tests.gateway.factories import SOURCE, eventually, gateway, rollout, rows, set_weight
from iccm_assets_tests.gateway.test_traffic import effective, url_of


class Traffic:
    """Requests from several threads until it is stopped, and what became of each."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.answered: set[str] = set()
        self.statuses: Counter[object] = Counter()
        self.late: list[float] = []
        self._url, self._over = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        self._over.set()
        for one in self._threads:
            one.join(60)

    def _run(self) -> None:
        # A connection each time: one kept alive may be closed by the server just as it is used again.
        while not self._over.is_set():
            try:
                reply = httpx2.post(f"{self._url}/v1/requirements", json={"source_code": SOURCE}, timeout=30)
            except httpx2.ConnectError:
                self.statuses["refused"] += 1
                continue
            except httpx2.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[reply.status_code] += 1
            if reply.status_code == 200:
                self.answered.add(reply.json()["request_id"])


def stored(engine: sa.Engine) -> set[str]:
    return {one[0] for one in rows(engine, "select request_id from iccm.requests")}


def test_a_killed_process_loses_nothing_it_had_acknowledged_and_the_other_serves(fresh, tmp_path):
    slow = {"ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS": "60000"}  # what it answers stays in its spool
    with gateway(url_of(fresh), tmp_path, **slow) as one, gateway(url_of(fresh), tmp_path) as other:
        acknowledged = {one.ask(f"s-{number}").json()["request_id"] for number in range(40)}
        assert not stored(fresh) & acknowledged
        one.kill()
        assert other.ask("s-1").status_code == 200
        # The other process finds the dead one's spool by itself.
        eventually(lambda: stored(fresh) >= acknowledged)
        assert len(stored(fresh)) == 41
        assert rows(fresh, "select count(*) from iccm.requirements where kind = 'model'")[0][0] == 41


def test_sigterm_under_load_finishes_what_is_in_flight_and_delivers_the_spool(fresh, tmp_path):
    with gateway(url_of(fresh), tmp_path, seconds=0.2) as running:
        traffic = Traffic(running.url, threads=8)
        eventually(lambda: traffic.statuses[200] >= 20)
        assert running.end() == 0
        traffic.stop()
        assert set(traffic.statuses) <= {200, "refused"}
        assert stored(fresh) == traffic.answered
        assert rows(fresh, "select from iccm.gateway_replicas") == []
        assert not list((tmp_path / "spool").iterdir())


@pytest.fixture
def own_server(tmp_path):
    """A database server of the test's own, to be stopped."""
    server = EmbeddedServer(tmp_path / "server", durable=False)
    made = create_engine_for(server.ensure_running())
    upgrade(made)
    two_versions(made)
    yield server, made
    made.dispose()
    server.stop()


def test_without_its_database_production_goes_on_answering_and_everything_is_stored_afterwards(
    own_server, tmp_path: Path
):
    server, engine = own_server
    with gateway(server.ensure_running(), tmp_path) as running:
        with engine.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: effective(running) == 1.0)
        set_weight(engine, 1.0, lease=3.0)
        eventually(lambda: running.routing()["rollout"]["lease_seconds_left"] <= 3)
        traffic = Traffic(running.url, threads=2)
        eventually(lambda: traffic.statuses[200] >= 10)
        engine.dispose()
        assert server.stop()
        eventually(lambda: not running.routing()["database"])
        eventually(lambda: running.ask().json()["arm"] == "production")  # the lease ended without a database
        away = running.client.post("/v1/conversations", json={"session_id": "s", "messages": []})
        assert away.status_code == 503 and "Retry-After" in away.headers
        before = traffic.statuses[200]
        eventually(lambda: traffic.statuses[200] >= before + 20)
        server.ensure_running()
        eventually(lambda: running.routing()["database"])
        traffic.stop()
        assert set(traffic.statuses) == {200}
        eventually(lambda: stored(engine) >= traffic.answered)


def test_too_many_requests_are_refused_at_once_and_the_gateway_recovers(fresh, tmp_path):
    batch = queue = 4
    limits = {"ICCM_GATEWAY__QUEUE_SIZE": str(queue), "ICCM_GATEWAY__BATCH_SIZE": str(batch)}
    patient = {"ICCM_GATEWAY__TIMEOUT_SECONDS": "100", "ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "90"}
    hold = tmp_path / "hold"
    hold.touch()
    with gateway(url_of(fresh), tmp_path, hold=hold, **limits, **patient) as running:
        with ThreadPoolExecutor(30) as pool:
            asked = [pool.submit(running.ask, f"s-{number}") for number in range(30)]
            # All that found no place are told so while the model still has not answered anybody.
            early = eventually(lambda: _done(asked, 30 - batch - queue))
            assert {reply.status_code for reply in early} == {503}
            assert all(int(reply.headers["Retry-After"]) >= 1 for reply in early)
            hold.unlink()
        statuses = Counter(reply.result().status_code for reply in asked)
        assert set(statuses) == {200, 503} and queue <= statuses[200] <= batch + queue
        assert running.ask("after").status_code == 200
        eventually(lambda: len(stored(fresh)) == 31)
        booked = Counter(one[0] for one in rows(fresh, "select status from iccm.requests"))
        assert booked == {"ok": statuses[200] + 1, "rejected": statuses[503]}


def _done(asked: list[Future[httpx2.Response]], least: int) -> list[httpx2.Response]:
    replies = [one.result() for one in asked if one.done()]
    return replies if len(replies) >= least else []


def test_a_production_model_that_hangs_is_a_timeout_and_not_a_hang(fresh, tmp_path):
    limits = {"ICCM_GATEWAY__TIMEOUT_SECONDS": "0.6", "ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "0.3"}
    with gateway(url_of(fresh), tmp_path, faults={"v1": "hang"}, **limits) as running:
        reply = running.ask("s", request_id="r")
        assert reply.status_code == 504 and reply.json()["detail"] == "the model did not respond in time"
        eventually(
            lambda: rows(fresh, "select from iccm.requests where request_id = 'r' and status = 'timeout'")
        )


def test_a_full_spool_refuses_instead_of_forgetting(own_server, tmp_path):
    server, engine = own_server
    with gateway(server.ensure_running(), tmp_path, ICCM_GATEWAY__SPOOL_MAX_MIB="0.005") as running:
        engine.dispose()
        server.stop()
        answered = 0
        while (reply := running.ask()).status_code == 200:
            answered += 1
            assert answered < 100
        assert reply.status_code == 503 and "could not be recorded" in reply.json()["detail"]
        server.ensure_running()
        eventually(lambda: running.ask().status_code == 200)
        eventually(lambda: len(stored(engine)) >= answered + 1)

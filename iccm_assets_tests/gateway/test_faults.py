"""Killed processes, a database that goes away, too many requests: nothing acknowledged is lost (G5, G6)."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.factories.gateways import (
    SOURCE,
    Traffic,
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
    set_weight,
    stored,
    two_versions,
)


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


def test_sigterm_serves_requests_that_have_only_begun_to_arrive(fresh, tmp_path):
    body = json.dumps({"source_code": SOURCE}).encode()
    lines = [b"POST /v1/requirements HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    request = b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
    with gateway(database_url(fresh), tmp_path) as running:
        address = (httpx2.URL(running.url).host, httpx2.URL(running.url).port)
        begun = [0, 1, 20, 120, len(request) - 1]  # nothing, half a line, half a header, half a body
        connections = [socket.create_connection(address, timeout=60) for _ in begun]
        idle = socket.create_connection(address, timeout=60)
        for connection, size in zip(connections, begun, strict=True):
            connection.sendall(request[:size])
        eventually(lambda: "iccm_gateway" in running.client.get("/metrics").text)
        running.process.terminate()
        eventually(lambda: refuses_connections(address))
        for connection, size in zip(connections, begun, strict=True):
            connection.sendall(request[size:])
        responses = [b"".join(iter(partial(connection.recv, 65_536), b"")) for connection in connections]
        assert [response.split(b"\r\n")[0] for response in responses] == [b"HTTP/1.1 200 OK"] * len(begun)
        assert idle.recv(1) == b""
        assert running.process.wait(60) == 0
        assert len(stored(fresh)) == len(begun)


def refuses_connections(address) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


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
            futures = [pool.submit(running.request, f"s-{number}") for number in range(30)]
            # Requests beyond the queue are rejected while the model has not responded to any.
            early = eventually(lambda: _done(futures, 30 - batch - queue))
            assert {response.status_code for response in early} == {503}
            assert all(int(response.headers["Retry-After"]) >= 1 for response in early)
            hold.unlink()
        statuses = Counter(response.result().status_code for response in futures)
        assert set(statuses) == {200, 503} and queue <= statuses[200] <= batch + queue
        assert running.request("after").status_code == 200
        eventually(lambda: len(stored(fresh)) == 31)
        statuses_stored = Counter(row[0] for row in rows(fresh, "select status from iccm.requests"))
        assert statuses_stored == {"ok": statuses[200] + 1, "rejected": statuses[503]}


def _done(futures: list[Future[httpx2.Response]], least: int) -> list[httpx2.Response]:
    responses = [future.result() for future in futures if future.done()]
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

"""A running gateway brings its embedded server back, unless it was stopped on purpose."""

from __future__ import annotations

import signal
import time

import pytest

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded import process_discovery
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.factories.gateways import (
    Traffic,
    database_url,
    eventually,
    gateway,
    rows,
    stored,
    two_versions,
)


@pytest.fixture
def embedded(tmp_path):
    """The embedded server of a home of the test's own, with two versions."""
    server = EmbeddedServer(tmp_path)
    engine = create_engine_for(server.ensure_running())
    upgrade(engine)
    two_versions(engine)
    yield server, engine
    engine.dispose()
    server.stop()


def kill_postmaster(server: EmbeddedServer) -> int:
    process = process_discovery.find_postmaster(server.data)
    assert process is not None
    process.send_signal(signal.SIGKILL)
    return process.pid


def count_postmasters(server: EmbeddedServer) -> int:
    servers = process_discovery.find_servers(server.data)
    pids = {process.pid for process in servers}
    return sum(process.ppid() not in pids for process in servers)


def readiness(running) -> str:
    return running.client.get("/readyz").json()["database"]


@pytest.mark.slow
def test_two_running_gateways_bring_a_killed_server_back_once_and_lose_nothing(embedded, tmp_path):
    server, engine = embedded
    with gateway(None, tmp_path) as running, gateway(None, tmp_path) as other:
        assert readiness(running) == readiness(other) == "connected"
        traffic = Traffic(running.url, threads=2)
        eventually(lambda: traffic.statuses[200] >= 5)
        for _ in range(2):
            killed = kill_postmaster(server)
            eventually(lambda: server.running_url() is not None)
            eventually(lambda: readiness(running) == readiness(other) == "connected")
            assert count_postmasters(server) == 1
            assert process_discovery.find_postmaster(server.data).pid != killed
        traffic.stop()
        assert set(traffic.statuses) == {200}
        engine.dispose()
        eventually(lambda: stored(engine) >= traffic.acknowledged)
        assert len(rows(engine, "select from iccm.requests")) == len(traffic.acknowledged)
        lines = running.log.read_text() + other.log.read_text()
        assert lines.count("the embedded PostgreSQL runs again") == 2


@pytest.mark.slow
def test_a_running_gateway_leaves_a_server_alone_that_was_stopped_on_purpose(embedded, tmp_path):
    server, engine = embedded
    with gateway(None, tmp_path) as running:
        engine.dispose()
        assert server.stop()
        eventually(lambda: "`iccm db start` starts it" in readiness(running))
        time.sleep(4)  # several checks of the watch
        assert server.running_url() is None
        server.ensure_running()
        eventually(lambda: readiness(running) == "connected")
        # Once started again, it is watched again.
        kill_postmaster(server)
        eventually(lambda: server.running_url() is not None)
    assert "died, starting it again" in running.log.read_text()


def test_a_server_stopped_after_it_died_stays_stopped(embedded, tmp_path):
    server, engine = embedded
    engine.dispose()
    kill_postmaster(server)
    eventually(server.has_died)
    server.stop()
    assert not server.has_died() and server.was_stopped()
    assert server.revive() is None and server.running_url() is None


@pytest.mark.slow
def test_a_gateway_with_a_database_url_never_starts_a_server(embedded, tmp_path):
    server, engine = embedded
    with gateway(database_url(engine), tmp_path) as running:
        engine.dispose()
        kill_postmaster(server)
        eventually(lambda: readiness(running) == "away: the gateway keeps trying to connect")
        time.sleep(4)  # several checks, if there were a watch
        assert server.running_url() is None

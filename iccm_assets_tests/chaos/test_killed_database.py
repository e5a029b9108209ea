"""PostgreSQL is killed under load: answers go on, and each row that was acknowledged is there once.

Three kills of the embedded and of an external server; DATABASE_KILLS says how many, CHAOS_SEED begins
elsewhere. With `-s`, a line a kill.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.chaos.database_kills import (
    Developers,
    find_differences,
    play_kills,
    readiness,
    restarted,
    summarize,
)
from iccm_assets_tests.factories.gateways import database_url, eventually, gateway, two_versions

KILLS = int(os.environ.get("DATABASE_KILLS", "3"))
SEED = int(os.environ.get("CHAOS_SEED", "1373"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 120 * KILLS)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, with the schema and two versions."""
    made = EmbeddedServer(tmp_path / "server")
    made.root.parent.mkdir()
    engine = create_engine_for(made.ensure_running())
    upgrade(engine)
    two_versions(engine)
    engine.dispose()
    yield made
    made.stop()


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_kills_of_postgresql_lose_and_double_no_acknowledged_row_while_answers_go_on(
    server: EmbeddedServer, tmp_path: Path, kind: str
) -> None:
    engine = create_engine_for(server.ensure_running())
    is_external = kind == "external"
    # The embedded server is that of the gateway's home; of the external one it knows the URL alone.
    home, url = (tmp_path / "home", database_url(engine)) if is_external else (server.root.parent, None)
    with (
        restarted(server) if is_external else nullcontext(),
        gateway(url, home, seconds=0.1) as running,
    ):
        developers = Developers(running.url)
        try:
            eventually(lambda: len(developers.requests) >= 5)
            kills = []
            for kill in play_kills(server, developers, KILLS, Random(SEED)):
                sys.stdout.write(kill.line() + "\n")
                sys.stdout.flush()
                assert kill.answers > 0
                kills.append(kill)
        finally:
            developers.stop()
        assert set(developers.outcomes) == {200}
        eventually(lambda: readiness(running) == "connected")
        eventually(lambda: not find_differences(engine, developers), what="rows are missing or doubled")
        sys.stdout.write(summarize(kills, developers) + "\n")
    plant_differences(engine, developers)
    engine.dispose()


def plant_differences(engine: sa.Engine, developers: Developers) -> None:
    """Lose a request and store another one twice in its conversation: both have to be noticed."""
    lost, doubled = next(iter(developers.requests)), next(reversed(developers.requests))
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.requests where request_id = :id"), {"id": lost})
        conn.execute(
            sa.text("update iccm.conversations set content = content || content where session_id = :session"),
            {"session": developers.requests[doubled]},
        )
    listed = "\n".join(find_differences(engine, developers))
    assert f"1 requests lost: ['{lost}']" in listed
    assert "1 conversations without a question and an answer for each request" in listed

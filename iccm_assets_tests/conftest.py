"""What all tests share: one throw-away PostgreSQL server, and a fresh, migrated database per test."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import Settings, load_settings

# A console keeps the width it finds when it is made, which is at the first import of the command line, by
# whatever test comes first.
os.environ["COLUMNS"] = "200"

_PREFIX = f"iccm-tests-{os.geteuid()}-"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (``-n``) the tests of a file stay together, and those of a marked group do.

    What a module or a group shares (a gateway, a platform that has lived) is then made once.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """Keep what earlier tests left out of garbage collections, for tests that compare CPU times.

    In a session of thousands of tests a full collection takes longer than what they measure.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server for this test session: not durable, so quick; the URL is that of its main database."""
    _end_servers_of_killed_sessions()
    home = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getpid()}"
    server = EmbeddedServer(home, durable=False)
    url = server.ensure_running()
    try:
        engine = create_engine_for(url)
        upgrade(engine)
        engine.dispose()
        yield url
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def new_database(server_url: str) -> Iterator[Callable[..., str]]:
    """Makes databases that are dropped after the test: `new_database()` migrated, `(empty=True)` bare."""
    made: list[str] = []

    def make(*, empty: bool = False) -> str:
        name = f"test_{secrets.token_hex(6)}"
        template = "template0" if empty else "iccm"
        with psycopg.connect(_maintenance(server_url), autocommit=True) as conn:
            conn.execute(f"create database {name} template {template}")
        made.append(name)
        return sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)

    yield make
    with psycopg.connect(_maintenance(server_url), autocommit=True) as conn:
        for name in made:
            conn.execute(f"drop database if exists {name}_dagster with (force)")
            conn.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
def engine(new_database: Callable[..., str]) -> Iterator[sa.Engine]:
    """An engine on a fresh, migrated database of its own."""
    made = create_engine_for(new_database())
    yield made
    made.dispose()


@pytest.fixture
def settings(engine: sa.Engine, tmp_path: Path) -> Settings:
    """Settings of a platform with an empty home and the database of `engine`."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return load_settings(home=tmp_path / "home", database_url=url)


def _maintenance(url: str) -> str:
    return sa.make_url(url).set(database="postgres").render_as_string(hide_password=False)


def _end_servers_of_killed_sessions() -> None:
    for home in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = home.name.removeprefix(_PREFIX)
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            EmbeddedServer(home).stop()
            shutil.rmtree(home, ignore_errors=True)

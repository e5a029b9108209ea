"""Starting a gateway costs seconds: the tests of a module share one, and use names of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets_tests.gateway import factories


@pytest.fixture(scope="module")
def engine(server_url: str) -> Iterator[sa.Engine]:
    """The module's database, with v1 in production and v2 a candidate."""
    name = f"gateway_{secrets.token_hex(6)}"
    maintenance = sa.make_url(server_url).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(maintenance, autocommit=True) as conn:
        conn.execute(f"create database {name} template iccm")
    created = create_engine_for(
        sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
    )
    two_versions(created)
    yield created
    created.dispose()
    with psycopg.connect(maintenance, autocommit=True) as conn:
        conn.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(scope="module")
def url(engine: sa.Engine) -> str:
    return factories.database_url(engine)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def served(url: str, home) -> Iterator[factories.RunningGateway]:
    """A gateway the tests of a module share."""
    with factories.gateway(url, home) as running:
        yield running


@pytest.fixture
def fresh(new_database: Callable[..., str]) -> Iterator[sa.Engine]:
    """A database of the test's own, with the same two versions."""
    created = create_engine_for(new_database())
    two_versions(created)
    yield created
    created.dispose()


def two_versions(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        factories.version(conn, "v1", "production")
        factories.version(conn, "v2", "canary")

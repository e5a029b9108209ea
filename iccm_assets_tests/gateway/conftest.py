"""Starting a gateway costs seconds: the tests of a module share one, and use names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets_tests.factories import gateways
from iccm_assets_tests.factories.databases import DatabasePool


@pytest.fixture(scope="module")
def engine(databases: DatabasePool) -> Iterator[sa.Engine]:
    """The module's database, with v1 in production and v2 a candidate."""
    url = databases.take()
    created = create_engine_for(url)
    gateways.two_versions(created)
    yield created
    created.dispose()
    databases.drop([url])


@pytest.fixture(scope="module")
def url(engine: sa.Engine) -> str:
    return gateways.database_url(engine)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def served(url: str, home) -> Iterator[gateways.RunningGateway]:
    """A gateway the tests of a module share."""
    with gateways.gateway(url, home) as running:
        yield running


@pytest.fixture
def fresh(new_database: Callable[..., str]) -> Iterator[sa.Engine]:
    """A database of the test's own, with the same two versions."""
    created = create_engine_for(new_database())
    gateways.two_versions(created)
    yield created
    created.dispose()

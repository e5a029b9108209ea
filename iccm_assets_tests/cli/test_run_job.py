"""Jobs that a command runs in its own process, on a Dagster instance in PostgreSQL."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.cli.run_job import run_daily_data
from iccm_assets.db.database import create_engine_for
from iccm_assets.defs import resources
from iccm_assets.settings import Settings, get_settings


@pytest.fixture
def home(
    settings: Settings, new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A platform in the environment, with a database of Dagster's own; yields its URL."""
    url = new_database()
    for name in ("DAGSTER_HOME", "DAGSTER_PG_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", str(settings.database_url))
    monkeypatch.setenv("ICCM_DAGSTER_DATABASE_URL", url)
    get_settings.cache_clear()
    resources._engine.cache_clear()
    yield url
    resources._engine().dispose()
    resources._engine.cache_clear()
    get_settings.cache_clear()


@pytest.fixture
def connections() -> Iterator[list[str]]:
    """The new connections of Dagster's driver."""
    opened: list[str] = []

    def count(connection: object, record: object) -> None:
        if type(connection).__module__.startswith("psycopg2"):
            opened.append(type(connection).__name__)

    sa.event.listen(sa.pool.Pool, "connect", count)
    yield opened
    sa.event.remove(sa.pool.Pool, "connect", count)


@pytest.mark.timeout(600)
def test_a_daily_run_shares_few_connections_and_survives_that_they_are_closed(
    home: str, connections: list[str]
) -> None:
    day = datetime.now(UTC).date() - timedelta(days=1)
    assert run_daily_data(day, day, title="first").success
    connections.clear()
    engine = create_engine_for(home)
    with engine.connect() as conn:
        conn.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid != pg_backend_pid()"
            )
        )
    engine.dispose()
    assert run_daily_data(day, day, title="second").success
    assert 0 < len(connections) <= 20

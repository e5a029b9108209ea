"""Access to the database: one engine, one-line errors, and Dagster's own database."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.db import database
from iccm_assets.db.database import (
    ColumnValues,
    connect,
    create_engine_for,
    dagster_url,
    database_url,
    head_revision,
)
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.errors import DatabaseError, DatabaseUnreachableError, SettingsError
from iccm_assets.settings import load_settings


def settings_for(url: str, **more: object):
    return load_settings(home=Path("/nonexistent"), database_url=url, **more)


@pytest.fixture
def role(server_url):
    """A role without rights on the test server, and the URL to log in with it."""
    admin = create_engine_for(server_url)
    with admin.begin() as conn:
        conn.execute(sa.text("create role guest login password 'guest'"))
    yield lambda url: sa.make_url(url).set(username="guest", password="guest").render_as_string(False)
    with admin.begin() as conn:
        conn.execute(sa.text("drop owned by guest"))
        conn.execute(sa.text("drop role guest"))
    admin.dispose()


def test_connect_migrates_an_empty_database_and_is_quick_afterwards(new_database, monkeypatch):
    settings = settings_for(new_database(empty=True))
    connect(settings).dispose()
    monkeypatch.setattr(database, "upgrade", lambda engine: pytest.fail("it is at head already"))
    engine = connect(settings)
    with engine.connect() as conn:
        assert (
            conn.execute(sa.text("select version_num from iccm.alembic_version")).scalar_one()
            == head_revision()
        )
        assert conn.execute(sa.text("show timezone")).scalar_one() == "UTC"
        assert conn.execute(sa.text("show application_name")).scalar_one() == "iccm"
    engine.dispose()


COLUMNS = {
    "text": ['"quoted", {1}', "back\\slash", "", "NULL", None, "ünï\n\u2003"],
    "bigint": [1, None, -(2**40), 2**31, 0, 7],
    "boolean": [True, None, False, True, None, True],
    "timestamptz": [datetime(2026, 3, 1, 12, tzinfo=UTC), None, *4 * [datetime(1999, 12, 31, tzinfo=UTC)]],
    "date": [None] * 6,
}


def test_values_of_columns_arrive_in_the_server_as_they_are(engine):
    arrays = ", ".join(f"cast(:{kind} as {kind}[])" for kind in COLUMNS)
    query = sa.text(f"select * from unnest({arrays})")
    with engine.connect() as conn:
        for rows in (6, 0, 6):
            columns = {kind: ColumnValues(values[:rows]) for kind, values in COLUMNS.items()}
            assert [list(row) for row in conn.execute(query, columns)] == [
                list(row) for row in zip(*columns.values(), strict=True)
            ]


def test_an_engine_outlives_a_restart_of_the_server(tmp_path):
    settings = load_settings(home=tmp_path)
    server = EmbeddedServer(tmp_path, durable=False)
    server.ensure_running()
    try:
        engine = connect(settings)
        server.stop()
        server.ensure_running()
        with engine.connect() as conn:
            assert conn.execute(sa.text("select 1")).scalar_one() == 1
        engine.dispose()
    finally:
        server.stop()


def test_without_a_url_the_embedded_server_of_the_home_is_used(tmp_path):
    settings = load_settings(home=tmp_path)
    server = EmbeddedServer(tmp_path, durable=False)
    try:
        assert server.ensure_running() == database_url(settings)
        assert dagster_url(settings) == database_url(settings) + "_dagster"
        with create_engine_for(dagster_url(settings)).connect() as conn:
            assert conn.execute(sa.text("select current_database()")).scalar_one() == "iccm_dagster"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/mine", "127.0.0.1:1/mine"),
        ("postgres://me:s3cret@nowhere.invalid/mine", "nowhere.invalid:5432/mine"),
        ("postgresql://me:s3cret@127.0.0.1:1/mine?no_such_option=1", "no_such_option"),
    ],
)
def test_an_unreachable_server_is_one_line_with_its_address_and_without_the_password(url, where):
    for function in (connect, dagster_url):
        with pytest.raises(DatabaseUnreachableError) as caught:
            function(settings_for(url))
        assert where in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@host:port/x", "postgresql://me:s3cret@[::1/x"])
def test_an_invalid_url_is_a_settings_error_without_the_password(url):
    with pytest.raises(SettingsError) as caught:
        connect(settings_for(url))
    assert "s3cret" not in str(caught.value)


def test_a_wrong_password_is_reported_in_one_line(new_database):
    url = sa.make_url(new_database()).set(password="s3cret").render_as_string(False)
    with pytest.raises(DatabaseError, match="password authentication failed") as caught:
        connect(settings_for(url))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_postgres_scheme_is_accepted_and_normalized(new_database):
    url = new_database()
    short = url.replace("postgresql://", "postgres://")
    assert database_url(settings_for(short)) == url
    connect(settings_for(short)).dispose()


def test_a_role_without_privileges_gets_the_reason(new_database, role):
    url = role(new_database(empty=True))
    with pytest.raises(DatabaseError, match="permission denied"):
        connect(settings_for(url))
    with pytest.raises(DatabaseError, match="cannot be created: permission denied to create database"):
        dagster_url(settings_for(url))


def test_an_old_server_and_one_without_pgvector_are_errors_with_a_reason(engine, monkeypatch):
    monkeypatch.setattr(database, "MIN_SERVER_VERSION", 99)
    with pytest.raises(DatabaseError, match="the platform needs 99 or newer"):
        database.upgrade(engine)
    monkeypatch.setattr(database, "MIN_SERVER_VERSION", 15)
    with engine.connect() as conn:
        monkeypatch.setattr(
            database, "_HAS_VECTOR", sa.text(str(database._HAS_VECTOR).replace("vector", "no_such_extension"))
        )
        with pytest.raises(DatabaseError, match="pgvector is not installed"):
            database._check_server(conn)


def test_concurrent_callers_create_dagsters_database_once(settings):
    urls: list[object] = []

    def call() -> None:
        try:
            urls.append(dagster_url(settings))
        except Exception as error:
            urls.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert urls == [settings.database_url + "_dagster"] * 6
    assert dagster_url(settings) == urls[0]


def test_dagsters_database_url_can_be_configured(settings):
    named = settings.model_copy(update={"dagster_database_url": "postgres://u@h/d"})
    assert dagster_url(named) == "postgresql://u@h/d"


def test_importing_tables_and_database_loads_no_driver_and_no_alembic():
    code = (
        "import sys\n"
        "import iccm_assets.settings, iccm_assets.db.tables, iccm_assets.db.clock\n"
        "import iccm_assets.reporting.traffic_history, iccm_assets.db.database\n"
        "heavy = {'psycopg', 'psycopg2', 'alembic', 'numpy', 'pandas', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

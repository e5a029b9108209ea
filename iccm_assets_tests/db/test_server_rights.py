"""Rights that an external server does not give are found before they are needed, with their SQL (S1)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.cli import doctor
from iccm_assets.db.database import connect, create_engine_for, dagster_url, find_missing_server_rights
from iccm_assets.errors import DatabaseError
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.processes import ROOT

ROLE = "Plain User"  # it needs quotes


class Server:
    """The test server as an external one, for a role without rights in an empty database."""

    def __init__(self, admin: sa.Engine, url: str) -> None:
        self.admin, self.name = admin, str(sa.make_url(url).database)
        self.inside = create_engine_for(url)
        own = sa.make_url(url).set(username=ROLE, password="secret").render_as_string(hide_password=False)
        self.settings: Settings = load_settings(home=Path("/nonexistent"), database_url=own)

    def execute(self, statement: str, *, inside: bool = False) -> None:
        with (self.inside if inside else self.admin).connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text(statement))

    def list_objects(self) -> list[str]:
        query = """
            select 'schema ' || nspname from pg_namespace where nspname not like 'pg_%'
            union select 'extension ' || extname from pg_extension
            union select 'table ' || relname from pg_class where relnamespace = 'public'::regnamespace
            union select 'database ' || datname from pg_database where datname like current_database() || '%'
            order by 1"""
        with self.inside.connect() as conn:
            return list(conn.execute(sa.text(query)).scalars())

    def grant(self, fix: str) -> None:
        """Execute the SQL of a fix as a superuser, where it says."""
        place, _, statement = fix.partition(": ")
        self.execute(statement.partition(" or: ")[0], inside="in the database" in place)


@pytest.fixture
def server(server_url: str, new_database: Callable[..., str]) -> Iterator[Server]:
    admin = create_engine_for(server_url)
    made = Server(admin, new_database(empty=True))
    made.execute(f"create role \"{ROLE}\" login password 'secret'")
    yield made
    for engine in (made.inside, admin):
        with engine.begin() as conn:
            conn.execute(sa.text(f'reassign owned by "{ROLE}" to current_user'))
            conn.execute(sa.text(f'drop owned by "{ROLE}"'))
        engine.dispose()
    admin = create_engine_for(server_url)
    with admin.begin() as conn:
        conn.execute(sa.text(f'drop role "{ROLE}"'))
    admin.dispose()


def test_each_missing_right_is_found_without_a_change_and_its_sql_grants_it(server: Server) -> None:
    before = server.list_objects()
    missing = find_missing_server_rights(server.settings)
    assert server.list_objects() == before
    assert [right.detail.partition(" (")[0] for right in missing] == [
        f'"{ROLE}" may not `create schema iccm`',
        f'"{ROLE}" may not `create extension vector with schema public`',
        f'"{ROLE}" may not create the database {server.name}_dagster',
    ]
    for right in missing:
        server.grant(right.fix)
    assert find_missing_server_rights(server.settings) == []
    connect(server.settings).dispose()
    assert dagster_url(server.settings).endswith("_dagster")
    assert find_missing_server_rights(server.settings) == []


def test_a_database_for_dagster_of_another_owner_is_found(server: Server) -> None:
    server.execute(f"create database {server.name}_dagster")
    right = find_missing_server_rights(server.settings)[-1]
    assert f"may not create tables in {server.name}_dagster" in right.detail
    server.grant(right.fix)
    assert "tables" not in find_missing_server_rights(server.settings)[-1].detail


def test_the_commands_that_need_a_right_name_the_same_sql(server: Server) -> None:
    fixes = [right.fix for right in find_missing_server_rights(server.settings)]
    with pytest.raises(DatabaseError, match="permission denied") as upgrade:
        connect(server.settings)
    assert all(fix in upgrade.value.hint for fix in fixes[:2])
    with pytest.raises(DatabaseError, match="permission denied") as creation:
        dagster_url(server.settings)
    assert fixes[2] in creation.value.hint


def test_doctor_fails_on_a_missing_right(server: Server) -> None:
    check = doctor.check_database(server.settings)
    assert not check.ok and check.required
    assert "create extension vector" in check.fix and f"create database {server.name}_dagster" in check.fix


def test_the_sql_of_the_page_on_an_own_server_gives_every_right(server_url: str) -> None:
    page = (ROOT / "docs" / "how-to" / "your-own-model.md").read_text("utf-8").partition("## PostgreSQL")[2]
    assert "`iccm db upgrade` creates and migrates the schema" in " ".join(page.split())
    assert "docs/how-to/your-own-model.md" in (ROOT / "README.md").read_text("utf-8")
    [block] = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    name = f"own_{secrets.token_hex(4)}"
    outside, inside = block.replace("iccm", name).split(f"\\c {name}\n")
    admin = create_engine_for(server_url).execution_options(isolation_level="AUTOCOMMIT")
    url = sa.make_url(server_url).set(database=name)
    database = create_engine_for(url.render_as_string(hide_password=False))
    try:
        for engine, statements in ((admin, outside), (database, inside)):
            with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
                for statement in statements.strip().split(";\n"):
                    conn.execute(sa.text(statement.rstrip(";")))
        own = url.set(username=name, password="…").render_as_string(hide_password=False)
        settings = load_settings(home=Path("/nonexistent"), database_url=own)
        assert find_missing_server_rights(settings) == []
        connect(settings).dispose()
        assert dagster_url(settings).endswith(f"{name}_dagster")
    finally:
        database.dispose()
        with admin.connect() as conn:
            for made in (f"{name}_dagster", name):
                conn.execute(sa.text(f"drop database if exists {made} with (force)"))
            conn.execute(sa.text(f"drop role if exists {name}"))
        admin.dispose()

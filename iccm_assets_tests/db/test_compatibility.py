"""An upgrade one process at a time: code of the release before works on the schema of the next one (S1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from iccm_assets.db.compatibility import OLDEST_REVISION, load_oldest_revision
from iccm_assets.db.database import MIGRATIONS, connect, create_engine_for, head_revision, upgrade
from iccm_assets.errors import DatabaseError
from iccm_assets.settings import Settings
from iccm_assets_tests.factories import gateways

_COLUMNS = """
    select table_name, column_name, udt_name, is_nullable = 'NO' as required,
        column_default is not null or is_identity = 'YES' or is_generated = 'ALWAYS' as filled
    from information_schema.columns where table_schema = 'iccm' and table_name <> 'alembic_version'
"""
# Table, name, definition, and columns: those of an expression count as all of the table.
_CONSTRAINTS = """
    select conrelid::regclass::text, conname, pg_get_constraintdef(oid),
        array(select attname::text from pg_attribute where attrelid = conrelid and attnum = any(conkey))
    from pg_constraint
    where connamespace = 'iccm'::regnamespace and contype <> 'n' and conname not like 'alembic%'
"""
_UNIQUE_INDEXES = """
    select indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid),
        array(select attname::text from pg_attribute
            where attrelid = indrelid and attnum > 0 and (attnum = any(indkey) or 0 = any(indkey)))
    from pg_index join pg_class on pg_class.oid = indrelid
    where indisunique and relnamespace = 'iccm'::regnamespace and relname <> 'alembic_version'
"""
_FUNCTIONS = """
    select proname, pg_get_function_identity_arguments(oid), pg_get_function_result(oid) from pg_proc
    where pronamespace = 'iccm'::regnamespace
"""
_TRIGGERS = """
    select tgrelid::regclass::text, pg_get_triggerdef(oid) from pg_trigger
    where not tgisinternal and tgrelid::regclass::text like 'iccm.%'
"""


@dataclass(frozen=True)
class Schema:
    """What statements of older code depend on."""

    columns: dict[tuple[str, str], tuple[str, bool, bool]]
    rules: dict[tuple[str, str, str], list[str]]
    triggers: set[tuple[str, ...]]
    functions: set[tuple[str, ...]]

    @property
    def tables(self) -> set[str]:
        return {table for table, _ in self.columns}


def read_schema(conn: sa.Connection) -> Schema:
    columns = {(row[0], row[1]): tuple(row[2:]) for row in conn.execute(sa.text(_COLUMNS))}
    rules = {
        (row[0].removeprefix("iccm."), row[1], row[2]): row[3]
        for query in (_CONSTRAINTS, _UNIQUE_INDEXES)
        for row in conn.execute(sa.text(query))
    }
    triggers = {tuple(row) for row in conn.execute(sa.text(_TRIGGERS))}
    return Schema(columns, rules, triggers, {tuple(row) for row in conn.execute(sa.text(_FUNCTIONS))})


def breaks(old: Schema, new: Schema) -> list[str]:
    """Say what of the old schema's statements the new one refuses."""
    refusals = [f"{'.'.join(column)} is gone" for column in old.columns if column not in new.columns]
    for (table, column), (kind, required, filled) in new.columns.items():
        before = old.columns.get((table, column))
        if before is None:
            if required and not filled and table in old.tables:
                refusals.append(f"{table}.{column} is new and has to be given")
        elif before[0] != kind or (required and not before[1]) or (before[2] and not filled):
            refusals.append(f"{table}.{column} has another type, is required, or lost its default")
    refusals += [f"{table} lost {name}" for table, name, _ in old.rules.keys() - new.rules.keys()]
    for rule in new.rules.keys() - old.rules.keys():
        table, name, _ = rule
        # It may refuse what older code writes, unless it is about new columns only, which that leaves alone.
        if any((table, column) in old.columns for column in new.rules[rule]):
            refusals.append(f"{table} got {name}")
    refusals += [f"{table} has other triggers" for table, _ in old.triggers ^ new.triggers]
    return refusals + [f"the function {function[0]} changed" for function in old.functions - new.functions]


def config_for(conn: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = conn
    return config


@pytest.fixture
def empty(new_database: Callable[..., str]) -> Iterator[sa.Engine]:
    made = create_engine_for(new_database(empty=True))
    yield made
    made.dispose()


def migrate_between(engine: sa.Engine, old: str, new: str) -> list[str]:
    with engine.begin() as conn:
        command.upgrade(config_for(conn), old)
        before = read_schema(conn)
    with engine.begin() as conn:
        command.upgrade(config_for(conn), new)
        return breaks(before, read_schema(conn))


def test_the_oldest_package_that_the_schema_serves_can_use_it(empty: sa.Engine) -> None:
    """If this fails, a migration does more than add: split it over two releases, or raise OLDEST_REVISION."""
    assert migrate_between(empty, OLDEST_REVISION, "head") == []


@pytest.mark.parametrize(
    "old,new,reason",
    [
        ("0007", "0008", "rollout_samples.left_out is gone"),
        ("0015", "0016", ""),  # a new table
        ("0016", "0017", ""),  # a column without a value
    ],
)
def test_migrations_of_the_past_are_told_apart(empty: sa.Engine, old: str, new: str, reason: str) -> None:
    refusals = migrate_between(empty, old, new)
    assert reason in refusals if reason else refusals == []


@pytest.mark.parametrize(
    "change,reason",
    [
        ("alter table iccm.requests drop column error", "requests.error is gone"),
        ("alter table iccm.requests rename column error to failure", "requests.error is gone"),
        ("alter table iccm.requests add own text not null", "requests.own is new and has to be given"),
        ("alter table iccm.requests alter user_id set not null", "requests.user_id has another type"),
        ("alter table iccm.requests alter latency_ms type integer", "requests.latency_ms has another type"),
        ("alter table iccm.requests alter created_at drop default", "requests.created_at has another type"),
        ("alter table iccm.requests add constraint own check (latency_ms < 9)", "requests got own"),
        ("create unique index own on iccm.feedback (rating)", "feedback got iccm.own"),
        ("drop table iccm.feedback", "feedback.rating is gone"),
        ("alter table iccm.alerts drop constraint alerts_pkey cascade", "alerts lost alerts_pkey"),
    ],
)
def test_a_migration_that_refuses_older_code_is_found(engine: sa.Engine, change: str, reason: str) -> None:
    with engine.begin() as conn:
        before = read_schema(conn)
        conn.execute(sa.text(change))
        refusals = breaks(before, read_schema(conn))
        conn.rollback()
    assert any(line.startswith(reason) for line in refusals), refusals


@pytest.mark.parametrize(
    "change",
    [
        "alter table iccm.requests add own text",
        "alter table iccm.requests add own text not null default ''",
        "create table iccm.own (id bigint primary key, other text unique)",
        "create index own on iccm.requests (error)",
        "alter table iccm.requests alter user_id drop not null",
    ],
)
def test_a_migration_that_only_adds_is_none(engine: sa.Engine, change: str) -> None:
    with engine.begin() as conn:
        before = read_schema(conn)
        conn.execute(sa.text(change))
        assert breaks(before, read_schema(conn)) == []
        conn.rollback()


def release_next(engine: sa.Engine, oldest: str) -> None:
    """Do what the migration of the next release does: a column and a table, and its revision."""
    with engine.begin() as conn:
        for statement in (
            "alter table iccm.requests add own text not null default ''",
            "create table iccm.own (id bigint primary key)",
            "update iccm.alembic_version set version_num = '9999'",
            "comment on table iccm.alembic_version is "
            f"'Revision of the schema. It serves packages whose newest revision is at least {oldest}.'",
        ):
            conn.execute(sa.text(statement))


def test_a_migrated_schema_says_which_packages_it_serves(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        assert load_oldest_revision(conn) == OLDEST_REVISION <= head_revision()


def test_a_gateway_of_this_release_starts_serves_and_stores_on_the_next_ones_schema(
    engine: sa.Engine, settings: Settings
) -> None:
    gateways.two_versions(engine)
    release_next(engine, head_revision())
    assert upgrade(engine) == ("9999", "9999")
    connect(settings).dispose()
    with gateways.gateway(gateways.database_url(engine), settings.home) as running:
        assert running.request("s-1", request_id="r-1").status_code == 200
        gateways.eventually(lambda: gateways.stored(engine) == {"r-1"})


def test_a_schema_that_serves_newer_packages_only_refuses_this_one(
    engine: sa.Engine, settings: Settings
) -> None:
    release_next(engine, "9998")
    with pytest.raises(DatabaseError, match=r"revision 9999, this package supports .*Install the newer"):
        connect(settings)

"""The home and the databases that a restore writes to: empty, or to be replaced, and used by nobody. (V4)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from iccm_assets.db.database import REPLACED_SCHEMA, is_half_restored, upgrade
from iccm_assets.db.tables import metadata
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.governance.backup_directory import CONTENT_DIRECTORIES
from iccm_assets.governance.erasure import RecordedErasure, load_recorded_erasures
from iccm_assets.settings import Settings

_DISCONNECT_SECONDS = 3.0
_HAS_SCHEMA = sa.text("select exists (select from pg_namespace where nspname = :name)")
_CLIENTS = sa.text(
    """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    """
)
_DAGSTER_RUNS = sa.text("select to_regclass('runs') is not null")


def check_target(
    engine: sa.Engine, other: sa.Engine, settings: Settings, replace_existing: bool
) -> list[RecordedErasure]:
    """Require an empty target, or one to replace, that nobody uses; return the erasures that it knows."""
    with engine.connect() as conn:
        half_restored = is_half_restored(conn)
    if not half_restored:
        upgrade(engine)  # creates the extension, or says what the server or the role lacks
    contents = [
        *(["the database"] if half_restored else _find_rows(engine)),
        *_find_dagster_rows(other),
        *(
            str(settings.home / kind)
            for kind in CONTENT_DIRECTORIES
            if any((settings.home / kind).glob("[!.]*"))
        ),
    ]
    if contents and not replace_existing:
        raise OperationNotAllowedError(
            f"the target is not empty: {', '.join(contents)}",
            hint="Give an empty ICCM_HOME and database, or --replace.",
        )
    other.dispose()  # both may be of one database
    _check_unused(engine)
    with engine.connect() as conn:
        erasures = [] if half_restored else load_recorded_erasures(conn)
    engine.dispose()
    _check_unused(other)
    other.dispose()
    return erasures


def _check_unused(engine: sa.Engine) -> None:
    """Require that nobody else is connected; a client that has just ended is waited for."""
    deadline = time.monotonic() + _DISCONNECT_SECONDS
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        while clients := conn.execute(_CLIENTS).scalar_one():
            if time.monotonic() > deadline:
                raise OperationNotAllowedError(
                    f"{clients} other connections use the database {engine.url.database}",
                    hint="Stop what runs on it (`iccm serve`, `iccm dev`, Dagster).",
                )
            time.sleep(0.1)


def _find_rows(engine: sa.Engine) -> list[str]:
    """Return the tables that hold rows, without facts about the platform itself."""
    names = [table.name for table in metadata.sorted_tables if table.name != "platform"]
    with engine.connect() as conn:
        return [
            f"iccm.{name}"
            for name in names
            if conn.execute(sa.text(f"select exists (select from iccm.{name})")).scalar_one()
        ]


def _find_dagster_rows(engine: sa.Engine) -> list[str]:
    with engine.connect() as conn:
        if not conn.execute(_DAGSTER_RUNS).scalar_one():
            return []
        has_rows = conn.execute(sa.text("select exists (select from runs)")).scalar_one()
    return ["Dagster's database"] if has_rows else []


@contextmanager
def replaced_schema(engine: sa.Engine) -> Iterator[None]:
    """Set the schema aside for a block that creates it; drop it afterwards, or take it back on failure."""
    with engine.begin() as conn:
        if is_half_restored(conn):
            # What was set aside then still is.
            conn.exec_driver_sql("drop schema if exists iccm cascade")
        else:
            conn.exec_driver_sql(f"drop schema if exists {REPLACED_SCHEMA} cascade")
            conn.exec_driver_sql(f"alter schema iccm rename to {REPLACED_SCHEMA}")
    try:
        yield
    except BaseException:
        with engine.begin() as conn:
            conn.exec_driver_sql("drop schema if exists iccm cascade")
            if conn.execute(_HAS_SCHEMA, {"name": REPLACED_SCHEMA}).scalar_one():
                conn.exec_driver_sql(f"alter schema {REPLACED_SCHEMA} rename to iccm")
        raise

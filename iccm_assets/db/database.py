"""Access to the database: its URL, a migrated engine, and the database of Dagster.

Importing this module loads no driver; `connect` does.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError

from iccm_assets.db import roles, server_rights
from iccm_assets.db.compatibility import load_oldest_revision, store_oldest_revision
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.db.locks import Lock, acquire_lock, lock_key
from iccm_assets.db.server_rights import MissingRight
from iccm_assets.errors import DatabaseError, DatabaseUnreachableError, SettingsError, first_line
from iccm_assets.settings import Settings, get_settings

MIGRATIONS = Path(__file__).parent / "migrations"
MIN_SERVER_VERSION = 15
CONNECT_TIMEOUT_SECONDS = 10

_HAS_VECTOR = text("select exists (select from pg_available_extensions where name = 'vector')")
_HAS_DATABASE = text("select exists (select from pg_database where datname = :name)")
_REVISION = text("select version_num from iccm.alembic_version")
# Where a restore keeps the rows that it replaces until it has ended.
REPLACED_SCHEMA = "iccm_replaced"
_HAS_TABLES = text(
    """
    select to_regclass('iccm.alembic_version') is not null as has_revisions,
        to_regclass('iccm.conversations') is not null as has_tables,
        exists (select from pg_namespace where nspname = :replaced) as has_replaced
    """
)
_UNDEFINED = ("3F000", "42P01")  # no such schema, no such table

# Engines still referenced somewhere, so that a process can close all its idle connections.
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def database_url(settings: Settings | None = None) -> str:
    """Return the `postgresql://…` URL of the platform; starts the embedded server when no URL is set."""
    settings = settings or get_settings()
    if settings.database_url is not None:
        return _parse(settings.database_url).render_as_string(hide_password=False)
    return EmbeddedServer(settings.home).ensure_running()


def dagster_url(settings: Settings | None = None) -> str:
    """Return the `postgresql://…` URL of Dagster's own database.

    Unless it is set, it is `<database>_dagster` on the platform's server, created when absent.
    """
    settings = settings or get_settings()
    if settings.dagster_database_url is not None:
        return _parse(settings.dagster_database_url).render_as_string(hide_password=False)
    url = _parse(database_url(settings))
    own = _default_dagster_url(url)
    _create_database(url, own.database or "")
    return own.render_as_string(hide_password=False)


def find_missing_server_rights(settings: Settings) -> list[MissingRight]:
    """Return what the role may not do on the server at ``ICCM_DATABASE_URL``; changes nothing."""
    url = _parse(database_url(settings))
    own = _default_dagster_url(url)
    with _connected(url) as conn:
        missing = server_rights.find_missing_rights(conn)
        if grants := roles.find_missing_grants(conn):
            missing.append(grants)
        if roles.is_gateway(conn):
            return missing
        exists = conn.execute(_HAS_DATABASE, {"name": own.database}).scalar_one()
        if settings.dagster_database_url is None and not exists:
            creation = server_rights.find_missing_creation_right(conn, own.database or "")
            return [*missing, *([creation] if creation else [])]
    with _connected(_parse(settings.dagster_database_url) if settings.dagster_database_url else own) as conn:
        tables = server_rights.find_missing_table_right(conn)
    return [*missing, *([tables] if tables else [])]


@contextmanager
def _connected(url: URL) -> Iterator[Connection]:
    """Connect once; what the block changes is rolled back."""
    engine = create_engine_for(url.render_as_string(hide_password=False))
    try:
        with engine.connect() as conn:
            yield conn
    except DBAPIError as error:
        raise _explain(url, error) from None
    finally:
        engine.dispose()


def _default_dagster_url(url: URL) -> URL:
    return url.set(database=f"{url.database or url.username}_dagster")


def connect(settings: Settings | None = None) -> Engine:
    """Return an engine (psycopg 3, UTC) on the platform's database, migrated to head.

    Raises `DatabaseUnreachableError`, which names host, port and database, never the password.
    """
    engine = create_engine_for(database_url(settings))
    if current_revision(engine) != head_revision():
        upgrade(engine)
    return engine


def create_engine_for(url: str, *, application_name: str = "iccm", session_options: str = "") -> Engine:
    """Return an engine on any database of the platform, without checking its schema.

    ``session_options`` are PostgreSQL's: ``-c name=value …``.
    """
    parsed = _parse(url).set(drivername="postgresql+psycopg")
    options = parsed.query.get("options", "")
    options = options if isinstance(options, str) else " ".join(options)
    engine = create_engine(
        parsed.difference_update_query(["options"]),
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": os.environ.get("PGAPPNAME", application_name),
            "options": f"{options} {session_options} -c TimeZone=UTC".strip(),
            "keepalives_idle": 30,
        },
    )
    event.listen(engine, "handle_error", _hide_rows)
    event.listen(engine, "connect", _send_columns_in_binary)
    _ENGINES.add(engine)
    return engine


class ColumnValues(list[Any]):
    """A parameter for an array of one type: the values of a column, of rows that are written together.

    It is sent in the binary format: the text of an array has each quotation mark of each value escaped, in
    Python.
    """


def _send_columns_in_binary(connection: Any, record: object) -> None:
    from psycopg.types.array import ListBinaryDumper

    connection.adapters.register_dumper(ColumnValues, ListBinaryDumper)


def _hide_rows(context: ExceptionContext) -> None:
    """Cut an error to its primary message: the details quote rows, and errors end up in logs (V2)."""
    primary = getattr(getattr(context.original_exception, "diag", None), "message_primary", None)
    if primary:
        context.original_exception.args = (primary,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(context.original_exception).__name__}) {primary}",)


def close_engines() -> None:
    """Close the idle connections of every engine of this process; they reopen on use."""
    for engine in list(_ENGINES):
        engine.dispose()


def head_revision() -> str:
    """Return the newest revision of this package; the number of a revision starts its file name."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the database, None without a schema; one query."""
    try:
        with engine.connect() as conn:
            return conn.execute(_REVISION).scalar_one_or_none()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _UNDEFINED:
            return None
        raise _explain(engine.url, error) from None


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Migrate to head under a lock, in one transaction; returns the revisions before and after.

    A newer schema that still serves this package is left as it is. Raises `DatabaseError` when the server is
    too old, has no pgvector, or has a schema that is too new for this package.
    """
    head = head_revision()
    try:
        with engine.begin() as conn:
            _check_server(conn)
            acquire_lock(conn, Lock.MIGRATION)
            if is_half_restored(conn):
                raise DatabaseError(
                    "a restore into it was interrupted", hint="Run `iccm restore DIR --replace` again."
                )
            exists = conn.execute(text("select to_regclass('iccm.alembic_version') is not null")).scalar_one()
            before = conn.execute(_REVISION).scalar_one_or_none() if exists else None
            if before is not None and before > head:
                if (load_oldest_revision(conn) or before) <= head:
                    return before, before
                raise DatabaseError(
                    f"its schema is at revision {before}, this package supports {head}",
                    hint="Install the newer package.",
                )
            migrate(conn)
    except DBAPIError as error:
        problem = _explain(engine.url, error)
        if getattr(error.orig, "sqlstate", None) == server_rights.INSUFFICIENT_PRIVILEGE:
            with _connected(engine.url) as conn:
                fixes = [right.fix for right in server_rights.find_missing_rights(conn)]
            owner = "Run `iccm db upgrade` with the role that owns the schema iccm."
            problem = DatabaseError(problem.detail, hint=" ".join(fixes) or owner)
        raise problem from None
    return before, head


def migrate(conn: Connection) -> None:
    """Run the migrations up to head inside the caller's transaction, and grant the roles their rights."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
    store_oldest_revision(conn)
    roles.grant_rights(conn)


def is_half_restored(conn: Connection) -> bool:
    """Whether a restore has not ended: the schema is set aside, or has tables but no revision yet."""
    state = conn.execute(_HAS_TABLES, {"replaced": REPLACED_SCHEMA}).one()
    if not state.has_revisions:
        return bool(state.has_replaced)
    return bool(state.has_tables) and conn.execute(_REVISION).scalar_one_or_none() is None


def _check_server(conn: Connection) -> None:
    version = int(conn.execute(text("show server_version_num")).scalar_one()) // 10_000
    if version < MIN_SERVER_VERSION:
        raise DatabaseError(f"it is version {version}, the platform needs {MIN_SERVER_VERSION} or newer")
    if not conn.execute(_HAS_VECTOR).scalar_one():
        raise DatabaseError(
            "the extension pgvector is not installed on the server",
            hint="Install it there (Debian: postgresql-NN-pgvector).",
        )


def _create_database(url: URL, name: str) -> None:
    engine = create_engine_for(url.render_as_string(hide_password=False))
    quote = engine.dialect.identifier_preparer.quote
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            if conn.execute(_HAS_DATABASE, {"name": name}).scalar_one():
                return
            # Held until the connection closes: `create database` cannot run in a transaction.
            conn.execute(text("select pg_advisory_lock(:key)"), {"key": lock_key(Lock.DATABASE_CREATION)})
            if not conn.execute(_HAS_DATABASE, {"name": name}).scalar_one():
                conn.execute(text(f"create database {quote(name)}"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) is None:
            raise _explain(url, error) from None
        fix = server_rights.creation_fix(quote(url.username or ""), quote(name))
        raise DatabaseError(
            f"the database {name} for Dagster cannot be created: {first_line(error.orig or error)}",
            hint=f"{fix} Or set ICCM_DAGSTER_DATABASE_URL.",
        ) from None
    finally:
        engine.dispose()


def _parse(url: str) -> URL:
    normalized = "postgresql://" + url.split("://", 1)[1] if url.startswith("postgres://") else url
    try:
        return make_url(normalized).set(drivername="postgresql")
    except (ArgumentError, ValueError):
        # The original error may quote the URL, and with it the password.
        raise SettingsError(
            "the database URL cannot be read", hint="It looks like postgresql://user:password@host:5432/name."
        ) from None


def _explain(url: URL, error: DBAPIError) -> DatabaseError:
    """Return a `DatabaseError` if the server answered, else a `DatabaseUnreachableError`."""
    address = f"{url.host or 'local socket'}:{url.port or 5432}/{url.database or ''}"
    message = f"{address}: {first_line(error.orig or error)}"
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return DatabaseUnreachableError(message, hint="Check ICCM_DATABASE_URL and that the server runs.")
    if state == server_rights.INSUFFICIENT_PRIVILEGE:
        return DatabaseError(message, hint=roles.GRANTING)
    return DatabaseError(message)

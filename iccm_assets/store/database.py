"""The one way to the database: a URL, a migrated engine, and Dagster's own database beside it.

Importing this module loads no driver; `connect` does.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.errors import DatabaseError, DatabaseUnreachable, SettingsError
from iccm_assets.settings import Settings, get_settings
from iccm_assets.store.embedded import EmbeddedServer
from iccm_assets.store.locks import Lock, acquire_lock, lock_key

MIGRATIONS = Path(__file__).parent / "migrations"
MINIMUM_VERSION = 15
CONNECT_SECONDS = 10

_AVAILABLE = sa.text("select exists (select from pg_available_extensions where name = 'vector')")
# Engines still in use somewhere, so that a process can let go of all its connections.
_OPENED: weakref.WeakSet[sa.Engine] = weakref.WeakSet()

_UNDEFINED = ("3F000", "42P01")  # no such schema, no such table


def database_url(settings: Settings | None = None) -> str:
    """`postgresql://…` of the platform's database; starts the embedded server when no URL is set."""
    settings = settings or get_settings()
    if settings.database_url is not None:
        return _plain(settings.database_url)
    return EmbeddedServer(settings.home).ensure()


def dagster_url(settings: Settings | None = None) -> str:
    """`postgresql://…` of Dagster's own database.

    Unless it is set, it is `<database>_dagster` on the platform's server, created when absent.
    """
    settings = settings or get_settings()
    if settings.dagster_database_url is not None:
        return _plain(settings.dagster_database_url)
    url = _parsed(database_url(settings))
    name = f"{url.database or url.username}_dagster"
    _create_database(url, name)
    return url.set(database=name).render_as_string(hide_password=False)


def connect(settings: Settings | None = None) -> sa.Engine:
    """An engine (psycopg 3, UTC) on the platform's database, migrated to head.

    Raises `DatabaseUnreachable` naming host, port and database, never the password.
    """
    engine = engine_for(database_url(settings))
    if current_revision(engine) != head_revision():
        upgrade(engine)
    return engine


def engine_for(url: str, *, application_name: str = "iccm") -> sa.Engine:
    """An engine on any of our databases, without looking at its schema."""
    parsed = _parsed(url).set(drivername="postgresql+psycopg")
    options = parsed.query.get("options", "")
    options = options if isinstance(options, str) else " ".join(options)
    engine = sa.create_engine(
        parsed.difference_update_query(["options"]),
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": os.environ.get("PGAPPNAME", application_name),
            "options": f"{options} -c TimeZone=UTC".strip(),
            "keepalives_idle": 30,
        },
    )
    sa.event.listen(engine, "handle_error", _without_rows)
    _OPENED.add(engine)
    return engine


def _without_rows(context: sa.engine.ExceptionContext) -> None:
    """Cut an error to its first message: the details quote rows, and errors end up in logs (V2)."""
    primary = getattr(getattr(context.original_exception, "diag", None), "message_primary", None)
    if primary:
        context.original_exception.args = (primary,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(context.original_exception).__name__}) {primary}",)


def close_engines() -> None:
    """Close the idle connections of every engine this process has opened; they reopen when used."""
    for engine in list(_OPENED):
        engine.dispose()


def head_revision() -> str:
    """The newest revision the package brings; revisions are numbered as their files are."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current_revision(engine: sa.Engine) -> str | None:
    """The revision the database is at, None when it has no schema yet: one query."""
    try:
        with engine.connect() as conn:
            return conn.execute(sa.text("select version_num from iccm.alembic_version")).scalar_one_or_none()
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _UNDEFINED:
            return None
        raise _explained(engine.url, error) from None


def upgrade(engine: sa.Engine) -> tuple[str | None, str]:
    """Migrate to head under a lock, in one transaction; returns the revisions before and after.

    Raises `DatabaseError` when the server is too old, has no pgvector, or has a newer schema than this
    package knows.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as conn:
            _check_server(conn)
            acquire_lock(conn, Lock.MIGRATION)
            before = _revision_inside(conn)
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
    except sa.exc.DBAPIError as error:
        raise _explained(engine.url, error) from None
    return before, head_revision()


def _revision_inside(conn: sa.Connection) -> str | None:
    """The revision under the lock; a newer one than ours is refused."""
    if conn.execute(sa.text("select to_regclass('iccm.alembic_version')")).scalar_one() is None:
        return None
    revision = conn.execute(sa.text("select version_num from iccm.alembic_version")).scalar_one_or_none()
    if revision is not None and revision > head_revision():
        raise DatabaseError(
            f"its schema is at revision {revision}, this package knows {head_revision()}",
            hint="Install the newer package.",
        )
    return revision


def _check_server(conn: sa.Connection) -> None:
    version = int(conn.execute(sa.text("show server_version_num")).scalar_one()) // 10_000
    if version < MINIMUM_VERSION:
        raise DatabaseError(f"it is version {version}, the platform needs {MINIMUM_VERSION} or newer")
    if not conn.execute(_AVAILABLE).scalar_one():
        raise DatabaseError(
            "the extension pgvector is not installed on the server",
            hint="Install it there (Debian: postgresql-NN-pgvector).",
        )


def _create_database(url: sa.URL, name: str) -> None:
    engine = engine_for(url.render_as_string(hide_password=False))
    present = sa.text("select exists (select from pg_database where datname = :name)")
    quoted = engine.dialect.identifier_preparer.quote_identifier(name)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            if conn.execute(present, {"name": name}).scalar_one():
                return
            # Held until the connection closes: CREATE DATABASE takes no part in transactions.
            conn.execute(sa.text("select pg_advisory_lock(:key)"), {"key": lock_key(Lock.DATABASE_CREATION)})
            if not conn.execute(present, {"name": name}).scalar_one():
                conn.execute(sa.text(f"create database {quoted}"))
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) is None:
            raise _explained(url, error) from None
        raise DatabaseError(
            f"the database {name} for Dagster cannot be created: {_first_line(error)}",
            hint="Create it, or set ICCM_DAGSTER_DATABASE_URL.",
        ) from None
    finally:
        engine.dispose()


def _parsed(url: str) -> sa.URL:
    plain = "postgresql://" + url.split("://", 1)[1] if url.startswith("postgres://") else url
    try:
        return sa.make_url(plain).set(drivername="postgresql")
    except (sa.exc.ArgumentError, ValueError):
        # The reason given may quote the URL, and with it the password.
        raise SettingsError(
            "the database URL cannot be read", hint="It looks like postgresql://user:password@host:5432/name."
        ) from None


def _plain(url: str) -> str:
    return _parsed(url).render_as_string(hide_password=False)


def _explained(url: sa.URL, error: sa.exc.DBAPIError) -> DatabaseError:
    """An answer of the server is a `DatabaseError`; no answer is a `DatabaseUnreachable`."""
    where = f"{url.host or 'local socket'}:{url.port or 5432}/{url.database or ''}"
    if getattr(error.orig, "sqlstate", None) is None:
        return DatabaseUnreachable(
            f"{where}: {_first_line(error)}", hint="Check ICCM_DATABASE_URL and that the server runs."
        )
    return DatabaseError(f"{where}: {_first_line(error)}")


def _first_line(error: sa.exc.DBAPIError) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0] if lines else type(error.orig).__name__

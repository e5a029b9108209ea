"""The rights that the platform's role needs on an external server, and the SQL that grants them (S1).

The rights are tried in a transaction that is rolled back: whether an extension may be created depends on more
than the role.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from iccm_assets.errors import first_line

INSUFFICIENT_PRIVILEGE = "42501"
LOCK_TIMEOUT_SECONDS = 2


@dataclass(frozen=True)
class MissingRight:
    """What the role may not do, and the SQL that allows it, for a superuser."""

    detail: str
    fix: str


def find_missing_rights(conn: Connection) -> list[MissingRight]:
    """Try what a migration of the platform's database needs: its schema, and the extension vector."""
    role, database = _identify(conn)
    trials = (
        (
            "select exists (select from pg_namespace where nspname = 'iccm')",
            "create schema iccm",
            f"grant create on database {database} to {role};",
        ),
        (
            "select exists (select from pg_extension where extname = 'vector')",
            "create extension vector with schema public",
            "create extension vector with schema public;",
        ),
    )
    missing = []
    for exists, statement, fix in trials:
        if not conn.execute(text(exists)).scalar_one() and (reason := _try(conn, statement)):
            place = f"As a superuser, in the database {database}"
            missing.append(MissingRight(f"{role} may not `{statement}` ({reason})", f"{place}: {fix}"))
    return missing


def find_missing_table_right(conn: Connection) -> MissingRight | None:
    """Try what Dagster needs in its own database: to create tables."""
    role, database = _identify(conn)
    reason = _try(conn, "create table iccm_doctor ()")
    if not reason:
        return None
    fix = f"As a superuser: alter database {database} owner to {role};"
    return MissingRight(f"{role} may not create tables in {database} ({reason})", fix)


def find_missing_creation_right(conn: Connection, name: str) -> MissingRight | None:
    """Return the missing right to create a database; creating one cannot be tried."""
    may_create = "select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
    if conn.execute(text(may_create)).scalar_one():
        return None
    role, _ = _identify(conn)
    return MissingRight(f"{role} may not create the database {name}", creation_fix(role, _quote(conn, name)))


def creation_fix(role: str, name: str) -> str:
    """Return the SQL that creates Dagster's database, or allows it; both names are quoted already."""
    return f"As a superuser: create database {name} owner {role}; or: alter role {role} createdb;"


def _identify(conn: Connection) -> tuple[str, str]:
    """Return the quoted names of the role and of the database."""
    role, database = conn.execute(text("select current_user, current_database()")).one()
    return _quote(conn, role), _quote(conn, database)


def _quote(conn: Connection, name: str) -> str:
    return conn.dialect.identifier_preparer.quote(name)


def _try(conn: Connection, statement: str) -> str:
    """Run a statement and undo it; return its error, empty if there was none."""
    attempt = conn.begin_nested()
    try:
        conn.execute(text(f"set local lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
        conn.execute(text(statement))
    except DBAPIError as error:
        return first_line(error.orig or error)
    finally:
        attempt.rollback()
    return ""

"""The roles of PostgreSQL for separate processes, and what each may do with the tables.

`deploy/postgres/roles.sql` creates the roles; every upgrade of the schema grants them their rights, so that
these reach new tables, too. Where no such role exists, nothing is granted: then one role does everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, text

from iccm_assets.db.server_rights import MissingRight

PLATFORM = "iccm_platform"  # code locations, runs, and the commands of people
GATEWAY = "iccm_gateway"  # `iccm serve`
READ_ONLY = "iccm_read_only"  # dashboards and analysts: no hashes of tokens

_READ = "select"
_WRITE = "select, insert, update"
_ALL = "select, insert, update, delete"
# What a gateway stores are requests, conversations with their requirements, and ratings; what it changes
# besides is its own heartbeat and how often a token was used. A conversation that is posted again replaces
# its requirements, and with them what was reconstructed from them.
_GATEWAY: Mapping[str, str] = {
    "alembic_version": _READ,
    "platform": _READ,
    "model_versions": _READ,
    "rollouts": _READ,
    "alerts": _READ,
    "gateway_tokens": f"{_READ}, update (use_count, last_used_at)",
    "gateway_replicas": _ALL,
    "requests": _WRITE,
    "conversations": _WRITE,
    "requirements": _ALL,
    "feedback": _ALL,
    "reconstructions": f"{_READ}, delete",
    "test_suites": _READ,
}
# A token's hash proves nothing about the token, but who reads tables does not need it.
_READABLE_TOKEN_COLUMNS = (
    *("name", "scopes", "created_at", "rotated_at", "expires_at", "revoked_at", "last_used_at", "use_count"),
)
_MAINTAIN_VERSION = 170_000
_MAX_NAMED_TABLES = 6
GRANTING = "Run `iccm db upgrade` with the role that owns the schema: it grants its roles their rights."
_RIGHT = re.compile(r"(\w+)(?: \(([^)]*)\))?")
_EXISTING = text("select rolname from pg_roles where rolname = any(:names) order by rolname")
_TABLES = text("select tablename from pg_tables where schemaname = 'iccm' order by tablename")


def grant_rights(conn: Connection) -> list[str]:
    """Give the roles that exist exactly their rights in the schema; return their names."""
    names = list(conn.execute(_EXISTING, {"names": [PLATFORM, GATEWAY, READ_ONLY]}).scalars())
    if not names:
        return []
    tables = list(conn.execute(_TABLES).scalars())
    version = int(conn.execute(text("show server_version_num")).scalar_one())
    statements = {
        PLATFORM: _platform_statements(tables, version),
        GATEWAY: _gateway_statements(),
        READ_ONLY: _read_only_statements(tables),
    }
    for name in names:
        for kind in ("tables", "sequences"):
            conn.execute(text(f"revoke all on all {kind} in schema iccm from {name}"))
        conn.execute(text(f"grant usage on schema iccm to {name}"))
        for statement in statements[name]:
            conn.execute(text(f"{statement} to {name}"))
    return names


def is_gateway(conn: Connection) -> bool:
    """Whether this is the role of `iccm serve`, which knows nothing of Dagster."""
    return bool(conn.execute(text("select current_user")).scalar_one() == GATEWAY)


def find_missing_grants(conn: Connection) -> MissingRight | None:
    """Return what this role lacks on the tables of the schema; every role but the gateway's needs all.

    Tables that a later revision brings do not count: they come with their rights.
    """
    role = conn.execute(text("select current_user")).scalar_one()
    tables = list(conn.execute(_TABLES).scalars())
    if role == GATEWAY:
        needed = {table: _GATEWAY[table] for table in tables if table in _GATEWAY}
    else:
        needed = {table: _READ if table == "alembic_version" else _ALL for table in tables}
    lacking = {table: rights for table in needed if (rights := _find_lacking(conn, table, needed[table]))}
    if not lacking:
        return None
    named = [f"{table} ({', '.join(rights)})" for table, rights in list(lacking.items())[:_MAX_NAMED_TABLES]]
    more = len(lacking) - len(named)
    rest = f", and on {more} more" if more else ""
    fix = GRANTING
    if role not in (PLATFORM, GATEWAY):
        fix += f" {role} is none of these: iccm_platform is for code locations, runs and commands."
    return MissingRight(f"{role} lacks rights on tables: {', '.join(named)}{rest}", fix)


def _find_lacking(conn: Connection, table: str, rights: str) -> list[str]:
    """Return which of the rights on a table this role lacks."""
    lacking = []
    for right, columns in _RIGHT.findall(rights):
        if columns:
            questions = [
                f"has_column_privilege('iccm.{table}', '{c}', '{right}')" for c in columns.split(", ")
            ]
        else:
            questions = [f"has_table_privilege('iccm.{table}', '{right}')"]
        if not conn.execute(text(f"select {' and '.join(questions)}")).scalar_one():
            lacking.append(right)
    return lacking


def _platform_statements(tables: list[str], server_version: int) -> Iterator[str]:
    for table in tables:  # the revision is the owner's
        yield f"grant {_READ if table == 'alembic_version' else _ALL} on iccm.{table}"
    yield "grant usage, select on all sequences in schema iccm"
    if server_version >= _MAINTAIN_VERSION:  # `iccm erase` rewrites tables; before 17 only their owner can
        yield "grant maintain on all tables in schema iccm"


def _gateway_statements() -> Iterator[str]:
    yield from (f"grant {rights} on iccm.{table}" for table, rights in _GATEWAY.items())


def _read_only_statements(tables: list[str]) -> Iterator[str]:
    for table in tables:
        columns = f" ({', '.join(_READABLE_TOKEN_COLUMNS)})" if table == "gateway_tokens" else ""
        yield f"grant select{columns} on iccm.{table}"

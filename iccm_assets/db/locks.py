"""Registry of the PostgreSQL advisory locks: every lock has a name here, and a key made from that name."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

import sqlalchemy as sa

_TRY = sa.text("select pg_try_advisory_xact_lock(:key)")
_ACQUIRE = sa.text("select pg_advisory_xact_lock(key) from unnest(cast(:keys as bigint[])) as key")


class Lock(StrEnum):
    """What is locked."""

    DATABASE_CREATION = "database_creation"  # `create database` of Dagster's own database
    MIGRATION = "migration"
    ERASURE = "erasure"
    DEPLOYMENT = "deployment"  # the statuses of the model versions
    DAGSTER_REPORTS = "dagster_reports"  # what Dagster shows of decisions outside its runs
    TRAINING_RUNS = "training_runs"
    MODEL_VERSIONS = "model_versions"  # the next version number
    FILTERED_DAY = "filtered_day"  # by day
    TRAINING_POOL = "training_pool"
    SESSION = "session"  # the conversation of one session, by session id
    BACKUP = "backup"  # the files that retention deletes
    SCORING = "scoring"  # one requirements row, by its id
    REGISTRY_MIRROR = "registry_mirror"  # the order in which an MLflow registry gets decisions
    WORKER = "worker"  # held by who waits for a worker on another machine, by the worker's token


def lock_key(lock: Lock, member: Hashable = None) -> int:
    """Return the lock's bigint key, of one ``member`` (a session, a day, a row) where it is locked singly.

    Hashed here and not by PostgreSQL's `hashtext`, whose values may change with the server's version.
    """
    name = f"iccm.{lock}" if member is None else f"iccm.{lock} {member}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def acquire_lock(conn: sa.Connection, lock: Lock, *members: Hashable) -> None:
    """Wait for the lock, or for those of its members in a fixed order; held until the transaction ends."""
    keys = sorted(lock_key(lock, member) for member in members or (None,))
    conn.execute(_ACQUIRE, {"keys": keys})


def try_lock(conn: sa.Connection, lock: Lock) -> bool:
    """Take the lock without waiting, until the transaction ends; return whether it was free."""
    return bool(conn.execute(_TRY, {"key": lock_key(lock)}).scalar_one())


@contextmanager
def hold_lock(engine: sa.Engine, lock: Lock) -> Iterator[None]:
    """Hold the lock on a connection of its own, without a transaction, until the block ends; waits for it."""
    key = {"key": lock_key(lock)}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("select pg_advisory_lock(:key)"), key)
        try:
            yield
        finally:
            with suppress(sa.exc.DBAPIError):  # a lost connection holds no lock any more
                conn.execute(sa.text("select pg_advisory_unlock(:key)"), key)

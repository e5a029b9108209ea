"""Let a worker on another machine exit with the process that waits for it.

A worker on this machine watches the pid of its parent (`worker_process.exit_with_parent`). One on a cluster
cannot: the waiting process holds an advisory lock instead, which ends with its connection, and the worker
exits once the lock has been free for a while. Without it the trainer of a killed run would continue for
hours, and its heartbeats would keep the run's row alive.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from iccm_assets.db.locks import Lock, lock_key
from iccm_assets.errors import IccmError
from iccm_assets.worker_process import EXIT_STATUS

TOKEN_ENV = "WORKER_PRESENCE"
CHECK_INTERVAL_SECONDS = 5.0
# The waiting process needs the time to connect again after a restart of the database.
ABSENCE_SECONDS = 30.0

_HOLD = sa.text("select pg_try_advisory_lock(:key)")
_IS_HELD = sa.text(
    """
    select exists (
        select from pg_locks where locktype = 'advisory' and granted and objsubid = 1
            and ((classid::bigint << 32) | objid::bigint) = :key
            and database = (select oid from pg_database where datname = current_database())
    )
    """
)


@contextmanager
def hold_presence(
    engine: sa.Engine, interval_seconds: float = CHECK_INTERVAL_SECONDS
) -> Iterator[dict[str, str]]:
    """Hold a fresh worker's lock during the block; yields the environment variables that name it."""
    token = secrets.token_hex(16)
    key, done = lock_key(Lock.WORKER, token), threading.Event()
    conn = _hold(engine, key)

    def keep() -> None:
        nonlocal conn
        while not done.wait(interval_seconds):
            try:
                conn.execute(_HOLD, {"key": key})  # a session may hold a lock several times
            except sa.exc.DBAPIError:
                # The lock went with the connection: taken again as soon as the database answers.
                with suppress(sa.exc.DBAPIError):
                    conn = _hold(engine, key)

    thread = threading.Thread(target=keep, name="worker-presence", daemon=True)
    thread.start()
    try:
        yield {TOKEN_ENV: token}
    finally:
        done.set()
        thread.join()
        conn.invalidate()  # back in the pool, the connection would still hold the lock
        conn.close()


def _hold(engine: sa.Engine, key: int) -> sa.Connection:
    conn = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    conn.execute(_HOLD, {"key": key})
    return conn


def is_on_cluster() -> bool:
    """Return whether this process works for one that may be on another machine."""
    return TOKEN_ENV in os.environ


def is_held(engine: sa.Engine, token: str) -> bool:
    """Return whether some process holds the lock of this token."""
    with engine.connect() as conn:
        return bool(conn.execute(_IS_HELD, {"key": lock_key(Lock.WORKER, token)}).scalar_one())


def exit_without_presence(
    make_engine: Callable[[], sa.Engine],
    interval_seconds: float = CHECK_INTERVAL_SECONDS,
    absence_seconds: float = ABSENCE_SECONDS,
) -> None:
    """Exit this process when nobody waits for it any more; without ``WORKER_PRESENCE`` do nothing.

    While the database does not answer, nobody is known to be absent.
    """
    token = os.environ.get(TOKEN_ENV, "")
    if not token:
        return

    def watch() -> None:
        engine, absent_since = None, None
        pause = threading.Event()
        while absent_since is None or time.monotonic() - absent_since < absence_seconds:
            pause.wait(interval_seconds)
            try:
                engine = engine or make_engine()
                held = is_held(engine, token)
            except (sa.exc.SQLAlchemyError, IccmError):  # the work itself reports such a database
                absent_since = None
                continue
            absent_since = None if held else absent_since or time.monotonic()
        os._exit(EXIT_STATUS)

    threading.Thread(target=watch, name="presence-watch", daemon=True).start()

"""Databases on the tests' server: one is created while no test runs, and dropped when another one has run."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import sqlalchemy as sa

TEMPLATE = "migrated"


class DatabasePool:
    """Migrated databases, each given out once; ``url`` is that of the server's own migrated database.

    Nothing is created or dropped while a test uses a database: a rollout counts what was stored before the
    oldest transaction that runs on the server.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        # One thread does everything, in order. Nobody connects to the template: it can be copied at any time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="databases")
        self._thread.submit(
            self._execute, f"create database {TEMPLATE} template {self._url.database}"
        ).result()
        self._next: Future[str] | None = None
        self._left: list[str] = []

    def take(self, *, empty: bool = False) -> str:
        """Return the URL of a new database, migrated or bare."""
        if empty:
            created = self._thread.submit(self._create, "template0")
        else:
            created, self._next = self._next or self._thread.submit(self._create, TEMPLATE), None
        return self._url.set(database=created.result()).render_as_string(hide_password=False)

    def drop(self, urls: Iterable[str]) -> None:
        """Disconnect everybody from these databases and those of a Dagster instance on them; create the next.

        They are dropped by the next call: PostgreSQL sleeps for a tenth of a second where a connection has
        not ended completely.
        """
        names = [str(sa.make_url(url).database) for url in urls]
        left, self._left = self._left, [name for own in names for name in (f"{own}_dagster", own)]
        connected = f"from pg_stat_activity where datname = any('{{{','.join(self._left)}}}')"
        self._thread.submit(
            self._execute,
            f"select pg_terminate_backend(pid) {connected}",
            *(f"drop database if exists {name} with (force)" for name in left),
        )
        self._next = self._next or self._thread.submit(self._create, TEMPLATE)

    def close(self) -> None:
        self._thread.shutdown()

    def _create(self, template: str) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self._execute(f"create database {name} template {template} strategy file_copy")
        return name

    def _execute(self, *statements: str) -> None:
        maintenance = self._url.set(database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(maintenance, autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

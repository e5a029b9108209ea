"""Databases on the tests' server: after a test, its databases are dropped and the next one is created."""

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

    def take(self, *, empty: bool = False) -> str:
        """Return the URL of a new database, migrated or bare."""
        if empty:
            created = self._thread.submit(self._create, "template0")
        else:
            created, self._next = self._next or self._thread.submit(self._create, TEMPLATE), None
        return self._url.set(database=created.result()).render_as_string(hide_password=False)

    def drop(self, urls: Iterable[str]) -> None:
        """Drop these databases, and those of a Dagster instance on them, and create the next one, soon."""
        for name in [str(sa.make_url(url).database) for url in urls]:
            self._thread.submit(self._execute, *(
                f"drop database if exists {database} with (force)" for database in (f"{name}_dagster", name)
            ))  # fmt: skip
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

"""Dagster's storage in PostgreSQL, with connections that stay open; `dagster.yaml` names it.

Dagster's own storage opens a connection for each call: more than 200 in the run of an empty day, a third of
its time. Here a process keeps up to three, and opens others only while it needs them. Not
below `defs`: loading the definitions imports all of that, and this imports SQLAlchemy and alembic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.config import pg_config
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config

if TYPE_CHECKING:
    from dagster_postgres.auth import PgTokenProvider


class PooledPostgresStorage(DagsterStorage, ConfigurableClass):
    """Storage of runs, events and schedules, with the configuration of Dagster's `storage: postgres`.

    The three share a pool, which closes its connections when the instance is disposed of. A connection is
    tested before its use, so that a server that restarted in between is no error.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        self._inst_data = inst_data
        self._runs = _RunStorage(postgres_url, should_autocreate_tables, token_provider=token_provider)
        self._events = PostgresEventLogStorage(
            postgres_url, should_autocreate_tables, token_provider=token_provider
        )
        self._schedules = PostgresScheduleStorage(
            postgres_url, should_autocreate_tables, token_provider=token_provider
        )
        self._runs._engine = self._events._engine = self._schedules._engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=3,  # storing an event takes two at a time, and a command's progress bar reads
            max_overflow=-1,  # the webserver's threads may need more
            pool_pre_ping=True,
        )

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The configuration, as Dagster passes it on to other processes."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return the schema of Dagster's `storage: postgres`."""
        return pg_config()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PooledPostgresStorage:
        """Create the storage that `dagster.yaml` configures."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )

    @property
    def run_storage(self) -> RunStorage:
        """The storage of runs."""
        return self._runs

    @property
    def event_log_storage(self) -> EventLogStorage:
        """The storage of events."""
        return self._events

    @property
    def schedule_storage(self) -> ScheduleStorage:
        """The storage of schedules and sensors."""
        return self._schedules


class _RunStorage(PostgresRunStorage):
    """The storage of runs, which Dagster disposes of with its instance."""

    def dispose(self) -> None:
        """Close the connections of the pool."""
        super().dispose()
        self._engine.dispose()

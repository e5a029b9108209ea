"""Keep the routing in sync with PostgreSQL: poll, listen for changes, and send heartbeats (G3, G4).

This runs on a thread with its own connection, so that a hanging database delays no response. Every failure is
retried. Meanwhile the last routing stays in force, and the canary's lease expires without the database.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row

from iccm_assets.db.clock import CLOCK_SQL
from iccm_assets.db.notify import ROUTING_CHANNEL
from iccm_assets.db.replicas import LIVE_REPLICAS_SQL
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.errors import DatabaseError, first_line
from iccm_assets.gateway.model_pool import ModelPool
from iccm_assets.gateway.routing import Clock, Routing, monotonic_seconds, parse_routing
from iccm_assets.gateway.tokens import COUNT_USES, READ_TOKENS, TokenStore

log = logging.getLogger(__name__)

# A single statement reads one snapshot: a promotion is visible completely or not at all.
_STATE = f"""
    with live as (
        select id as rollout_id, state, stage, candidate, production as former, weight, lease_until
        from iccm.rollouts where state in {LIVE_STATES}
    ), serving as (
        select version from iccm.model_versions where status = 'production'
    ), previous as (
        select version from iccm.model_versions where status = 'retired' and deployed_at is not null
        order by deployed_at desc limit 1
    ), replica as (
        {LIVE_REPLICAS_SQL}
    ), needed as (
        select version from serving union select version from previous
        union select candidate from live union select former from live
        union select unnest(ready_versions) from replica
    )
    select clock.now, clock.rate,
        (select version from serving) as production,
        (select version from previous) as previous,
        (select to_jsonb(live) from live) as rollout,
        (select jsonb_agg(jsonb_build_object('version', version, 'path', path, 'digest', digest))
            from iccm.model_versions where version in (select version from needed)) as versions,
        (select jsonb_agg(replica.ready_versions) from replica) as replicas
    from {CLOCK_SQL}
"""
_HEARTBEAT = """
    insert into iccm.gateway_replicas as g (replica, address, ready_versions, failed_versions)
    values (%s, %s, %s, %s::jsonb)
    on conflict (replica) do update set heartbeat_at = iccm.now(), address = excluded.address,
        ready_versions = excluded.ready_versions, failed_versions = excluded.failed_versions
"""
# Rows of dead processes are kept for a day, so that they can be inspected.
_DELETE_STALE = "delete from iccm.gateway_replicas where heartbeat_at < iccm.now() - interval '1 day'"
_DELETE_OWN = "delete from iccm.gateway_replicas where replica = %s"

# Detect a dead connection within seconds instead of the minutes that TCP allows.
_OPTIONS: dict[str, Any] = {
    "connect_timeout": 3,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "options": "-c statement_timeout=3000 -c lock_timeout=2000 -c TimeZone=UTC",
    "application_name": "iccm gateway",
}


class RoutingSync(threading.Thread):
    """Keep ``routing`` and ``clock`` current; both are replaced and never changed in place."""

    def __init__(
        self,
        url: Callable[[], str | None],
        replica: str,
        address: str,
        models: ModelPool,
        *,
        on_refresh: Callable[[], None],
        poll_seconds: float,
        keep_previous_warm: bool,
        tokens: TokenStore,
    ) -> None:
        super().__init__(name="routing-sync", daemon=True)
        self.routing: Routing | None = None
        self.clock: Clock | None = None
        self.connected = False
        self._url, self._replica, self._address, self._models = url, replica, address, models
        self._on_refresh, self._poll_seconds = on_refresh, poll_seconds
        self._keep_previous, self._tokens = keep_previous_warm, tokens
        self._stopping = threading.Event()
        self._failure_logged = False

    def stop(self) -> None:
        """Stop, and remove this replica's row if the database can be reached."""
        self._stopping.set()
        self.join(timeout=10)

    def run(self) -> None:
        """Refresh until `stop`, reconnecting after each failure."""
        while not self._stopping.is_set():
            try:
                self._refresh_until_stopped()
            except (psycopg.Error, DatabaseError, OSError) as error:
                if not self._failure_logged:
                    log.warning("cannot reach the database, production keeps serving: %s", first_line(error))
                self._failure_logged = True
            except Exception:
                log.exception("refreshing the routing failed, retrying")
            self.connected = False
            self._on_refresh()
            self._stopping.wait(min(self._poll_seconds, 0.5))

    def _refresh_until_stopped(self) -> None:
        url = self._url()
        if url is None:
            raise DatabaseError("the embedded server is not running")
        with psycopg.connect(url, autocommit=True, row_factory=dict_row, **_OPTIONS) as conn:
            conn.execute(f"listen {ROUTING_CHANNEL}")
            conn.execute(_DELETE_STALE)
            while not self._stopping.is_set():
                self._refresh(conn)
                # Returns at the first notification, or when the next poll is due.
                list(conn.notifies(timeout=self._poll_seconds, stop_after=1))
            self._store_uses(conn)
            with suppress(psycopg.Error):
                conn.execute(_DELETE_OWN, (self._replica,))

    def _refresh(self, conn: psycopg.Connection[dict[str, Any]]) -> None:
        # The heartbeat comes first, so that the state read afterwards includes this replica as it is now.
        if self._models.startup_complete:
            ready, failed = sorted(self._models.ready), json.dumps(dict(self._models.failed))
            conn.execute(_HEARTBEAT, (self._replica, self._address, ready, failed))
        queried_at = monotonic_seconds()
        row = conn.execute(_STATE).fetchone()
        assert row is not None  # the query always returns one row
        routing, self.clock = parse_routing(row, queried_at)
        if routing is not None:
            required = routing.required_models(self._keep_previous)
            self._models.set_required(required, routing.loaded_elsewhere())
            self.routing = routing
        self._tokens.replace(conn.execute(READ_TOKENS).fetchall())
        self._store_uses(conn)
        if self._failure_logged:
            log.warning("the database can be reached again")
        self.connected, self._failure_logged = True, False
        self._on_refresh()

    def _store_uses(self, conn: psycopg.Connection[dict[str, Any]]) -> None:
        uses = self._tokens.take_uses()
        try:
            with conn.transaction():
                for use in uses:
                    conn.execute(COUNT_USES, use)
        except psycopg.Error:
            self._tokens.put_back(uses)
            raise

"""The gateway's line to the database: reads the routing, says it lives, hears of changes (G3, G4).

A thread of its own with one connection, so that a database that hangs delays no answer. Whatever it
cannot do it tries again; the routing it read last stays, and with it the lease that ends by itself.
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

from iccm_assets.errors import DatabaseError
from iccm_assets.gateway.fleet import Fleet
from iccm_assets.gateway.routing import Clock, Routing, elapsed, routing_of
from iccm_assets.store.notify import ROUTING_CHANNEL
from iccm_assets.store.replicas import LIVE
from iccm_assets.store.tables import LIVE_STATES

log = logging.getLogger("iccm.gateway")

# One statement sees one moment: a promotion is seen whole or not at all.
_STATE = f"""
    with live as (
        select id, candidate, production, state, stage, weight, lease_until from iccm.rollouts
        where state in {LIVE_STATES}
    ), serving as (
        select version from iccm.model_versions where status = 'production'
    ), former as (
        select version from iccm.model_versions where status = 'retired' and deployed_at is not null
        order by deployed_at desc limit 1
    ), needed as (
        select version from serving union select version from former
        union select candidate from live union select production from live
    )
    select iccm.now() as now,
        coalesce((select (value ->> 'rate')::double precision from iccm.platform where key = 'clock'), 1.0)
            as rate,
        (select version from serving) as production,
        (select version from former) as former,
        (select to_jsonb(live) from live) as rollout,
        (select jsonb_agg(jsonb_build_object('version', version, 'path', path, 'digest', digest))
            from iccm.model_versions where version in (select version from needed)) as versions,
        (select jsonb_agg(replica.ready_versions) from ({LIVE}) as replica) as replicas
"""
_HEARTBEAT = """
    insert into iccm.gateway_replicas as g (replica, address, ready_versions, failed_versions)
    values (%s, %s, %s, %s::jsonb)
    on conflict (replica) do update set heartbeat_at = iccm.now(), address = excluded.address,
        ready_versions = excluded.ready_versions, failed_versions = excluded.failed_versions
"""
# What dead processes left behind; a day is long enough for anyone to have asked what they were.
_FORGET = "delete from iccm.gateway_replicas where heartbeat_at < iccm.now() - interval '1 day'"
_GONE = "delete from iccm.gateway_replicas where replica = %s"

# A connection that is not answered is dead in seconds, not in the minutes TCP allows it.
_OPTIONS: dict[str, Any] = {
    "connect_timeout": 3,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "options": "-c statement_timeout=3000 -c lock_timeout=2000 -c TimeZone=UTC",
    "application_name": "iccm gateway",
}


class Control:
    """Keeps ``routing`` and ``clock`` current; both are replaced, never changed."""

    def __init__(
        self,
        url: Callable[[], str | None],
        replica: str,
        fleet: Fleet,
        *,
        poll_seconds: float,
        keep_former: bool,
    ) -> None:
        self.routing: Routing | None = None
        self.clock: Clock | None = None
        self.connected = False
        self.address = ""
        self.on_look: Callable[[], None] = lambda: None
        self._url, self._replica, self._fleet = url, replica, fleet
        self._poll, self._keep_former = poll_seconds, keep_former
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-control", daemon=True)
        self._announced = False

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End, and take this replica off the list if the database can be reached."""
        self._over.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._watch()
            except (psycopg.Error, DatabaseError, OSError) as error:
                if self.connected or not self._announced:
                    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    log.warning("the database is away, production goes on answering: %s", first)
                self._announced = True
            except Exception:
                log.exception("watching the routing failed; it is tried again")
            self.connected = False
            self.on_look()
            self._over.wait(min(self._poll, 0.5))

    def _watch(self) -> None:
        url = self._url()
        if url is None:
            raise DatabaseError("the embedded server does not run")
        with psycopg.connect(url, autocommit=True, row_factory=dict_row, **_OPTIONS) as conn:
            conn.execute(f"listen {ROUTING_CHANNEL}")
            conn.execute(_FORGET)
            while not self._over.is_set():
                self._look(conn)
                # Ends with the first notice, or when it is time to look anyway.
                for _ in conn.notifies(timeout=self._poll, stop_after=1):
                    pass
            with suppress(psycopg.Error):
                conn.execute(_GONE, (self._replica,))

    def _look(self, conn: psycopg.Connection[dict[str, Any]]) -> None:
        # First what is ready here, then everybody's: a look counts this replica as it is.
        if self._fleet.settled:
            ready, failed = sorted(self._fleet.ready), json.dumps(dict(self._fleet.failed))
            conn.execute(_HEARTBEAT, (self._replica, self.address, ready, failed))
        asked_at = elapsed()
        row = conn.execute(_STATE).fetchone()
        assert row is not None  # a select of one row
        routing, clock = routing_of(row, asked_at)
        if routing is not None:
            self._fleet.want(routing.wanted(self._keep_former))
        if not self.connected and self._announced:
            log.warning("the database is back")
        self.clock = clock
        self.routing = routing if routing is not None else self.routing
        self.connected, self._announced = True, True
        self.on_look()

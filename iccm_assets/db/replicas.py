"""Live gateway processes and the versions they are ready to serve (G3)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from iccm_assets.db.clock import CLOCK_SQL

# Wall-clock seconds: heartbeats come every second or two, however fast the platform clock runs.
HEARTBEAT_SECONDS = 10.0

# Heartbeats are dated by the platform clock, so its rate converts their age to seconds. A heartbeat from the
# future was written before the clock was set back and proves nothing.
LIVE_REPLICAS_SQL = f"""
    select g.replica, g.address, g.ready_versions, g.failed_versions
    from iccm.gateway_replicas g, {CLOCK_SQL}
    where extract(epoch from clock.now - g.heartbeat_at) / clock.rate between -1.0 and {HEARTBEAT_SECONDS}
    order by g.replica
"""


@dataclass(frozen=True)
class Replica:
    """A live gateway process and the versions it has loaded."""

    replica: str
    address: str | None
    ready_versions: list[str]


def load_live_replicas(conn: Connection) -> list[Replica]:
    """Return the gateway processes with a fresh heartbeat, by name."""
    rows = conn.execute(text(LIVE_REPLICAS_SQL))
    return [Replica(row.replica, row.address, row.ready_versions) for row in rows]

"""Which gateway processes live, and what they have ready (G3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

# Real seconds: heartbeats come every second or two, however fast the platform's clock runs.
HEARTBEAT_SECONDS = 10.0

# A heartbeat is dated by the platform's clock, whose rate makes seconds of it; one from the future is what
# a clock set back leaves behind, and says nothing.
LIVE = f"""
    select g.replica, g.address, g.ready_versions, g.failed_versions
    from iccm.gateway_replicas g,
        (select iccm.now() as now, coalesce((select (value ->> 'rate')::double precision
            from iccm.platform where key = 'clock'), 1.0) as rate) as clock
    where extract(epoch from clock.now - g.heartbeat_at) / clock.rate between -1.0 and {HEARTBEAT_SECONDS}
    order by g.replica
"""


@dataclass(frozen=True)
class Replica:
    """A living gateway process; ``failed_versions`` says why a version could not be loaded there."""

    replica: str
    address: str | None
    ready_versions: tuple[str, ...]
    failed_versions: dict[str, str]


def live_replicas(conn: sa.Connection) -> list[Replica]:
    """The gateway processes with a fresh heartbeat, by name."""
    return [replica_of(row._mapping) for row in conn.execute(sa.text(LIVE))]


def replica_of(row: Any) -> Replica:
    """A row of the query as a value."""
    return Replica(row["replica"], row["address"], tuple(row["ready_versions"]), dict(row["failed_versions"]))

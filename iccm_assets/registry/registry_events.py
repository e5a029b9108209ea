"""The outbox of an MLflow registry: one row per decision, written in the decision's own transaction. (L13)

Rows are written whether or not a registry is set: one that is set later gets the decisions before it, too.
"""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.db import tables as t


def record_deployment_event(conn: sa.Connection, event_id: int) -> None:
    """Put a deployment event that sets a version's share of traffic into the outbox."""
    conn.execute(t.registry_events.insert().values(deployment_event_id=event_id))


def record_verdict(conn: sa.Connection, verdict_id: int) -> None:
    """Put a gate verdict into the outbox."""
    conn.execute(t.registry_events.insert().values(verdict_id=verdict_id))

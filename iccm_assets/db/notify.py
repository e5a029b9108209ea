"""Notify gateways of routing changes (G4); they also poll, so a lost notification costs seconds."""

from __future__ import annotations

from sqlalchemy import Connection, text

ROUTING_CHANNEL = "iccm_routing"


def notify_routing(conn: Connection) -> None:
    """Wake every gateway when the caller's transaction commits.

    Call it where a weight, a state or the production version changes, never per request: all commits that
    notify share one lock.
    """
    conn.execute(text("select pg_notify(:channel, '')"), {"channel": ROUTING_CHANNEL})

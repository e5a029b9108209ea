"""Telling gateways that who serves has changed (G4); they poll as well, so a lost notice costs seconds."""

from __future__ import annotations

import sqlalchemy as sa

ROUTING_CHANNEL = "iccm_routing"


def notify_routing(conn: sa.Connection) -> None:
    """Wake every gateway when the caller's transaction commits.

    Call it where a weight, a state or the production version changes, never per request: a commit that
    notifies takes a lock all such commits share.
    """
    conn.execute(sa.text("select pg_notify(:channel, '')"), {"channel": ROUTING_CHANNEL})

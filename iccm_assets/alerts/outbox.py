"""Raising alerts (A1, A2): a row of the outbox and a log line; whoever delivers comes by later (delivery.py).

Stands on the ground, beside `store`: every chapter may raise alerts.
"""

from __future__ import annotations

import logging
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.store import tables as t

log = logging.getLogger("iccm_assets.alerts")

Severity = Literal["info", "warning", "critical"]
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


def raise_alert(conn: sa.Connection, key: str, severity: str, title: str, body: str = "") -> bool:
    """Put an alert into the outbox, in the caller's transaction; whether it is new.

    ``key`` names the cause and is unique for ever: the same cause again changes nothing and logs nothing. Its
    texts hold ids and numbers, never what a conversation said (V2).
    """
    fresh = conn.execute(
        insert(t.alerts)
        .values(key=key, severity=severity, title=title, body=body)
        .on_conflict_do_nothing(index_elements=["key"])
        .returning(t.alerts.c.key)
    ).scalar_one_or_none()
    if fresh is not None:
        log.log(_LEVELS[severity], "alert %s (%s): %s", key, severity, f"{title}. {body}".rstrip(" ."))
    return fresh is not None

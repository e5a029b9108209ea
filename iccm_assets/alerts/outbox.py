"""Raise alerts: insert a row into the outbox and write a log line; the dispatcher sends it later (A1, A2)."""

from __future__ import annotations

import logging

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.db import tables as t

log = logging.getLogger(__name__)

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


def raise_alert(conn: Connection, key: str, severity: str, title: str, body: str = "") -> bool:
    """Insert an alert into the outbox, in the caller's transaction; return whether it is new.

    ``key`` identifies the cause and is unique: raising the same cause again changes nothing and logs
    nothing. ``severity`` is info, warning or critical. The texts contain ids and numbers, never content of a
    conversation (V2).
    """
    inserted = conn.execute(
        insert(t.alerts)
        .values(key=key, severity=severity, title=title, body=body)
        .on_conflict_do_nothing(index_elements=["key"])
        .returning(t.alerts.c.key)
    ).scalar_one_or_none()
    if inserted is not None:
        log.log(_LEVELS[severity], "alert %s (%s): %s", key, severity, f"{title}. {body}".rstrip(" ."))
    return inserted is not None

"""A judge without its sandbox gives no verdict, and says so once a day and machine (A2, J3)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Protocol

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.store.clock import now

# The judge's word for a re-implementation it could not run; every other fault has another.
WITHOUT_SANDBOX = "inconclusive"


class Tested(Protocol):
    """A re-implementation with what the judge made of it."""

    @property
    def status(self) -> str: ...

    @property
    def detail(self) -> str: ...


def alert_without_sandbox(conn: sa.Connection, members: Iterable[Tested]) -> None:
    """Raise an alert when any of these could not be run, in the caller's transaction."""
    reason = next((one.detail for one in members if one.status == WITHOUT_SANDBOX), None)
    if reason is None:
        return
    host = socket.gethostname()
    raise_alert(
        conn,
        f"sandbox:{host}:{now(conn):%Y-%m-%d}",
        "critical",
        "Sandbox layer missing",
        f"{host} gives no verdicts: {reason} `iccm doctor` says how to mend it; inconclusive scores are tried"
        " again once `scored_at` is cleared.",
    )

"""Statements with a common deadline, for a decision that must not take long (R7)."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import DatabaseError

_LIMIT = sa.text("select set_config('statement_timeout', :ms, true)")


class DeadlineConnection:
    """Runs statements on a connection for ``seconds`` in all; then PostgreSQL cancels them."""

    def __init__(self, conn: sa.Connection, seconds: float) -> None:
        self._conn, self._deadline = conn, time.monotonic() + seconds

    def all(self, query: sa.TextClause, **values: Any) -> list[sa.Row[Any]]:
        """Return all rows; ``DatabaseError`` when no time remains."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise DatabaseError("reading took longer than a tick may take; nothing was counted")
        self._conn.execute(_LIMIT, {"ms": str(max(1, int(1000 * remaining)))})
        return list(self._conn.execute(query, values))

    def one(self, query: sa.TextClause, **values: Any) -> sa.Row[Any]:
        """Return the only row."""
        return self.all(query, **values)[0]

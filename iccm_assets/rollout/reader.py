"""Reading for a decision that must not take long: every statement has what is left of the time (R7)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import DatabaseError

_LIMIT = sa.text("select set_config('statement_timeout', :ms, true)")


class Reader:
    """Runs statements on a connection until ``seconds`` are over; then PostgreSQL or it itself gives up."""

    def __init__(self, conn: sa.Connection, seconds: float) -> None:
        self._conn, self._deadline = conn, time.monotonic() + seconds

    def limit(self) -> None:
        """Give the connection's next statement the time that is left; ``DatabaseError`` when none is."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DatabaseError("reading took longer than a tick may take")
        self._conn.execute(_LIMIT, {"ms": str(max(1, int(1000 * left)))})

    def all(self, query: sa.TextClause, **values: Any) -> list[sa.Row[Any]]:
        """All rows."""
        self.limit()
        return list(self._conn.execute(query, values))

    def one(self, query: sa.TextClause, **values: Any) -> sa.Row[Any]:
        """The only row."""
        return self.all(query, **values)[0]

    def mappings(self, query: sa.TextClause, **values: Any) -> list[Mapping[str, Any]]:
        """All rows, by name."""
        return [dict(row._mapping) for row in self.all(query, **values)]

"""Read from the tables what the checks of `rollout.health` decide on."""

from __future__ import annotations

import sqlalchemy as sa


def list_versions(conn: sa.Connection, status: str) -> list[str]:
    """Return the versions of one status, sorted."""
    query = sa.text("select version from iccm.model_versions where status = :status order by version")
    return list(conn.execute(query, {"status": status}).scalars())

"""What `rollout.health` decides over, read from the tables."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.rollout.health import LiveRollout


def versions_with(conn: sa.Connection, status: str) -> list[str]:
    """The versions of one status, sorted."""
    query = sa.text("select version from iccm.model_versions where status = :status order by version")
    return list(conn.execute(query, {"status": status}).scalars())


def live_rollout(conn: sa.Connection) -> LiveRollout | None:
    """The live rollout, if any; there is at most one."""
    row = conn.execute(
        sa.text(
            """
            select id, candidate, production, state, weight, lease_until from iccm.rollouts
            where state in ('ramping', 'holding', 'paused', 'baking')
            """
        )
    ).one_or_none()
    return None if row is None else LiveRollout(*row)

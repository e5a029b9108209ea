"""How live traffic is doing, in one reading: arms, the rollout, replicas, what waits (A3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.store.arms import ArmFigures, arm_figures
from iccm_assets.store.clock import now
from iccm_assets.store.replicas import live_replicas
from iccm_assets.store.tables import LIVE_STATES


@dataclass(frozen=True)
class LiveRollout:
    """The live rollout; seconds are real ones, None where there is no lease or hold."""

    id: int
    candidate: str
    production: str
    state: str
    stage: int
    weight: float
    lease_seconds: float | None
    held_seconds: float | None


@dataclass(frozen=True)
class Live:
    """One reading; ``ready`` counts the living replicas that have a version loaded and warm."""

    arms: tuple[ArmFigures, ...]
    rollout: LiveRollout | None
    production: str | None
    replicas: int
    ready: Mapping[str, int]
    undelivered_alerts: int


_ROLLOUT = sa.text(
    f"""
    select r.id, r.candidate, r.production, r.state, r.stage, r.weight,
        extract(epoch from r.lease_until - clock.now)::double precision / clock.rate,
        extract(epoch from clock.now - r.held_since)::double precision / clock.rate
    from iccm.rollouts r, (select iccm.now() as now, coalesce((select (value ->> 'rate')::double precision
        from iccm.platform where key = 'clock'), 1.0) as rate) as clock
    where r.state in {LIVE_STATES}
    """
)


def live(conn: sa.Connection, window: timedelta) -> Live:
    """What there is to know of live traffic; the arms' figures are those of the last ``window``."""
    row = conn.execute(_ROLLOUT).one_or_none()
    replicas = live_replicas(conn)
    ready: dict[str, int] = {}
    for version in (version for one in replicas for version in one.ready_versions):
        ready[version] = ready.get(version, 0) + 1
    return Live(
        arms=tuple(arm_figures(conn, now(conn) - window)),
        rollout=None if row is None else LiveRollout(*row),
        production=_scalar(conn, "select version from iccm.model_versions where status = 'production'"),
        replicas=len(replicas),
        ready=ready,
        undelivered_alerts=_scalar(conn, "select count(*) from iccm.alerts where delivered_at is null"),
    )


def _scalar(conn: sa.Connection, query: str) -> Any:
    return conn.execute(sa.text(query)).scalar_one_or_none()

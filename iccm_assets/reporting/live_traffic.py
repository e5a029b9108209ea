"""State of live traffic in one reading: arms, rollout, replicas, undelivered alerts (A3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from iccm_assets.db.clock import CLOCK_SQL, now
from iccm_assets.db.replicas import load_live_replicas
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.reporting.arm_metrics import ArmMetrics, load_arm_metrics


@dataclass(frozen=True)
class LiveRollout:
    """The live rollout; wall-clock seconds, None without a lease or hold."""

    id: int
    candidate: str
    production: str
    state: str
    stage: int
    weight: float
    lease_seconds: float | None
    held_seconds: float | None


@dataclass(frozen=True)
class LiveTraffic:
    """One reading; ``ready`` counts the live replicas that have a version loaded and warm, by version."""

    arms: tuple[ArmMetrics, ...]
    rollout: LiveRollout | None
    production: str | None
    replicas: int
    ready: Mapping[str, int]
    undelivered_alerts: int


_ROLLOUT = text(
    f"""
    select r.id, r.candidate, r.production, r.state, r.stage, r.weight,
        extract(epoch from r.lease_until - clock.now)::double precision / clock.rate,
        extract(epoch from clock.now - r.held_since)::double precision / clock.rate
    from iccm.rollouts r, {CLOCK_SQL}
    where r.state in {LIVE_STATES}
    """
)
_PRODUCTION = text("select version from iccm.model_versions where status = 'production'")
_UNDELIVERED = text("select count(*) from iccm.alerts where delivered_at is null")


def load_live_traffic(conn: Connection, window: timedelta) -> LiveTraffic:
    """Read the state of live traffic; the arm metrics cover the last ``window``."""
    rollout = conn.execute(_ROLLOUT).one_or_none()
    replicas = load_live_replicas(conn)
    return LiveTraffic(
        arms=tuple(load_arm_metrics(conn, now(conn) - window)),
        rollout=None if rollout is None else LiveRollout(*rollout),
        production=conn.execute(_PRODUCTION).scalar_one_or_none(),
        replicas=len(replicas),
        ready=Counter(version for replica in replicas for version in replica.ready_versions),
        undelivered_alerts=conn.execute(_UNDELIVERED).scalar_one(),
    )

"""`iccm rollback`: the former version in production again, during a rollout or long after it (R8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.errors import NotAllowed
from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.rollout import controller, records
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now
from iccm_assets.store.notify import notify_routing


@dataclass(frozen=True)
class TakenBack:
    """What was taken back and what serves now; ``rollout_id`` where a live rollout was ended by it."""

    away: str
    serving: str
    rollout_id: int | None
    reason: str


def roll_back(engine: sa.Engine, settings: Settings, *, actor: str, reason: str = "") -> TakenBack:
    """Take the newest change back at once: a live rollout's candidate, else the version in production.

    Raises ``NotAllowed`` when there is nothing to go back to; nothing was changed then.
    """
    with engine.connect() as conn:
        live = records.live(conn)
    if live is None:
        return rollback_production(engine, actor=actor, reason=reason)
    decision = controller.order(engine, settings, "rollback", actor=actor, note=reason)
    state = decision.state
    return TakenBack(state.candidate, state.production, state.id, decision.reason)


def rollback_production(engine: sa.Engine, *, actor: str, reason: str = "") -> TakenBack:
    """Put the former production version back in one transaction: statuses, events, alert, notice.

    The former version is the one whose time in production ended last; the one taken back does not return
    by going back again. Raises ``NotAllowed`` while a rollout is live, or without a former version.
    """
    with engine.begin() as conn:
        records.lock_deployment(conn)
        if (live := records.live(conn)) is not None:
            raise NotAllowed(f"rollout {live.id} is live; take its candidate back instead")
        serving, former = versions.production(conn), _former(conn)
        if serving is None or former is None:
            raise NotAllowed("there is no former production version to go back to")
        why = f"by {actor}{f': {reason}' if reason else ''}"
        rollout_id = _rollout_of(conn, serving.version)
        records.swap_production(conn, former, "rolled_back", None)
        numbers = {"from": serving.version, "to": former, "rollout": rollout_id}
        event = _record(conn, serving, former, why, numbers, actor)
        records.book_rollback(
            conn,
            rollout_id=rollout_id,
            away=serving.version,
            to=former,
            reason="manual",
            metrics={**numbers, "version_metrics": serving.metrics},
            notes=why,
            actor=actor,
        )
        body = f"{serving.version} was taken back {why}; {former} serves again."
        raise_alert(conn, f"rollback-{event}", "warning", "Model Rollback", body)
        notify_routing(conn)
    return TakenBack(serving.version, former, None, why)


def _former(conn: sa.Connection) -> str | None:
    """The version that gateways keep warm for this: retired last, of those that were in production."""
    mv = t.model_versions.c
    return conn.execute(
        sa.select(mv.version)
        .where(mv.status == "retired", mv.deployed_at.is_not(None))
        .order_by(mv.deployed_at.desc())
        .limit(1)
    ).scalar_one_or_none()


def _rollout_of(conn: sa.Connection, version: str) -> int | None:
    """The rollout that brought a version into production, if one did."""
    r = t.rollouts.c
    return conn.execute(
        sa.select(r.id).where(r.candidate == version, r.state == "completed").order_by(r.id.desc()).limit(1)
    ).scalar_one_or_none()


def _record(
    conn: sa.Connection, serving: ModelVersion, former: str, why: str, numbers: dict[str, Any], actor: str
) -> int:
    """The event: from now on the former version has everything. A closed rollout's history stays as it is."""
    values = {
        "timestamp": now(conn),
        "event_type": "rolled_back",
        "from_state": "production",
        "to_state": "rolled_back",
        "version": former,
        "weight": 1.0,
        "evidence": numbers,
        "notes": f"manual: {serving.version} was taken back {why}",
        "actor": actor,
    }
    e = t.deployment_events
    return int(conn.execute(e.insert().values(values).returning(e.c.id)).scalar_one())

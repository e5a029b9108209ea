"""`iccm rollback`: restore the previous version, during a rollout or long after it (R8)."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.notify import notify_routing
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.registry import versions
from iccm_assets.rollout import controller, repository
from iccm_assets.rollout.actions import DeploymentEvent
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class RollbackResult:
    """The version rolled back and the one that serves now; ``rollout_id`` if that ended a live rollout."""

    rolled_back: str
    serving: str
    rollout_id: int | None
    reason: str


def roll_back(engine: sa.Engine, settings: Settings, *, actor: str, reason: str = "") -> RollbackResult:
    """Roll back the newest change immediately: a live rollout's candidate, else the version in production.

    Raises ``OperationNotAllowedError`` if there is no previous version; nothing has changed then.
    """
    with engine.connect() as conn:
        live = repository.get_live_rollout(conn)
    if live is None:
        return roll_back_production(engine, actor=actor, reason=reason)
    decision = controller.execute_command(engine, settings, "rollback", actor=actor, note=reason)
    state = decision.state
    return RollbackResult(state.candidate, state.production, state.id, decision.reason)


def roll_back_production(engine: sa.Engine, *, actor: str, reason: str = "") -> RollbackResult:
    """Restore the previous production version in one transaction: statuses, events, alert, notice.

    That is the one whose time in production ended last; a version once rolled back is not restored by
    another rollback. Raises ``OperationNotAllowedError`` while a rollout is live, or without a previous
    version.
    """
    with engine.begin() as conn:
        repository.lock_deployment(conn)
        if (live := repository.get_live_rollout(conn)) is not None:
            raise OperationNotAllowedError(f"rollout {live.id} is live; roll back its candidate instead")
        serving, previous = versions.get_production_version(conn), _find_previous_production(conn)
        if serving is None or previous is None:
            raise OperationNotAllowedError("there is no previous production version to go back to")
        reason = f"by {actor}{f': {reason}' if reason else ''}"
        rollout_id = _completed_rollout(conn, serving.version)
        repository.swap_production(conn, previous, "rolled_back", None)
        numbers = {"from": serving.version, "to": previous, "rollout": rollout_id}
        summary = f"{serving.version} was rolled back {reason}"
        # The event belongs to no rollout: the history of a closed one does not change.
        event = DeploymentEvent(
            "rolled_back",
            now(conn),
            "production",
            "rolled_back",
            previous,
            1.0,
            f"manual: {summary}",
            numbers,
            actor,
        )
        event_id = repository.insert_event(conn, event)
        repository.insert_rollback_event(
            conn,
            from_version=serving.version,
            to_version=previous,
            rollout_id=rollout_id,
            reason="manual",
            metrics={**numbers, "version_metrics": serving.metrics},
            notes=reason,
            actor=actor,
        )
        body = f"{summary}; {previous} serves again."
        raise_alert(conn, f"rollback-{event_id}", "warning", "Model Rollback", body)
        notify_routing(conn)
    return RollbackResult(serving.version, previous, None, reason)


def _find_previous_production(conn: sa.Connection) -> str | None:
    """Return the version that gateways keep warm for this: retired last, of those that were in production."""
    mv = t.model_versions.c
    query = sa.select(mv.version).where(mv.status == "retired", mv.deployed_at.is_not(None))
    return conn.execute(query.order_by(mv.deployed_at.desc()).limit(1)).scalar_one_or_none()


def _completed_rollout(conn: sa.Connection, version: str) -> int | None:
    """Return the rollout that brought a version into production, if one did."""
    r = t.rollouts.c
    query = sa.select(r.id).where(r.candidate == version, r.state == "completed")
    return conn.execute(query.order_by(r.id.desc()).limit(1)).scalar_one_or_none()

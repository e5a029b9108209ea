"""Abort the live rollout for an emergency retrain, and raise alerts about retrains (T2, T6, A2)."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db.clock import now
from iccm_assets.rollout import repository
from iccm_assets.rollout.commands import apply_command
from iccm_assets.rollout.policy import BAKE_STAGE

ACTOR = "emergency retrain"


def abort_for_emergency(conn: sa.Connection, rollout_id: int, reason: str) -> bool:
    """Abort a live rollout at stage 1 or 2, in the caller's transaction; return whether it was still live.

    Production serves all traffic from then on, and the candidate may be deployed later. A candidate that is
    in production already stays there.
    """
    repository.lock_deployment(conn)
    state = repository.get_live_rollout(conn, lock=True)
    if state is None or state.id != rollout_id or state.stage >= BAKE_STAGE:
        return False
    return repository.persist_decision(conn, state, apply_command(state, "abort", ACTOR, now(conn), reason))


def alert_degradation(conn: sa.Connection, run_id: int, summary: str) -> None:
    """Alert that production quality degraded and an emergency retrain was requested."""
    key = f"degradation:training-run-{run_id}"
    body = f"{summary}. Training run {run_id}, an emergency, was requested."
    raise_alert(conn, key, "critical", "Production quality degraded", body)


def alert_queued(conn: sa.Connection, run_id: int, dagster_run_id: str, reason: str) -> None:
    """Alert about a training run whose Dagster run does not get a slot."""
    body = (
        f"Training run {run_id}: its Dagster run {dagster_run_id} is {reason}. Other runs occupy the slots."
    )
    raise_alert(conn, f"training_run:{run_id}:queued", "warning", "Retrain run stuck in queue", body)


def alert_attempts_exhausted(conn: sa.Connection, run_id: int, reason: str) -> None:
    """Alert about a failed training run that is not tried again."""
    body = f"Training run {run_id} has failed and will not be tried again: {reason}"
    raise_alert(conn, f"training_run:{run_id}:failed", "warning", "Retrain failed", body)

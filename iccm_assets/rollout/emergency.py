"""What an emergency retrain does to the rollout under way, and whom it tells (T2, T6, A2)."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.rollout import records
from iccm_assets.rollout.orders import command
from iccm_assets.rollout.policy import BAKE
from iccm_assets.store.clock import now

ACTOR = "emergency retrain"


def abort_for_emergency(conn: sa.Connection, rollout_id: int, why: str) -> bool:
    """Abort a live rollout at stage 1 or 2, in the caller's transaction; whether it was still there.

    Production serves all traffic from then on, and the candidate may be deployed later. A candidate that is
    in production already is left alone.
    """
    records.lock_deployment(conn)
    state = records.live(conn, lock=True)
    if state is None or state.id != rollout_id or state.stage >= BAKE:
        return False
    decision = command(state, "abort", ACTOR, now(conn), why)
    if not records.replace_state(conn, state, decision.state):
        return False
    records.apply(conn, state, decision)
    return True


def alert_degradation(conn: sa.Connection, run_id: int, story: str) -> None:
    """Production has fallen and an emergency retrain was asked for."""
    key = f"degradation:training-run-{run_id}"
    body = f"{story}. Training run {run_id}, an emergency, was requested."
    raise_alert(conn, key, "critical", "Production has degraded", body)


def alert_queued(conn: sa.Connection, run_id: int, dagster_run_id: str, why: str) -> None:
    """A training run whose Dagster run does not get a slot."""
    body = f"Training run {run_id}: its Dagster run {dagster_run_id} is {why}. Other runs take the slots."
    raise_alert(conn, f"training_run:{run_id}:queued", "warning", "Retrain does not start", body)


def alert_failed(conn: sa.Connection, run_id: int, attempts: int, why: str) -> None:
    """A training run has used its attempts."""
    body = f"Training run {run_id} has failed {attempts} times and is not tried again: {why}"
    raise_alert(conn, f"training_run:{run_id}:failed", "warning", "Retrain failed", body)

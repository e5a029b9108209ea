"""A rollout in numbers, for people and JSON; pure functions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from iccm_assets.rollout.observation import ArmTotals
from iccm_assets.rollout.sequential_evidence import TESTS
from iccm_assets.rollout.state import State


def to_dict(state: State, now: datetime) -> dict[str, Any]:
    """Return what `iccm rollout show` shows; plain values, durations in seconds.

    ``forecast_hours`` is the time until the stage can end at its present pace; None while there is no pace,
    and for a rollout that is over.
    """
    evidence, lease_until = state.evidence, state.lease_until if state.is_live else None
    return {
        "id": state.id,
        "candidate": state.candidate,
        "production": state.production,
        "state": state.state,
        "live": state.is_live,
        "emergency": state.emergency,
        "stage": state.stage,
        "weight": state.weight,
        "weight_now": state.canary_weight(now),
        "lease_seconds_left": lease_until and round((lease_until - now).total_seconds(), 1),
        "opened_at": state.opened_at,
        "stage_entered_at": state.stage_entered_at,
        "closed_at": state.closed_at,
        "healthy_seconds": round(state.healthy_seconds, 1),
        "healthy_seconds_needed": state.min_seconds,
        "scored_sessions": evidence.canary.sessions,
        "scored_sessions_needed": state.min_sessions,
        "approved_by": state.approval.actor if state.approval else None,
        "canary": _arm(evidence.canary),
        "production_arm": _arm(evidence.production),
        "replayed_pairs": evidence.pairs,
        "blocks": evidence.blocks,
        "evidence": state.policy.evidence,
        "tests": [
            {"test": test, "e_value": float(f"{value:.6g}"), "threshold": state.policy.threshold(TESTS[test])}
            for test, value in evidence.e_values.items()
        ],
        "waiting_for": list_waiting_conditions(state),
        "forecast_hours": _forecast_hours(state),
        "reason": state.reason,
    }


def observation_metadata(state: State) -> dict[str, Any]:
    """Return the numbers of one observation, for plots; without those that were not measured."""
    canary, production = state.evidence.canary, state.evidence.production
    values = {
        "rollout": state.id,
        "version": state.candidate,
        "state": state.state,
        "stage": state.stage,
        "weight": state.weight,
        "healthy_hours": round(state.healthy_seconds / 3600, 3),
        "scored_sessions": canary.sessions,
        "pass_rate_canary": canary.pass_rate,
        "pass_rate_production": production.pass_rate,
        "error_rate_canary": canary.error_rate,
        "implementation_variance_canary": canary.variance,
        "forecast_hours": _forecast_hours(state),
        "waiting_for": "; ".join(list_waiting_conditions(state)) or None,
        "reason": state.reason or "opened",
    }
    return {name: value for name, value in values.items() if value is not None}


def list_waiting_conditions(state: State) -> list[str]:
    """List what the end of the stage waits for; empty when nothing is missing, or the rollout is over."""
    needed_hours = (state.min_seconds - state.healthy_seconds) / 3600
    needed_sessions = state.min_sessions - state.evidence.canary.sessions
    conditions = (
        (state.state == "paused", "manual resume"),
        (state.weight == 0, "every gateway replica to have the candidate ready"),
        (state.hold_reason == "unreliable_data" and state.weight > 0, "reliable data"),
        (state.hold_reason == "guardrail", "production to meet the guardrail that it violates, too"),
        (not state.has_enough_time, f"{needed_hours:.2f} h of healthy time"),
        (not state.has_enough_sessions, f"{needed_sessions} scored canary-arm sessions"),
    )
    return [text for missing, text in conditions if missing] if state.is_live else []


def _forecast_hours(state: State) -> float | None:
    hours = state.forecast_hours if state.is_live else None
    return None if hours is None else round(hours, 3)


def _arm(tally: ArmTotals) -> dict[str, Any]:
    """Return the numbers of one arm in this stage."""
    return {
        "sessions": tally.sessions,
        "pass_rate": tally.pass_rate,
        "variance": tally.variance,
        "requests": tally.requests,
        "error_rate": tally.error_rate,
    }

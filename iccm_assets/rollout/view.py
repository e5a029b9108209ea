"""A rollout in numbers, for people and JSON: where it is, what it waits for, how near the limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from iccm_assets.rollout.evidence import TESTS, Tally
from iccm_assets.rollout.look import Look
from iccm_assets.rollout.state import State


def describe(state: State, now: datetime) -> dict[str, Any]:
    """Everything `iccm rollout show` tells; plain values, durations in seconds.

    ``forecast_hours`` is the time until the stage can end at the pace seen so far; None while there is no
    pace, and for a rollout that is over.
    """
    policy, evidence, at = state.policy, state.evidence, state.stage - 1
    left = None if state.lease_until is None else (state.lease_until - now).total_seconds()
    return {
        "id": state.id,
        "candidate": state.candidate,
        "production": state.production,
        "state": state.state,
        "live": state.live,
        "emergency": state.emergency,
        "stage": state.stage,
        "weight": state.weight,
        "weight_now": state.canary_weight(now),
        "lease_seconds_left": None if left is None or not state.live else round(left, 1),
        "opened_at": state.opened_at,
        "stage_entered_at": state.stage_entered_at,
        "closed_at": state.closed_at,
        "healthy_seconds": round(state.healthy_seconds, 1),
        "healthy_seconds_needed": policy.stage_seconds[at],
        "scored_sessions": evidence.canary.sessions,
        "scored_sessions_needed": policy.stage_sessions[at],
        "approved_by": state.approved.actor if state.approved else None,
        "canary": _arm(evidence.canary),
        "production_arm": _arm(evidence.production),
        "replayed_pairs": evidence.pairs,
        "blocks": evidence.blocks,
        "evidence": policy.evidence,
        "tests": [
            {"test": name, "e_value": float(f"{value:.6g}"), "threshold": policy.threshold(TESTS[name])}
            for name, value in evidence.e_values.items()
        ],
        "waiting_for": waiting_for(state),
        "forecast_hours": forecast_hours(state, now),
        "reason": state.reason,
    }


def shown(state: State) -> list[Any]:
    """What of a rollout is a change worth an observation of its own."""
    return [state.id, state.state, state.stage, state.weight]


def observed(state: State, now: datetime) -> dict[str, Any]:
    """The numbers of one observation, for plots: whatever was not measured is left out."""
    mine, theirs = state.evidence.canary, state.evidence.production
    known = {
        "rollout": state.id,
        "version": state.candidate,
        "state": state.state,
        "stage": state.stage,
        "weight": state.weight,
        "healthy_hours": round(state.healthy_seconds / 3600, 3),
        "scored_sessions": mine.sessions,
        "pass_rate_canary": mine.pass_rate,
        "pass_rate_production": theirs.pass_rate,
        "error_rate_canary": mine.error_rate,
        "implementation_variance_canary": mine.variance,
        "forecast_hours": forecast_hours(state, now),
        "waiting_for": "; ".join(waiting_for(state)) or None,
        "reason": state.reason or "opened",
    }
    return {name: value for name, value in known.items() if value is not None}


def timeline(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `records.history` tells, newest first, as rows of a table; at most the last 30."""
    return [
        {
            "time": f"{one['timestamp']:%Y-%m-%d %H:%M:%S}",
            "event": one["event_type"],
            "weight": "" if one["weight"] is None else f"{one['weight']:.0%}",
            "by": one["actor"],
            "why": one["notes"] or "",
        }
        for one in reversed(events[-30:])
    ]


def waiting_for(state: State) -> list[str]:
    """What has to come before the stage can end, in words; empty when nothing has, or it is over."""
    if not state.live:
        return []
    found = []
    if state.state == "paused":
        found.append("somebody to resume it")
    if state.weight == 0:
        found.append("every gateway replica to have the candidate ready")
    if state.held_for == "doubt" and state.weight > 0:
        found.append("data that can be relied on")
    seconds = state.policy.stage_seconds[state.stage - 1] - state.healthy_seconds
    if not state.time_is_up:
        found.append(f"{seconds / 3600:.2f} h of healthy time")
    missing = state.policy.stage_sessions[state.stage - 1] - state.evidence.canary.sessions
    if missing > 0:
        found.append(f"{missing} scored canary-arm sessions")
    return found


def forecast_hours(state: State, now: datetime) -> float | None:
    """Hours until the stage can end at the pace seen so far."""
    hours = Look(state, state, now, (), (), (), ()).hours_left if state.live else None
    return None if hours is None else round(hours, 3)


def _arm(tally: Tally) -> dict[str, Any]:
    """One arm in this stage."""
    return {
        "sessions": tally.sessions,
        "pass_rate": tally.pass_rate,
        "variance": tally.variance,
        "requests": tally.requests,
        "error_rate": tally.error_rate,
    }

"""Progressive rollout as one pure function: `decide(state, observation, now)`.

A decision carries the next state, the events to append, and the actions to take, all of which the
controller writes in one transaction, by compare-and-set on the state's revision. Every tick of a live
rollout renews the lease and moves the revision; a closed rollout never changes.

The rules, in this order: a violated guardrail rolls back; the first healthy observation starts the traffic;
time, samples and health end a stage; the longest hold ends it undecided; everything else waits and says for
what (R1-R8).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from iccm_assets.rollout.actions import CONTROLLER, Alert, Decision
from iccm_assets.rollout.assessment import Assessment, assess
from iccm_assets.rollout.observation import Observation
from iccm_assets.rollout.policy import BAKE_STAGE
from iccm_assets.rollout.state import HoldReason, State
from iccm_assets.rollout.transitions import (
    UNDECIDED,
    abort,
    complete,
    decision_with_event,
    enter_stage,
    roll_back,
    running_state,
)


def decide(state: State, observation: Observation | None, now: datetime) -> Decision:
    """Decide on a rollout at ``now``; ``observation`` is None when the controller could not observe.

    Total: any state, observation and time give a decision, and bad ones an inconclusive one.
    """
    if not state.is_live:
        return Decision(state, f"the rollout is {state.state}: {state.reason}")
    look = assess(state, observation, now)
    for rule in (_roll_back_on_violation, _start, _advance, _abort_undecided):
        decision = rule(look)
        if decision is not None:
            return decision
    return _wait(look)


def _roll_back_on_violation(look: Assessment) -> Decision | None:
    """Roll back for a violated guardrail that production does not violate, too."""
    harm = next((each for each in look.violations if not each.also_violated_by_production), None)
    if harm is None:
        return None
    description = f"{harm.description}; {look.state.progress}"
    return roll_back(look, harm.reason, description, CONTROLLER, harm.numbers)


def _start(look: Assessment) -> Decision | None:
    """Give the canary arm its first traffic once every replica is ready and the data is reliable."""
    if look.state.weight > 0 or look.state.state == "paused" or look.data_issues:
        return None
    return enter_stage(look, 1, "started", "every gateway replica has the candidate ready")


def _advance(look: Assessment) -> Decision | None:
    """End the stage on healthy time (or the approval to skip it), samples, and no violated guardrail."""
    state = look.state
    if state.state == "paused" or state.weight == 0 or look.data_issues:
        return None
    if not state.has_enough_time or not state.has_enough_sessions:
        return None
    approval = state.approval
    reason = state.progress if approval is None else f"{state.progress}; approved by {approval.actor}"
    if state.stage == BAKE_STAGE:
        return complete(look, reason)
    return enter_stage(
        look, state.stage + 1, "promoted" if state.stage + 1 == BAKE_STAGE else "advanced", reason
    )


def _abort_undecided(look: Assessment) -> Decision | None:
    """End undecided after the longest hold; after promotion the previous version is production again."""
    state = look.state
    if state.stage_seconds < state.policy.max_hold_seconds:
        return None
    description = f"undecided after {state.stage_seconds / 86400:.1f} days; "
    description += "; ".join(look.data_issues) or state.progress
    end = roll_back if state.stage == BAKE_STAGE else abort
    return end(look, UNDECIDED, description, CONTROLLER)


def _wait(look: Assessment) -> Decision:
    """Continue, or hold and say why, and alert once per stage and reason."""
    state, hold_reason = look.state, _hold_reason(look)
    reason = "; ".join((state.progress, *look.data_issues))
    name = (
        state.state if state.state == "paused" else "holding" if hold_reason else running_state(state.stage)
    )
    alerts = tuple(
        alert for alert in _hold_alerts(look, hold_reason, reason) if alert.key not in state.raised_alerts
    )
    waiting = replace(
        state,
        state=name,
        hold_reason=hold_reason,
        held_since=(state.held_since or look.now) if hold_reason else None,
        reason=reason,
        raised_alerts=(*state.raised_alerts, *(alert.key for alert in alerts)),
    )
    if name == state.state:
        return Decision(waiting, reason, look.events, (*look.actions, *alerts))
    event = "held" if name == "holding" else "resumed"
    return decision_with_event(look, waiting, event, reason, actions=alerts)


def _hold_reason(look: Assessment) -> HoldReason:
    if look.data_issues:
        return "unreliable_data"
    return "samples" if look.state.has_enough_time and not look.state.has_enough_sessions else ""


def _hold_alerts(look: Assessment, hold_reason: HoldReason, reason: str) -> tuple[Alert, ...]:
    """The alert of a hold when it is due: loading a model at the opening takes a while."""
    state, unreliable = look.state, hold_reason == "unreliable_data"
    loading = state.weight == 0 and state.stage_seconds < state.policy.load_timeout_seconds
    if not hold_reason or state.state == "paused" or (unreliable and loading):
        return ()
    hours, seconds_left = state.forecast_hours, state.policy.max_hold_seconds - state.stage_seconds
    too_slow = hours is None or hours * 3600 > seconds_left
    severity = "warning" if unreliable or too_slow else "info"
    title = "Rollout held" if unreliable else "Rollout waiting for samples"
    key = f"rollout-{state.id}-held-{state.stage}-{hold_reason}"
    return (Alert(key, severity, title, f"{state.candidate}: {reason}"),)

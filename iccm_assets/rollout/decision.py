"""Progressive rollout as one pure function: `decide(state, observation, now)`.

A decision carries the next state, the events to append, and the actions to take, all of which the
controller writes in one transaction, by compare-and-set on the state's revision. Every tick of a live
rollout renews the lease and moves the revision; a closed rollout never changes.

The rules, in this order: a violated guardrail rolls back, or holds the stage where production violates it,
too; the first healthy observation starts the traffic; time, samples and health end a stage; a hold beyond the
maximum ends it undecided; everything else waits, with the reason (R1-R8).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from iccm_assets.rollout.actions import CONTROLLER, Alert, Decision, raise_once
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
    assessment = assess(state, observation, now)
    rules = (_roll_back_on_violation, _start, _advance, _abort_undecided)
    return next(filter(None, (rule(assessment) for rule in rules)), None) or _wait(assessment)


def _roll_back_on_violation(assessment: Assessment) -> Decision | None:
    """Roll back for a violated guardrail that production does not violate, too."""
    for violation in assessment.violations:
        if not violation.also_violated_by_production:
            description = f"{violation.description}; {assessment.state.progress}"
            return roll_back(assessment, violation.reason, description, CONTROLLER, violation.numbers)
    return None


def _start(assessment: Assessment) -> Decision | None:
    """Give the canary arm its first traffic once every replica is ready and the data is reliable."""
    if assessment.state.weight > 0 or assessment.state.state == "paused" or assessment.data_issues:
        return None
    return enter_stage(assessment, 1, "started", "every gateway replica has the candidate ready")


def _advance(assessment: Assessment) -> Decision | None:
    """End the stage on healthy time (or the approval to skip it), samples, and no violated guardrail."""
    state = assessment.state
    waiting = state.state == "paused" or state.weight == 0 or not state.has_enough_time
    if waiting or _hold_reason(assessment):
        return None
    approval = state.approval
    reason = state.progress if approval is None else f"{state.progress}; approved by {approval.actor}"
    if state.stage == BAKE_STAGE:
        return complete(assessment, reason)
    event = "promoted" if state.stage + 1 == BAKE_STAGE else "advanced"
    return enter_stage(assessment, state.stage + 1, event, reason)


def _abort_undecided(assessment: Assessment) -> Decision | None:
    """End undecided after the maximum hold; after promotion the previous version is production again."""
    state = assessment.state
    if state.stage_seconds < state.policy.max_hold_seconds:
        return None
    description = f"undecided after {state.stage_seconds / 86400:.1f} days; "
    description += "; ".join((*assessment.data_issues, *assessment.shared_violations)) or state.progress
    end = roll_back if state.stage == BAKE_STAGE else abort
    return end(assessment, UNDECIDED, description, CONTROLLER)


def _wait(assessment: Assessment) -> Decision:
    """Continue, or hold with the reason, and alert once per stage and reason."""
    state, hold_reason = assessment.state, _hold_reason(assessment)
    reason = "; ".join(
        (state.progress, state.forecast, *assessment.data_issues, *assessment.shared_violations)
    )
    name = (
        state.state if state.state == "paused" else "holding" if hold_reason else running_state(state.stage)
    )
    held_since = (state.held_since or assessment.now) if hold_reason else None
    waiting = replace(state, state=name, hold_reason=hold_reason, held_since=held_since, reason=reason)
    waiting, alerts = raise_once(waiting, _hold_alerts(assessment, hold_reason, reason))
    if name == state.state:
        return Decision(waiting, reason, assessment.events, (*assessment.actions, *alerts))
    event = "held" if name == "holding" else "resumed"
    return decision_with_event(assessment, waiting, event, reason, actions=alerts)


def _hold_reason(assessment: Assessment) -> HoldReason:
    if assessment.data_issues:
        return "unreliable_data"
    if assessment.shared_violations:
        return "guardrail"
    return "samples" if assessment.state.has_enough_time and not assessment.state.has_enough_sessions else ""


def _hold_alerts(assessment: Assessment, hold_reason: HoldReason, reason: str) -> tuple[Alert, ...]:
    """The alert of a hold when it is due: loading a model at the opening takes time.

    A guardrail that production violates, too, raised an alert of its own when it was assessed.
    """
    state, unreliable = assessment.state, hold_reason == "unreliable_data"
    loading = state.weight == 0 and state.stage_seconds < state.policy.load_timeout_seconds
    if hold_reason in {"", "guardrail"} or state.state == "paused" or (unreliable and loading):
        return ()
    hours, seconds_left = state.forecast_hours, state.policy.max_hold_seconds - state.stage_seconds
    too_slow = hours is None or hours * 3600 > seconds_left
    severity = "warning" if unreliable or too_slow else "info"
    title = "Rollout held" if unreliable else "Rollout waiting for samples"
    key = f"rollout-{state.id}-held-{state.stage}-{hold_reason}"
    return (Alert(key, severity, title, f"{state.candidate}: {reason}"),)

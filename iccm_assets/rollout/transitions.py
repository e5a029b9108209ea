"""Turn an assessment into a decision: stages entered, rollouts ended, each with its event (R8)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from iccm_assets.rollout.actions import (
    CONTROLLER,
    Abort,
    Action,
    Alert,
    Decision,
    DeploymentEvent,
    Promote,
    RollBack,
)
from iccm_assets.rollout.assessment import Assessment
from iccm_assets.rollout.policy import BAKE_STAGE, STAGE_WEIGHTS
from iccm_assets.rollout.state import State, StateName

UNDECIDED = "undecided"


def enter_stage(assessment: Assessment, stage: int, event: str, reason: str) -> Decision:
    """Begin a stage: its weight, its own time and samples."""
    entered = replace(
        assessment.state,
        state=running_state(stage),
        stage=stage,
        weight=STAGE_WEIGHTS[stage],
        stage_entered_at=assessment.now,
        healthy_seconds=0.0,
        stage_seconds=0.0,
        held_since=None,
        hold_reason="",
        reason=reason,
        evidence=assessment.state.evidence.at_new_stage(),
    )
    return decision_with_event(
        assessment, entered, event, reason, actions=(Promote(),) if stage == BAKE_STAGE else ()
    )


def running_state(stage: int) -> StateName:
    """Return the state of a rollout that is neither held nor paused."""
    return "baking" if stage == BAKE_STAGE else "ramping"


def roll_back(
    assessment: Assessment, reason: str, description: str, actor: str, numbers: dict[str, float] | None = None
) -> Decision:
    """End with the candidate rolled back; after the promotion the previous version is production again."""
    text, restore = f"{reason}: {description}", assessment.state.stage == BAKE_STAGE
    state = _closed(assessment, "rolled_back", text)
    alert = Alert(
        f"rollout-{state.id}-rolled-back",
        "warning",
        "Model Rollback",
        f"{state.candidate} was rolled back, {state.production} serves "
        f"{'again' if restore else 'all traffic'}. {text}",
    )
    return decision_with_event(
        assessment, state, "rolled_back", text, actor, numbers, (RollBack(reason, restore), alert)
    )


def abort(assessment: Assessment, reason: str, description: str, actor: str) -> Decision:
    """End at stage 1 or 2 without a verdict on the candidate."""
    text, undecided = f"{reason}: {description}", reason == UNDECIDED
    state = _closed(assessment, "aborted", text)
    alert = Alert(
        f"rollout-{state.id}-aborted",
        "warning" if undecided else "info",
        "Rollout undecided" if undecided else "Rollout aborted",
        f"{state.candidate}: {description}; {state.production} serves all traffic.",
    )
    return decision_with_event(assessment, state, "aborted", text, actor, actions=(Abort(reason), alert))


def complete(assessment: Assessment, reason: str) -> Decision:
    """End with the candidate in production."""
    return decision_with_event(
        assessment, _closed(assessment, "completed", reason, assessment.state.weight), "completed", reason
    )


def _closed(assessment: Assessment, name: StateName, reason: str, weight: float = 0.0) -> State:
    return replace(
        assessment.state,
        state=name,
        weight=weight,
        closed_at=assessment.now,
        reason=reason,
        held_since=None,
        hold_reason="",
    )


def decision_with_event(
    assessment: Assessment,
    state: State,
    event: str,
    reason: str,
    actor: str = CONTROLLER,
    numbers: dict[str, float] | None = None,
    actions: tuple[Action, ...] = (),
) -> Decision:
    """Return the decision with its event, after the events and actions of the assessment."""
    evidence = {**_numbers(assessment), **(numbers or {})}
    # Rolled back out of production, the previous version has all traffic; else the candidate has its weight.
    restored = state.state == "rolled_back" and assessment.state.stage == BAKE_STAGE
    version, weight = (state.production, 1.0) if restored else (state.candidate, state.weight)
    row = DeploymentEvent(
        event, assessment.now, assessment.before.state, state.state, version, weight, reason, evidence, actor
    )
    return Decision(state, reason, (*assessment.events, row), (*assessment.actions, *actions))


def _numbers(assessment: Assessment) -> dict[str, Any]:
    """Return what every event records of the stage that it ends or interrupts."""
    state, evidence = assessment.state, assessment.state.evidence
    return {
        "stage": state.stage,
        "healthy_seconds": round(state.healthy_seconds, 3),
        "stage_seconds": round(state.stage_seconds, 3),
        "canary": asdict(evidence.canary),
        "production": asdict(evidence.production),
        "comparisons": evidence.blocks + evidence.pairs,
        "e_values": {test: float(f"{value:.6g}") for test, value in evidence.e_values.items()},
        "data_issues": list(assessment.data_issues),
    }

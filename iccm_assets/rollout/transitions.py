"""How an assessment becomes a decision: stages entered, rollouts ended, each with its event (R8)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from iccm_assets.rollout.look import Look
from iccm_assets.rollout.outcome import CONTROLLER, Abandon, Action, Alert, Decision, Event, Promote, RollBack
from iccm_assets.rollout.policy import BAKE, WEIGHTS
from iccm_assets.rollout.state import State, StateName

UNDECIDED = "undecided"


def enter(look: Look, stage: int, event: str, reason: str) -> Decision:
    """Begin a stage: its weight, its own time and samples."""
    entered = replace(
        look.state,
        state=running_state(stage),
        stage=stage,
        weight=WEIGHTS[stage],
        stage_entered_at=look.now,
        healthy_seconds=0.0,
        stage_seconds=0.0,
        held_since=None,
        hold_reason="",
        reason=reason,
        evidence=look.state.evidence.at_new_stage(),
    )
    return decided(look, entered, event, reason, actions=(Promote(),) if stage == BAKE else ())


def running_state(stage: int) -> StateName:
    """Return the state of a rollout that is neither held nor paused."""
    return "baking" if stage == BAKE else "ramping"


def rolled_back(
    look: Look, reason: str, description: str, actor: str, numbers: dict[str, float] | None = None
) -> Decision:
    """End with the candidate rolled back; after the promotion the previous version is production again."""
    text, restore = f"{reason}: {description}", look.state.stage == BAKE
    state = _closed(look, "rolled_back", text)
    alert = Alert(
        f"rollout-{state.id}-rolled-back",
        "warning",
        "Model Rollback",
        f"{state.candidate} was rolled back, {state.production} serves "
        f"{'again' if restore else 'all traffic'}. {text}",
    )
    return decided(look, state, "rolled_back", text, actor, numbers, (RollBack(reason, restore), alert))


def aborted(look: Look, reason: str, description: str, actor: str) -> Decision:
    """End at stage 1 or 2 without a verdict on the candidate."""
    text, undecided = f"{reason}: {description}", reason == UNDECIDED
    state = _closed(look, "aborted", text)
    alert = Alert(
        f"rollout-{state.id}-aborted",
        "warning" if undecided else "info",
        "Rollout undecided" if undecided else "Rollout aborted",
        f"{state.candidate}: {description}; {state.production} serves all traffic.",
    )
    return decided(look, state, "aborted", text, actor, actions=(Abandon(reason), alert))


def completed(look: Look, reason: str) -> Decision:
    """End with the candidate in production."""
    return decided(look, _closed(look, "completed", reason, look.state.weight), "completed", reason)


def _closed(look: Look, name: StateName, reason: str, weight: float = 0.0) -> State:
    state = replace(look.state, state=name, weight=weight, closed_at=look.now, reason=reason)
    return replace(state, held_since=None, hold_reason="")


def decided(
    look: Look,
    state: State,
    event: str,
    reason: str,
    actor: str = CONTROLLER,
    numbers: dict[str, float] | None = None,
    actions: tuple[Action, ...] = (),
) -> Decision:
    """Return the decision with its event, after the events and actions of the assessment."""
    evidence = {**_numbers(look), **(numbers or {})}
    # Rolled back out of production, the previous version has all traffic; else the candidate has its weight.
    restored = state.state == "rolled_back" and look.state.stage == BAKE
    version, weight = (state.production, 1.0) if restored else (state.candidate, state.weight)
    row = Event(event, look.now, look.before.state, state.state, version, weight, reason, evidence, actor)
    return Decision(state, reason, (*look.events, row), (*look.actions, *actions))


def _numbers(look: Look) -> dict[str, Any]:
    """What every event records of the stage that it ends or interrupts."""
    state, evidence = look.state, look.state.evidence
    return {
        "stage": state.stage,
        "healthy_seconds": round(state.healthy_seconds, 3),
        "stage_seconds": round(state.stage_seconds, 3),
        "canary": asdict(evidence.canary),
        "production": asdict(evidence.production),
        "comparisons": evidence.blocks + evidence.pairs,
        "e_values": {test: float(f"{value:.6g}") for test, value in evidence.e_values.items()},
        "data_issues": list(look.doubts),
    }

"""How a look becomes a decision: stages entered, rollouts ended, each with its event (R8). Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iccm_assets.rollout.look import Look
from iccm_assets.rollout.outcome import (
    CONTROLLER,
    Abandon,
    Action,
    Alert,
    Decision,
    Event,
    Promote,
    RollBack,
    SetWeight,
)
from iccm_assets.rollout.policy import BAKE, WEIGHTS
from iccm_assets.rollout.state import State, StateName

UNDECIDED = "undecided"


def enter(look: Look, stage: int, event: str, why: str) -> Decision:
    """Begin a stage: its weight, its own time and samples."""
    name: StateName = "baking" if stage == BAKE else "ramping"
    entered = replace(
        look.state,
        state=name,
        stage=stage,
        weight=WEIGHTS[stage],
        stage_entered_at=look.now,
        healthy_seconds=0.0,
        stage_seconds=0.0,
        held_since=None,
        held_for="",
        reason=why,
        evidence=look.state.evidence.at_new_stage(),
    )
    actions: tuple[Action, ...] = (SetWeight(WEIGHTS[stage]), *((Promote(),) if stage == BAKE else ()))
    return decided(look, entered, event, why, actions=actions)


def rolled_back(
    look: Look, reason: str, why: str, actor: str, numbers: dict[str, float] | None = None
) -> Decision:
    """End with the candidate taken back; after the promotion the former version returns (R8)."""
    state = _closed(look, "rolled_back", f"{reason}: {why}")
    restore = look.state.stage == BAKE
    serving = f"{state.production} serves {'again' if restore else 'all traffic'}"
    alert = Alert(
        f"rollout-{state.id}-rolled-back",
        "warning",
        "Model Rollback",
        f"{state.candidate} was rolled back, {serving}. {reason}: {why}",
    )
    actions: tuple[Action, ...] = (SetWeight(0.0), RollBack(reason, restore), alert)
    return decided(look, state, "rolled_back", f"{reason}: {why}", actor, numbers, actions)


def aborted(look: Look, reason: str, why: str, actor: str) -> Decision:
    """End at stage 1 or 2 without a verdict on the candidate (R6, R9)."""
    state = _closed(look, "aborted", f"{reason}: {why}")
    alert = Alert(
        f"rollout-{state.id}-aborted",
        "warning" if reason == UNDECIDED else "info",
        "Rollout undecided" if reason == UNDECIDED else "Rollout aborted",
        f"{state.candidate}: {why}; {state.production} serves all traffic.",
    )
    actions: tuple[Action, ...] = (SetWeight(0.0), Abandon(reason), alert)
    return decided(look, state, "aborted", f"{reason}: {why}", actor, None, actions)


def completed(look: Look, why: str) -> Decision:
    """End with the candidate in production for good."""
    return decided(look, _closed(look, "completed", why, look.state.weight), "completed", why)


def _closed(look: Look, name: StateName, why: str, weight: float = 0.0) -> State:
    return replace(
        look.state, state=name, weight=weight, closed_at=look.now, reason=why, held_since=None, held_for=""
    )


def decided(
    look: Look,
    state: State,
    event: str,
    why: str,
    actor: str = CONTROLLER,
    numbers: dict[str, float] | None = None,
    actions: tuple[Action, ...] = (),
) -> Decision:
    """The decision with its event, after whatever the look itself brought."""
    told = {**_numbers(look), **(numbers or {})}
    # Taken back out of production, the former version has everything; else the candidate has its weight.
    restored = state.state == "rolled_back" and look.state.stage == BAKE
    version, weight = (state.production, 1.0) if restored else (state.candidate, state.weight)
    row = Event(event, look.now, look.before.state, state.state, version, weight, why, told, actor)
    return Decision(state, why, (*look.events, row), (*look.actions, *actions))


def _numbers(look: Look) -> dict[str, Any]:
    """What every event records of the stage it ends or interrupts."""
    state, evidence = look.state, look.state.evidence
    return {
        "stage": state.stage,
        "healthy_seconds": round(state.healthy_seconds, 3),
        "stage_seconds": round(state.stage_seconds, 3),
        "canary": vars(evidence.canary),
        "production": vars(evidence.production),
        "comparisons": evidence.blocks + evidence.pairs,
        "e_values": {name: float(f"{one:.6g}") for name, one in evidence.e_values.items()},
        "doubts": list(look.doubts),
    }

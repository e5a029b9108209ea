"""Progressive rollout as one pure function: `decide(state, observation, now)` (R1-R8).

A decision carries the next state, the events to append, and the actions to take, all of which the
controller writes in one transaction, by compare-and-set on the state's revision. Every tick of a live
rollout renews the lease and moves the revision; a closed rollout never changes.

What decides, in this order: a crossed limit rolls back; the first healthy look starts the traffic; time,
samples and health end a stage; the longest hold ends it undecided; everything else waits, and says for what.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from iccm_assets.rollout.look import Look, take
from iccm_assets.rollout.observation import Observation
from iccm_assets.rollout.outcome import CONTROLLER, Alert, Decision
from iccm_assets.rollout.policy import BAKE
from iccm_assets.rollout.state import HeldFor, State, StateName
from iccm_assets.rollout.transitions import UNDECIDED, aborted, completed, decided, enter, rolled_back


def decide(state: State, observation: Observation | None, now: datetime) -> Decision:
    """What becomes of a rollout at ``now``; ``observation`` is None when the controller could not look.

    Total: any state, observation and time give a decision, and bad ones an inconclusive one.
    """
    if not state.live:
        return Decision(state, f"the rollout is {state.state}: {state.reason}")
    look = take(state, observation, now)
    for step in (_harm, _start, _advance, _give_up):
        decision = step(look)
        if decision is not None:
            return decision
    return _wait(look)


def _harm(look: Look) -> Decision | None:
    """A limit was crossed, and not by production too (R4, R5)."""
    harm = next((one for one in look.crossings if not one.excused), None)
    if harm is None:
        return None
    return rolled_back(look, harm.reason, f"{harm.story}; {look.progress}", CONTROLLER, harm.numbers)


def _start(look: Look) -> Decision | None:
    """Every replica is ready and somebody measures: the canary arm gets its first traffic (G3)."""
    if look.state.weight > 0 or look.state.state == "paused" or look.doubts:
        return None
    return enter(look, 1, "started", "every gateway replica has the candidate ready")


def _advance(look: Look) -> Decision | None:
    """Healthy time (or leave to skip it), samples, and no limit crossed: the stage ends (R5)."""
    state = look.state
    if state.state == "paused" or state.weight == 0 or look.doubts:
        return None
    if not state.time_is_up or not state.enough:
        return None
    leave = state.approved
    why = look.progress if leave is None else f"{look.progress}; approved by {leave.actor}"
    if state.stage == BAKE:
        return completed(look, why)
    return enter(look, state.stage + 1, "promoted" if state.stage + 1 == BAKE else "advanced", why)


def _give_up(look: Look) -> Decision | None:
    """The longest hold is over: undecided (R6). After promotion that means the former version again."""
    state = look.state
    if state.stage_seconds < state.policy.max_hold_seconds:
        return None
    why = f"undecided after {state.stage_seconds / 86400:.1f} days; {'; '.join(look.doubts) or look.progress}"
    if state.stage == BAKE:
        return rolled_back(look, UNDECIDED, why, CONTROLLER)
    return aborted(look, UNDECIDED, why, CONTROLLER)


def _wait(look: Look) -> Decision:
    """Nothing ends: go on, or hold and say why, and alert once per stage and cause (R6)."""
    state, held_for = look.state, _held_for(look)
    why = f"{look.progress}; {'; '.join(look.doubts)}" if look.doubts else look.progress
    name: StateName = "baking" if state.stage == BAKE else "ramping"
    if state.state == "paused":
        name = "paused"
    elif held_for:
        name = "holding"
    held_since = (state.held_since or look.now) if held_for else None
    alerts = tuple(one for one in _held(look, held_for, why) if one.key not in state.alerted)
    waiting = replace(
        state,
        state=name,
        held_for=held_for,
        held_since=held_since,
        reason=why,
        alerted=(*state.alerted, *(one.key for one in alerts)),
    )
    if waiting.state == state.state:
        return Decision(waiting, why, look.events, (*look.actions, *alerts))
    decision = decided(look, waiting, "held" if name == "holding" else "resumed", why)
    return replace(decision, actions=(*decision.actions, *alerts))


def _held_for(look: Look) -> HeldFor:
    if look.doubts:
        return "doubt"
    return "samples" if look.state.time_is_up and not look.state.enough else ""


def _held(look: Look, held_for: HeldFor, why: str) -> tuple[Alert, ...]:
    """The alert of a hold, when it is time for one: loading a model at the opening takes a while."""
    state = look.state
    loading = state.weight == 0 and state.stage_seconds < state.policy.ready_seconds
    if not held_for or state.state == "paused" or (held_for == "doubt" and loading):
        return ()
    severity = "warning" if held_for == "doubt" or _too_slow(look) else "info"
    key = f"rollout-{state.id}-held-{state.stage}-{held_for}"
    title = "Rollout held" if held_for == "doubt" else "Rollout waits for samples"
    return (Alert(key, severity, title, f"{state.candidate}: {why}"),)


def _too_slow(look: Look) -> bool:
    left, state = look.hours_left, look.state
    return left is None or left * 3600 > state.policy.max_hold_seconds - state.stage_seconds

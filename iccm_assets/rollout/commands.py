"""What a person may do to a live rollout, as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.rollout.actions import Decision
from iccm_assets.rollout.assessment import Assessment
from iccm_assets.rollout.policy import BAKE_STAGE
from iccm_assets.rollout.state import Approval, State
from iccm_assets.rollout.transitions import abort, decision_with_event, roll_back, running_state


def apply_command(state: State, verb: str, actor: str, now: datetime, note: str = "") -> Decision:
    """Apply a person's command: pause, resume, approve, abort or rollback; the actor is recorded.

    ``NotAllowed`` says why the command makes no sense now; nothing has changed then (R9).
    """
    if not state.is_live:
        raise OperationNotAllowedError(f"rollout {state.id} is {state.state} and cannot be changed any more")
    if verb not in _COMMANDS:
        raise OperationNotAllowedError(f"{verb!r} is no command; use one of {', '.join(_COMMANDS)}")
    look = Assessment(state, replace(state, revision=state.revision + 1), now)
    return _COMMANDS[verb](look, f"by {actor}{f': {note}' if note else ''}", actor)


def _pause(look: Assessment, reason: str, actor: str) -> Decision:
    if look.before.state == "paused":
        raise OperationNotAllowedError(f"rollout {look.state.id} is paused already")
    state = replace(look.state, state="paused", reason=f"paused {reason}")
    return decision_with_event(look, state, "paused", reason, actor)


def _resume(look: Assessment, reason: str, actor: str) -> Decision:
    if look.before.state != "paused":
        raise OperationNotAllowedError(f"rollout {look.state.id} is {look.before.state}, not paused")
    # The pause ends here, not at the tick before it: the time between is no healthy time.
    name = running_state(look.state.stage)
    state = replace(look.state, state=name, observed_at=look.now, reason=f"resumed {reason}")
    return decision_with_event(look, state, "resumed", reason, actor)


def _approve(look: Assessment, reason: str, actor: str) -> Decision:
    state = look.state
    if state.weight == 0:
        raise OperationNotAllowedError(f"rollout {state.id} has no traffic yet; there is no wait to skip")
    if state.approval:
        raise OperationNotAllowedError(f"stage {state.stage} of rollout {state.id} is approved already")
    state = replace(state, approvals=(*state.approvals, Approval(state.stage, actor, look.now)))
    description = f"approved {reason}; the stage ends when samples and health allow"
    return decision_with_event(look, state, "approved", description, actor)


def _abort(look: Assessment, reason: str, actor: str) -> Decision:
    end = roll_back if look.state.stage == BAKE_STAGE else abort
    return end(look, "aborted", reason, actor)


def _roll_back(look: Assessment, reason: str, actor: str) -> Decision:
    return roll_back(look, "manual", reason, actor)


_COMMANDS: dict[str, Callable[[Assessment, str, str], Decision]] = {
    "pause": _pause,
    "resume": _resume,
    "approve": _approve,
    "abort": _abort,
    "rollback": _roll_back,
}

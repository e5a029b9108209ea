"""Apply a person's command to a live rollout; a pure function."""

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

    Raises ``OperationNotAllowedError`` if the command is not possible now; nothing has changed then (R9).
    """
    if not state.is_live:
        raise OperationNotAllowedError(f"rollout {state.id} is {state.state} and cannot be changed any more")
    if verb not in _COMMANDS:
        raise OperationNotAllowedError(f"{verb!r} is not a command; use one of {', '.join(_COMMANDS)}")
    assessment = Assessment(state, replace(state, revision=state.revision + 1), now)
    return _COMMANDS[verb](assessment, f"by {actor}{f': {note}' if note else ''}", actor)


def _pause(assessment: Assessment, reason: str, actor: str) -> Decision:
    if assessment.before.state == "paused":
        raise OperationNotAllowedError(f"rollout {assessment.state.id} is paused already")
    state = replace(assessment.state, state="paused", reason=f"paused {reason}")
    return decision_with_event(assessment, state, "paused", reason, actor)


def _resume(assessment: Assessment, reason: str, actor: str) -> Decision:
    paused, state = assessment.before, assessment.state
    if paused.state != "paused":
        raise OperationNotAllowedError(f"rollout {state.id} is {paused.state}, not paused")
    # The pause ends here, not at the tick before it: the time between does not count as healthy.
    name = running_state(state.stage)
    resumed = replace(state, state=name, observed_at=assessment.now, reason=f"resumed {reason}")
    return decision_with_event(assessment, resumed, "resumed", reason, actor)


def _approve(assessment: Assessment, reason: str, actor: str) -> Decision:
    state = assessment.state
    if state.weight == 0:
        raise OperationNotAllowedError(f"rollout {state.id} has no traffic yet; there is no wait to skip")
    if state.approval:
        raise OperationNotAllowedError(f"stage {state.stage} of rollout {state.id} is approved already")
    state = replace(state, approvals=(*state.approvals, Approval(state.stage, actor, assessment.now)))
    description = f"approved {reason}; the stage ends when samples and health allow"
    return decision_with_event(assessment, state, "approved", description, actor)


def _abort(assessment: Assessment, reason: str, actor: str) -> Decision:
    end = roll_back if assessment.state.stage == BAKE_STAGE else abort
    return end(assessment, "aborted", reason, actor)


def _roll_back(assessment: Assessment, reason: str, actor: str) -> Decision:
    return roll_back(assessment, "manual", reason, actor)


_COMMANDS: dict[str, Callable[[Assessment, str, str], Decision]] = {
    "pause": _pause,
    "resume": _resume,
    "approve": _approve,
    "abort": _abort,
    "rollback": _roll_back,
}

"""What a person may order of a live rollout, as a pure function (R9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from iccm_assets.errors import NotAllowed
from iccm_assets.rollout.look import Look
from iccm_assets.rollout.outcome import Decision
from iccm_assets.rollout.policy import BAKE
from iccm_assets.rollout.state import Approval, State, StateName
from iccm_assets.rollout.transitions import aborted, decided, rolled_back


def command(state: State, verb: str, actor: str, now: datetime, note: str = "") -> Decision:
    """What a person orders: pause, resume, approve, abort or rollback (R9); the actor is recorded.

    ``NotAllowed`` says why an order makes no sense now; nothing was changed then.
    """
    if not state.live:
        raise NotAllowed(f"rollout {state.id} is {state.state}; it cannot be changed any more")
    if verb not in _ORDERS:
        raise NotAllowed(f"{verb!r} is no order; there are {', '.join(_ORDERS)}")
    before = state
    state = replace(state, revision=state.revision + 1)
    why = f"by {actor}{f': {note}' if note else ''}"
    return _ORDERS[verb](Look(before, state, now, (), (), (), ()), why, actor)


def _pause(look: Look, why: str, actor: str) -> Decision:
    if look.before.state == "paused":
        raise NotAllowed(f"rollout {look.state.id} is paused already")
    return decided(look, replace(look.state, state="paused", reason=f"paused {why}"), "paused", why, actor)


def _resume(look: Look, why: str, actor: str) -> Decision:
    if look.before.state != "paused":
        raise NotAllowed(f"rollout {look.state.id} is {look.before.state}, not paused")
    name: StateName = "baking" if look.state.stage == BAKE else "ramping"
    # The pause ends here, not at the tick before it: what lies between is no healthy time.
    state = replace(look.state, state=name, observed_at=look.now, reason=f"resumed {why}")
    return decided(look, state, "resumed", why, actor)


def _approve(look: Look, why: str, actor: str) -> Decision:
    state = look.state
    if state.weight == 0:
        raise NotAllowed(f"rollout {state.id} has no traffic yet; there is no wait to skip")
    if state.approved:
        raise NotAllowed(f"stage {state.stage} of rollout {state.id} is approved already")
    leave = Approval(state.stage, actor, look.now.isoformat())
    told = f"approved {why}; it ends when samples and health allow"
    return decided(look, replace(state, approvals=(*state.approvals, leave)), "approved", told, actor)


def _abort(look: Look, why: str, actor: str) -> Decision:
    if look.state.stage == BAKE:
        return rolled_back(look, "aborted", why, actor)
    return aborted(look, "aborted", why, actor)


def _roll_back(look: Look, why: str, actor: str) -> Decision:
    return rolled_back(look, "manual", why, actor)


_ORDERS: dict[str, Callable[[Look, str, str], Decision]] = {
    "pause": _pause,
    "resume": _resume,
    "approve": _approve,
    "abort": _abort,
    "rollback": _roll_back,
}

"""What a decision consists of: the next state, events to append, actions to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from iccm_assets.rollout.state import State

CONTROLLER = "controller"


@dataclass(frozen=True)
class Event:
    """A row of `deployment_events`: what happened at ``at``, from which state to which, why, with numbers.

    From then on ``version`` has ``weight`` of the traffic (M2).
    """

    event_type: str
    at: datetime
    from_state: str
    to_state: str
    version: str
    weight: float
    notes: str
    evidence: dict[str, Any] = field(default_factory=dict)
    actor: str = CONTROLLER


@dataclass(frozen=True)
class Alert:
    """A row of the outbox; `key` is unique for ever (A1)."""

    key: str
    severity: str
    title: str
    body: str


@dataclass(frozen=True)
class SetWeight:
    """Tell the gateways: the canary arm has this share from now on (G4)."""

    weight: float


@dataclass(frozen=True)
class Promote:
    """Candidate -> `production`, former -> `retired`, in the decision's transaction (R8)."""


@dataclass(frozen=True)
class RollBack:
    """Candidate -> `rolled_back`, with a row of `rollback_events` (R8).

    ``restore``: the candidate is in production, and the former version takes its place again.
    """

    reason: str
    restore: bool


@dataclass(frozen=True)
class Abandon:
    """Candidate -> `candidate` again: stopped without a verdict on it (R6, R9)."""

    reason: str


Action = SetWeight | Promote | RollBack | Abandon | Alert


@dataclass(frozen=True)
class Decision:
    """The next state (the same one when the rollout is closed), and what goes with it."""

    state: State
    reason: str
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()

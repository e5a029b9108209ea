"""Parts of a decision: the next state, events to append, actions to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from iccm_assets.rollout.state import State

CONTROLLER = "controller"


@dataclass(frozen=True)
class DeploymentEvent:
    """A row of `deployment_events`; from ``timestamp`` on, ``version`` has ``weight`` of the traffic."""

    event_type: str
    timestamp: datetime
    from_state: str
    to_state: str
    version: str
    weight: float
    notes: str
    evidence: dict[str, Any] = field(default_factory=dict)
    actor: str = CONTROLLER


@dataclass(frozen=True)
class Alert:
    """A row of the alert outbox; ``key`` is unique."""

    key: str
    severity: str
    title: str
    body: str


def raise_once(state: State, alerts: Iterable[Alert]) -> tuple[State, tuple[Alert, ...]]:
    """Return the alerts that this rollout has not raised yet, with the state that records them."""
    new = tuple(alert for alert in alerts if alert.key not in state.raised_alerts)
    return replace(state, raised_alerts=(*state.raised_alerts, *(alert.key for alert in new))), new


@dataclass(frozen=True)
class Promote:
    """Candidate -> `production`, previous version -> `retired`, in the decision's transaction."""


@dataclass(frozen=True)
class RollBack:
    """Candidate -> `rolled_back`, with a row of `rollback_events`.

    ``restore``: the candidate is in production, and the previous version replaces it.
    """

    reason: str
    restore: bool


@dataclass(frozen=True)
class Abort:
    """Candidate -> `candidate` again: stopped without a verdict on it."""

    reason: str


Action = Promote | RollBack | Abort | Alert


@dataclass(frozen=True)
class Decision:
    """The next state (the same one when the rollout is closed), its reason, events and actions."""

    state: State
    reason: str
    events: tuple[DeploymentEvent, ...] = ()
    actions: tuple[Action, ...] = ()

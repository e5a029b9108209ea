"""The row of `rollouts` as a value, and the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from iccm_assets.errors import InputError
from iccm_assets.rollout import evidence as evidence_
from iccm_assets.rollout.evidence import Evidence
from iccm_assets.rollout.policy import BAKE, WEIGHTS, Policy

StateName = Literal["ramping", "holding", "paused", "baking", "completed", "rolled_back", "aborted"]
LIVE: tuple[StateName, ...] = ("ramping", "holding", "paused", "baking")

# Why time does not count, or a stage cannot end: "" (it can), too little data, or data in doubt.
HeldFor = Literal["", "samples", "doubt"]


@dataclass(frozen=True)
class Approval:
    """A person's leave to end a stage before its time (R9)."""

    stage: int
    actor: str
    at: str


@dataclass(frozen=True)
class State:
    """One rollout. Durations in seconds, moments in UTC.

    ``healthy_seconds`` of this stage were observed and good (R7); ``stage_seconds`` of it were observed at
    all, and ``seconds`` since the opening. ``cursor`` is how far observations have been counted (opaque).
    ``checked_at``: the last look at the health window (`point`). ``alerted``: keys of alerts raised.
    """

    id: int
    candidate: str
    production: str
    policy: Policy
    opened_at: datetime
    stage_entered_at: datetime
    state: StateName = "ramping"
    stage: int = 1
    weight: float = 0.0
    emergency: bool = False
    lease_until: datetime | None = None
    revision: int = 0
    healthy_seconds: float = 0.0
    observed_at: datetime | None = None
    held_since: datetime | None = None
    reason: str = ""
    closed_at: datetime | None = None
    evidence: Evidence = field(default_factory=Evidence)
    cursor: str = ""
    stage_seconds: float = 0.0
    seconds: float = 0.0
    held_for: HeldFor = ""
    checked_at: datetime | None = None
    alerted: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()

    @property
    def live(self) -> bool:
        """Whether the rollout can still change."""
        return self.state in LIVE

    @property
    def slow_after(self) -> float | None:
        """Milliseconds per output token above which the canary arm's next requests count as slow (E3)."""
        return self.evidence.slow_after

    @property
    def approved(self) -> Approval | None:
        """The leave to end this stage early, if somebody gave it."""
        return next((one for one in self.approvals if one.stage == self.stage), None)

    @property
    def time_is_up(self) -> bool:
        """Whether the stage was healthy for long enough, or a person gave leave to skip the wait."""
        return self.approved is not None or self.healthy_seconds >= self.policy.stage_seconds[self.stage - 1]

    @property
    def enough(self) -> bool:
        """Whether the stage has its minimum of scored canary-arm sessions."""
        return self.evidence.canary.sessions >= self.policy.stage_sessions[self.stage - 1]

    def canary_weight(self, now: datetime) -> float:
        """What the split may send to the canary arm now: nothing without a living lease (R7)."""
        leased = self.lease_until is not None and now <= self.lease_until
        return self.weight if self.live and leased else 0.0

    def to_row(self) -> dict[str, Any]:
        """The columns of `rollouts` that say all of this; `from_row` is the inverse."""
        progress = {
            "cursor": self.cursor,
            "stage_seconds": self.stage_seconds,
            "seconds": self.seconds,
            "held_for": self.held_for,
            "checked_at": None if self.checked_at is None else self.checked_at.isoformat(),
            "alerted": list(self.alerted),
            "approvals": [vars(one) for one in self.approvals],
        }
        plain = {name: getattr(self, name) for name in _COLUMNS}
        return {
            **plain,
            "policy": self.policy.to_json(),
            "evidence": {**progress, **evidence_.to_json(self.evidence)},
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> State:
        """The state in a row; one whose ``evidence`` is empty has observed nothing yet.

        ``InputError`` names what is damaged: nothing is decided on it, and the lease runs out.
        """
        try:
            stored = row["evidence"] or {}
            policy = Policy.from_json(row["policy"])
            found = cls(policy=policy, **{name: row[name] for name in _COLUMNS})
            found = replace(found, reason=found.reason or "")
            return _consistent(_with_progress(found, stored) if stored else found)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            which = row.get("id") if hasattr(row, "get") else None
            raise InputError(f"rollout {which}: {type(error).__name__}: {error}") from None


_COLUMNS = (
    "id",
    "candidate",
    "production",
    "opened_at",
    "stage_entered_at",
    "state",
    "stage",
    "weight",
    "emergency",
    "lease_until",
    "revision",
    "healthy_seconds",
    "observed_at",
    "held_since",
    "reason",
    "closed_at",
)


def _with_progress(state: State, stored: Mapping[str, Any]) -> State:
    checked = stored["checked_at"]
    return replace(
        state,
        evidence=evidence_.from_json(stored),
        cursor=stored["cursor"],
        stage_seconds=float(stored["stage_seconds"]),
        seconds=float(stored["seconds"]),
        held_for=stored["held_for"],
        checked_at=None if checked is None else datetime.fromisoformat(checked),
        alerted=tuple(stored["alerted"]),
        approvals=tuple(Approval(**one) for one in stored["approvals"]),
    )


def _consistent(state: State) -> State:
    """The same state; ``ValueError`` for one that no decision could have led to."""
    moments = (state.opened_at, state.stage_entered_at, state.lease_until, state.observed_at)
    if any(one is not None and one.tzinfo is None for one in moments):
        raise ValueError("a moment without a time zone")
    if state.state not in get_args(StateName) or state.held_for not in get_args(HeldFor):
        raise ValueError(f"state {state.state!r}, held for {state.held_for!r}")
    if state.stage not in WEIGHTS or state.weight not in (0.0, WEIGHTS[state.stage]):
        raise ValueError(f"weight {state.weight:g} at stage {state.stage}")
    if state.state == "baking" and state.stage != BAKE:
        raise ValueError(f"baking at stage {state.stage}")
    return state


def opening(
    id: int, candidate: str, production: str, policy: Policy, now: datetime, *, emergency: bool = False
) -> State:
    """A rollout at its opening: no traffic yet, all evidence to come."""
    now = now.astimezone(UTC)
    return State(id, candidate, production, policy, now, now, emergency=emergency)

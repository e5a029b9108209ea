"""A row of `rollouts` as a value, and the conversion between both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.errors import InputError
from iccm_assets.reporting.formatting import format_duration, format_number
from iccm_assets.rollout.policy import BAKE_STAGE, STAGE_WEIGHTS, Policy
from iccm_assets.rollout.sequential_evidence import Evidence

StateName = Literal["ramping", "holding", "paused", "baking", "completed", "rolled_back", "aborted"]

# Why time does not count, or a stage cannot end: "" (it can), too few samples, unreliable data, or a
# guardrail that production violates, too.
HoldReason = Literal["", "samples", "unreliable_data", "guardrail"]

# Fields kept in the column `evidence`; the others have columns of their own.
_IN_EVIDENCE = (
    "evidence",
    "watermark",
    "stage_seconds",
    "total_seconds",
    "hold_reason",
    "checked_at",
    "raised_alerts",
    "approvals",
)


@dataclass(frozen=True)
class Approval:
    """A person's approval to end a stage before its time."""

    stage: int
    actor: str
    approved_at: AwareDatetime


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class State:
    """One rollout. Durations in seconds, timestamps in UTC.

    ``healthy_seconds`` of this stage were observed and healthy; ``stage_seconds`` of it were observed at all,
    and ``total_seconds`` since the opening. ``watermark`` is how far observations are counted (opaque).
    ``checked_at``: the last check of the health window (`point`). ``raised_alerts``: keys of alerts raised.
    """

    id: int
    candidate: str
    production: str
    policy: Policy
    opened_at: AwareDatetime
    stage_entered_at: AwareDatetime
    state: StateName = "ramping"
    stage: int = 1
    weight: float = 0.0
    emergency: bool = False
    lease_until: AwareDatetime | None = None
    revision: int = 0
    healthy_seconds: float = 0.0
    observed_at: AwareDatetime | None = None
    held_since: AwareDatetime | None = None
    reason: str = ""
    closed_at: AwareDatetime | None = None
    evidence: Evidence = field(default_factory=Evidence)
    watermark: str = ""
    stage_seconds: float = 0.0
    total_seconds: float = 0.0
    hold_reason: HoldReason = ""
    checked_at: AwareDatetime | None = None
    raised_alerts: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> State:
        """Reject a state that no decision can lead to."""
        if self.stage not in STAGE_WEIGHTS or self.weight not in (0.0, STAGE_WEIGHTS[self.stage]):
            raise ValueError(f"weight {self.weight:g} at stage {self.stage}")
        if self.state == "baking" and self.stage != BAKE_STAGE:
            raise ValueError(f"baking at stage {self.stage}")
        return self

    @property
    def is_live(self) -> bool:
        """Whether the rollout can still change."""
        return self.state in LIVE_STATES

    @property
    def approval(self) -> Approval | None:
        """The approval to end this stage early, if there is one."""
        return next((approval for approval in self.approvals if approval.stage == self.stage), None)

    @property
    def min_seconds(self) -> float:
        """The healthy time that the stage needs."""
        return self.policy.stage_seconds[self.stage - 1]

    @property
    def min_sessions(self) -> int:
        """The scored canary-arm sessions that the stage needs."""
        return self.policy.stage_sessions[self.stage - 1]

    @property
    def has_enough_time(self) -> bool:
        """Whether the stage was healthy for long enough, or a person approved to skip the wait."""
        return self.approval is not None or self.healthy_seconds >= self.min_seconds

    @property
    def has_enough_sessions(self) -> bool:
        """Whether the stage has its minimum of scored canary-arm sessions."""
        return self.evidence.canary.sessions >= self.min_sessions

    @property
    def forecast_hours(self) -> float | None:
        """Forecast: hours until the stage can end at its present pace; None while there is no pace."""
        seconds = 0.0 if self.approval else max(self.min_seconds - self.healthy_seconds, 0.0)
        sessions = self.evidence.canary.sessions
        if not self.has_enough_sessions:
            if not sessions or self.stage_seconds <= 0:
                return None
            seconds = max(seconds, (self.min_sessions - sessions) * self.stage_seconds / sessions)
        return seconds / 3600

    @property
    def progress(self) -> str:
        """The stage in numbers, for people."""
        canary, production = self.evidence.canary, self.evidence.production
        rate = format_number(canary.pass_rate)
        reference = "" if production.pass_rate is None else f" (production {production.pass_rate:.3f})"
        return (
            f"stage {self.stage} at {self.weight:.0%}: {format_duration(self.healthy_seconds)} of "
            f"{format_duration(self.min_seconds)} healthy, {canary.sessions} of {self.min_sessions} "
            f"scored canary-arm sessions, pass rate {rate}{reference}"
        )

    @property
    def forecast(self) -> str:
        """When the stage can end, for people."""
        hours = self.forecast_hours
        return "decision unknown yet" if hours is None else f"decision in {format_duration(hours * 3600)}"

    def canary_weight(self, now: datetime) -> float:
        """Return the share that routing may send to the canary arm now: nothing without a live lease."""
        leased = self.lease_until is not None and now <= self.lease_until
        return self.weight if self.is_live and leased else 0.0

    def to_row(self) -> dict[str, Any]:
        """Return the columns of `rollouts`; `from_row` is the inverse."""
        document = _STATE.dump_python(self, mode="json")
        columns = {name: value for name, value in vars(self).items() if name not in _IN_EVIDENCE}
        evidence = {name: document[name] for name in _IN_EVIDENCE}
        return {**columns, "policy": asdict(self.policy), "evidence": evidence}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> State:
        """Parse a row; one whose ``evidence`` is empty has observed nothing yet.

        Raises ``InputError`` with what is damaged; no decision is made on such a row, and its lease expires.
        """
        try:
            stored = row["evidence"] or {}
            columns = {name: value for name, value in row.items() if name not in _IN_EVIDENCE}
            progress = {name: stored[name] for name in _IN_EVIDENCE} if stored else {}
            state = _STATE.validate_python({**columns, "reason": row["reason"] or "", **progress})
            # Each field has a default, so that a document which lacks some would pass for a fresh one.
            if stored and not _covers(stored, state.to_row()["evidence"]):
                raise ValueError("the column evidence is incomplete or has values out of place")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "row"
            raise InputError(f"rollout {row.get('id')}: {where}: {problem['msg']}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"rollout {row.get('id')}: {type(error).__name__}: {error}") from None
        return state


def _covers(stored: Any, document: Any) -> bool:
    """Whether stored JSON has every value of the document; further names are allowed."""
    if isinstance(document, dict):
        return all(name in stored and _covers(stored[name], value) for name, value in document.items())
    return bool(stored == document)


_STATE = TypeAdapter(State)

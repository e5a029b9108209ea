"""The numbers one rollout lives by, frozen when it was opened (R1-R7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from iccm_assets.errors import InputError
from iccm_assets.settings import Evaluation, Rollout

# The canary arm's share of the traffic by stage; the split and the constraints in the database know
# exactly these, so they are no settings.
WEIGHTS = {1: 0.1, 2: 0.5, 3: 1.0}
BAKE = 3

# How the rollout's error is shared among its tests; tests of one null hypothesis that contains another
# share one part (docs/rollout.md).
ALPHA_SHARES = {
    "drop": 0.78,
    "pass_rate": 0.16,
    "variance_ratio": 0.015,
    "variance": 0.015,
    "latency": 0.015,
    "errors": 0.015,
}


@dataclass(frozen=True)
class Policy:
    """Settings `rollout.*` and E3's ratios, in seconds where a duration is meant."""

    evidence: str
    alpha: float
    stage_seconds: tuple[float, float, float]
    stage_sessions: tuple[int, int, int]
    min_pass_rate: float
    allowed_drops: tuple[float, float]
    health_pass_rate: float
    health_variance: float
    health_error_rate: float
    health_sessions: int
    health_requests: int
    health_interval_seconds: float
    health_window_seconds: float
    max_variance_ratio: float
    variance_floor: float
    max_latency_ratio: float
    max_data_age_seconds: float
    max_hold_seconds: float
    lease_seconds: float
    ready_seconds: float

    def __post_init__(self) -> None:
        """Refuse what would make a rollout endless, blind or reckless; ``InputError``."""
        names = [field.name for field in fields(self) if field.name != "evidence"]
        numbers = [value for name in names for value in _numbers(self, name)]
        shares = (self.min_pass_rate, self.health_pass_rate, self.health_error_rate, self.alpha)
        positive = (*self.stage_seconds, self.lease_seconds, self.max_hold_seconds, self.health_variance)
        if self.evidence not in ("sequential", "point"):
            raise InputError(f"policy: evidence {self.evidence!r} is neither sequential nor point")
        if [len(one) for one in (self.stage_seconds, self.stage_sessions, self.allowed_drops)] != [3, 3, 2]:
            raise InputError("policy: not one number for each stage")
        if not all(math.isfinite(one) and one >= 0 for one in numbers):
            raise InputError("policy: a number is negative or not finite")
        if not all(0 < one < 1 for one in shares) or not all(one > 0 for one in positive):
            raise InputError("policy: a limit, the lease or a duration is outside its range")
        if max(self.stage_seconds) >= self.max_hold_seconds or min(self.stage_sessions) < 1:
            raise InputError("policy: a stage could never end, or end without a scored session")
        if max(self.allowed_drops) >= 1 or self.max_variance_ratio <= 0 or self.max_latency_ratio <= 0:
            raise InputError("policy: a drop or ratio is outside its range")

    @classmethod
    def frozen(cls, rollout: Rollout, evaluation: Evaluation) -> Policy:
        """The policy of a rollout opened under these settings."""
        return cls(
            evidence=rollout.evidence,
            alpha=rollout.alpha,
            stage_seconds=(
                rollout.first_stage_hours * 3600,
                rollout.second_stage_hours * 3600,
                rollout.bake_hours * 3600,
            ),
            stage_sessions=(
                rollout.first_stage_sessions,
                rollout.second_stage_sessions,
                rollout.health_sessions,
            ),
            min_pass_rate=rollout.min_pass_rate,
            allowed_drops=(rollout.first_stage_drop, rollout.second_stage_drop),
            health_pass_rate=rollout.health_pass_rate,
            health_variance=rollout.health_variance,
            health_error_rate=rollout.health_error_rate,
            health_sessions=rollout.health_sessions,
            health_requests=rollout.health_requests,
            health_interval_seconds=rollout.health_interval_seconds,
            health_window_seconds=rollout.health_window_minutes * 60,
            max_variance_ratio=evaluation.max_variance_ratio,
            variance_floor=evaluation.variance_floor,
            max_latency_ratio=evaluation.max_latency_ratio,
            max_data_age_seconds=rollout.max_data_age_minutes * 60,
            max_hold_seconds=rollout.max_hold * 86400,
            lease_seconds=rollout.lease_seconds,
            ready_seconds=rollout.ready_minutes * 60,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for `rollouts.policy`; `from_json` is the inverse."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Policy:
        """The stored policy; ``InputError`` when it is none, so that nobody rolls out by guessed numbers."""
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(document)):
            raise InputError(f"policy: {', '.join(missing)} missing")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value := document[name], list) else value for name in names
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"policy: {error}") from None

    def threshold(self, family: str) -> float:
        """The evidence (an e-value) at which a test of this family counts as crossed."""
        return 1.0 / (self.alpha * ALPHA_SHARES[family])


def _numbers(policy: Policy, name: str) -> tuple[Any, ...]:
    value = getattr(policy, name)
    return value if isinstance(value, tuple) else (value,)

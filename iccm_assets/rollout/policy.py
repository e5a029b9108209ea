"""The numbers of one rollout, frozen when it is opened."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic.dataclasses import dataclass

from iccm_assets.settings import EvaluationSettings, RolloutSettings

# The canary arm's share of the traffic by stage; the routing and the database's constraints know exactly
# these, so they are not settings.
STAGE_WEIGHTS = {1: 0.1, 2: 0.5, 3: 1.0}
BAKE_STAGE = 3

# How the rollout's error rate alpha is spent on its tests; tests of nested null hypotheses share one part
# (docs/explanation/rollout.md).
ALPHA_SPLIT = {
    "drop": 0.78,
    "pass_rate": 0.16,
    "variance_ratio": 0.015,
    "variance": 0.015,
    "latency": 0.015,
    "errors": 0.015,
}

Rate = Annotated[float, Field(gt=0, lt=1)]
Drop = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Policy:
    """Settings `rollout.*` and the gate's ratios; durations in seconds.

    Raises pydantic's ``ValidationError`` for numbers under which a rollout could not end or would be unsafe.
    """

    evidence: Literal["sequential", "point"]
    alpha: Rate
    stage_seconds: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    stage_sessions: tuple[PositiveInt, PositiveInt, PositiveInt]
    min_pass_rate: Rate
    allowed_drops: tuple[Drop, Drop]
    health_pass_rate: Rate
    health_variance: PositiveFloat
    health_error_rate: Rate
    health_sessions: NonNegativeInt
    health_requests: NonNegativeInt
    health_interval_seconds: NonNegativeFloat
    health_window_seconds: NonNegativeFloat
    max_variance_ratio: PositiveFloat
    variance_floor: NonNegativeFloat
    max_latency_ratio: PositiveFloat
    max_data_age_seconds: NonNegativeFloat
    max_hold_seconds: PositiveFloat
    lease_seconds: PositiveFloat
    load_timeout_seconds: NonNegativeFloat

    @model_validator(mode="after")
    def _check_stages_can_end(self) -> Policy:
        if max(self.stage_seconds) >= self.max_hold_seconds:
            raise ValueError("a stage can never end: it takes as long as the longest hold")
        return self

    @classmethod
    def from_settings(cls, rollout: RolloutSettings, evaluation: EvaluationSettings) -> Policy:
        """Build the policy of a rollout opened under these settings, which have most names in common."""
        values = {**evaluation.model_dump(), **rollout.model_dump()}
        values |= {
            "stage_seconds": (
                rollout.first_stage_hours * 3600,
                rollout.second_stage_hours * 3600,
                rollout.bake_hours * 3600,
            ),
            "stage_sessions": (
                rollout.first_stage_sessions,
                rollout.second_stage_sessions,
                rollout.health_sessions,
            ),
            "allowed_drops": (rollout.first_stage_drop, rollout.second_stage_drop),
            "health_window_seconds": rollout.health_window_minutes * 60,
            "max_data_age_seconds": rollout.max_data_age_minutes * 60,
            "max_hold_seconds": rollout.max_hold_days * 86400,
            "load_timeout_seconds": rollout.load_timeout_minutes * 60,
        }
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def threshold(self, family: str) -> float:
        """Return the e-value at which a test of this family counts as violated."""
        return 1.0 / (self.alpha * ALPHA_SPLIT[family])

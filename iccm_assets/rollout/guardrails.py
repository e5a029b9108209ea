"""Guardrails that the candidate violates, by evidence or by plain means; pure functions (R4, R5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from iccm_assets.reporting.formatting import format_number
from iccm_assets.rollout.observation import ArmTotals, Observation
from iccm_assets.rollout.policy import BAKE_STAGE, Policy
from iccm_assets.rollout.sequential_evidence import TESTS, Evidence

_format = partial(format_number, missing="unknown")

# Rollback reasons.
LOW_PASS_RATE = "low_pass_rate"
VARIANCE_SPIKE = "variance_spike"
ERROR_RATE_SPIKE = "error_rate_spike"
DEGRADATION = "test_pass_rate_degradation"
LATENCY_REGRESSION = "latency_regression"
BELOW_FLOOR = "pass_rate_floor"


@dataclass(frozen=True)
class GuardrailViolation:
    """A violated guardrail: the rollback reason, a description, its numbers.

    One that production violates, too, raises an alert and holds the stage instead of rolling back.
    """

    reason: str
    description: str
    numbers: dict[str, float]
    also_violated_by_production: bool


# Tests that must all exceed their threshold, reason, description, and whether production violates it, too.
_Guardrail = tuple[tuple[str, ...], str, str, bool]


def check_sequential(evidence: Evidence, policy: Policy, stage: int) -> list[GuardrailViolation]:
    """Return the guardrails of this stage against which the evidence has reached its threshold."""
    e_values = evidence.e_values
    exceeded = {test for test, value in e_values.items() if value >= policy.threshold(TESTS[test])}
    violations = []
    for tests, reason, description, by_production in _guardrails(evidence, policy, stage):
        # A guardrail with two null hypotheses, either of which clears the candidate, needs evidence against
        # both.
        if exceeded.issuperset(tests):
            weakest = min(tests, key=e_values.__getitem__)
            value, needed = e_values[weakest], policy.threshold(TESTS[weakest])
            numbers = {"evidence": float(f"{value:.6g}"), "needed": round(needed, 3)}
            description = f"{description}; evidence {value:.3g} of {needed:.3g}"
            violations.append(GuardrailViolation(reason, description, numbers, by_production))
    return violations


def _guardrails(evidence: Evidence, policy: Policy, stage: int) -> Iterator[_Guardrail]:
    """The guardrails for which there are enough requests or sessions; in the bake there is no comparison."""
    if evidence.canary_total.requests >= policy.health_requests:
        yield from _request_guardrails(evidence, policy, stage)
    if evidence.comparisons >= policy.health_sessions:
        reference = _reference(evidence, evidence.production.sessions >= policy.health_sessions)
        yield from _session_guardrails(evidence.canary_total, reference, policy)
        if stage != BAKE_STAGE:
            yield from _comparison_guardrails(evidence, reference, policy, stage)


def _request_guardrails(evidence: Evidence, policy: Policy, stage: int) -> Iterator[_Guardrail]:
    limit = policy.health_error_rate
    reference = _reference(evidence, evidence.production.requests >= policy.health_requests)
    description = f"error rate {_format(evidence.canary_total.error_rate)}, limit {limit:g}"
    yield ("errors",), ERROR_RATE_SPIKE, description, _is_above(reference.error_rate, limit)
    if stage != BAKE_STAGE:
        description = f"slower per token than {policy.max_latency_ratio:g} x production's p95 too often"
        yield ("latency",), LATENCY_REGRESSION, description, False


def _session_guardrails(canary: ArmTotals, reference: ArmTotals, policy: Policy) -> Iterator[_Guardrail]:
    """The pass rate and the variance of the candidate by itself."""
    limit = policy.health_pass_rate
    description = f"{_pass_rate(canary)}, limit {limit:g}"
    yield ("health_floor",), LOW_PASS_RATE, description, _is_below(reference.pass_rate, limit)
    limit = policy.health_variance
    description = f"implementation variance {_format(canary.variance)}, limit {limit:g}"
    yield ("variance",), VARIANCE_SPIKE, description, _is_above(reference.variance, limit)


def _comparison_guardrails(
    evidence: Evidence, reference: ArmTotals, policy: Policy, stage: int
) -> Iterator[_Guardrail]:
    """The candidate compared with production, and the stages' floor."""
    canary, production, floor = evidence.canary_total, evidence.production_total, policy.min_pass_rate
    drop = f"{_pass_rate(canary)}, {_format(production.pass_rate)} of {production.sessions} of production"
    drop += f", {evidence.pairs} replayed pairs" if evidence.pairs else ""
    drop += f", allowed drop {policy.allowed_drops[stage - 1]:g}"
    yield (("drop_first", "drop_second")[stage - 1],), DEGRADATION, drop, False
    description = f"{_pass_rate(canary)}, limit {floor:g}"
    yield ("stage_floor",), BELOW_FLOOR, description, _is_below(reference.pass_rate, floor)
    description = (
        f"implementation variance {_format(canary.variance)}, {_format(production.variance)} of production"
    )
    yield ("variance_ratio", "variance_above_floor"), VARIANCE_SPIKE, description, False


def _reference(evidence: Evidence, enough: bool) -> ArmTotals:
    """Return production's sums in this stage, or since the opening if those are too few; none in the bake."""
    return evidence.production if enough else evidence.production_total


def _is_below(value: float | None, limit: float) -> TypeGuard[float]:
    return value is not None and value < limit


def _is_above(value: float | None, limit: float) -> TypeGuard[float]:
    return value is not None and value > limit


def check_health_means(
    evidence: Evidence, observation: Observation, policy: Policy
) -> Iterator[GuardrailViolation]:
    """Yield the health guardrails that the plain means of the health window violate.

    Where the window has too little of production, its sums since the opening say what production violates.
    """
    canary, production = observation.canary_window, observation.production_window
    total = evidence.production_total
    if canary.requests >= policy.health_requests:
        reference: ArmTotals = production if production.requests >= policy.health_requests else total
        yield from _above(
            ERROR_RATE_SPIKE, "error rate", canary.error_rate, policy.health_error_rate, reference.error_rate
        )
    if canary.sessions >= policy.health_sessions:
        reference = production if production.sessions >= policy.health_sessions else total
        yield from _below(
            LOW_PASS_RATE, canary.pass_rate, policy.health_pass_rate, canary.sessions, reference.pass_rate
        )
        limit, variance = policy.health_variance, reference.variance
        yield from _above(VARIANCE_SPIKE, "implementation variance", canary.variance, limit, variance)


def check_stage_means(
    evidence: Evidence, observation: Observation, policy: Policy, stage: int
) -> Iterator[GuardrailViolation]:
    """Yield the stage's guardrails that its plain means violate, checked when it could advance."""
    canary, production = evidence.canary, evidence.production
    if stage == BAKE_STAGE or canary.pass_rate is None:
        return
    rate, reference, sessions = canary.pass_rate, production.pass_rate, canary.sessions
    yield from _below(BELOW_FLOOR, rate, policy.min_pass_rate, sessions, reference)
    if reference is not None:
        yield from _below(DEGRADATION, rate, reference - policy.allowed_drops[stage - 1], sessions)
    limit = policy.variance_floor
    if production.variance is not None:
        limit = max(limit, policy.max_variance_ratio * production.variance)
    yield from _above(VARIANCE_SPIKE, "implementation variance", canary.variance, limit)
    slow, fast = observation.canary_window, observation.production_window
    if fast.latency_p95 and min(slow.timed, fast.timed) >= policy.health_requests:
        limit = policy.max_latency_ratio * fast.latency_p95
        yield from _above(LATENCY_REGRESSION, "p95 latency per token", slow.latency_p95, limit)


def _below(
    reason: str, value: float | None, limit: float, sessions: int, production: float | None = None
) -> Iterator[GuardrailViolation]:
    if _is_below(value, limit):
        description = f"mean pass rate {value:.3f} of {sessions} canary-arm sessions is below {limit:.3f}"
        yield GuardrailViolation(reason, description, _numbers(value, limit), _is_below(production, limit))


def _above(
    reason: str, quantity: str, value: float | None, limit: float, production: float | None = None
) -> Iterator[GuardrailViolation]:
    if _is_above(value, limit):
        description, numbers = f"{quantity} {value:.3f} is above {limit:.3f}", _numbers(value, limit)
        yield GuardrailViolation(reason, description, numbers, _is_above(production, limit))


def _numbers(value: float, limit: float) -> dict[str, float]:
    return {"value": round(value, 6), "limit": round(limit, 6)}


def _pass_rate(canary: ArmTotals) -> str:
    return f"pass rate {_format(canary.pass_rate)} of {canary.sessions} canary-arm sessions"

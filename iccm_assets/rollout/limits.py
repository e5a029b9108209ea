"""Which limits the candidate has crossed, by evidence or by plain means (R1, R2, R4, R5). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from iccm_assets.rollout.evidence import TESTS, Evidence, Tally
from iccm_assets.rollout.observation import Observation
from iccm_assets.rollout.policy import BAKE, Policy

# Rollback reasons; the first four are SPEC R4's and E3's names.
LOW_PASS_RATE = "low_pass_rate"
VARIANCE_SPIKE = "variance_spike"
ERROR_RATE_SPIKE = "error_rate_spike"
DEGRADATION = "test_pass_rate_degradation"
LATENCY_REGRESSION = "latency_regression"
BELOW_FLOOR = "pass_rate_floor"


@dataclass(frozen=True)
class Crossing:
    """A limit that was crossed: the rollback reason, the story, its numbers.

    ``excused``: production itself misses this limit, so it alerts and does not roll back (R5).
    """

    reason: str
    story: str
    numbers: dict[str, float] = field(default_factory=dict)
    excused: bool = False


def by_evidence(evidence: Evidence, policy: Policy, stage: int) -> list[Crossing]:
    """The limits of this stage against which the evidence has reached its threshold."""
    reached = {
        name for name, e_value in evidence.e_values.items() if e_value >= policy.threshold(TESTS[name])
    }
    if reached <= {"variance_above_floor"}:  # which says nothing without variance_ratio
        return []
    mine, found = evidence.canary_total, []
    if mine.requests >= policy.health_requests:
        found += _by_requests(evidence, policy, stage)
    if evidence.comparisons >= policy.health_sessions:
        found += _by_sessions(evidence, policy)
        if stage != BAKE:
            found += _by_comparison(evidence, policy, stage)
    # A test of two null hypotheses, either of which acquits, needs the evidence against both.
    return [
        _told(evidence, policy, tests, crossing) for tests, crossing in found if reached.issuperset(tests)
    ]


Judged = list[tuple[tuple[str, ...], Crossing]]


def _by_requests(evidence: Evidence, policy: Policy, stage: int) -> Judged:
    """Errors (R4) and, beside production, speed (E3)."""
    limit = policy.health_error_rate
    theirs = _production(evidence, evidence.production.requests >= policy.health_requests)
    story = f"error rate {_shown(evidence.canary_total.error_rate)}, limit {limit:g}"
    found: Judged = [
        (("errors",), Crossing(ERROR_RATE_SPIKE, story, excused=(theirs.error_rate or 0.0) > limit))
    ]
    if stage != BAKE:
        story = f"slower per token than {policy.max_latency_ratio:g} x production's p95 too often"
        found.append((("latency",), Crossing(LATENCY_REGRESSION, story)))
    return found


def _by_sessions(evidence: Evidence, policy: Policy) -> Judged:
    """The pass rate and the variance of the candidate by itself (R4)."""
    mine, limit = evidence.canary_total, policy.health_pass_rate
    theirs = _production(evidence, evidence.production.sessions >= policy.health_sessions)
    story = f"pass rate {_shown(mine.pass_rate)} of {mine.sessions} canary-arm sessions, limit {limit:g}"
    floor = Crossing(LOW_PASS_RATE, story, excused=_misses(theirs, limit))
    limit = policy.health_variance
    story = f"implementation variance {_shown(mine.variance)}, limit {limit:g}"
    variance = Crossing(VARIANCE_SPIKE, story, excused=(theirs.variance or 0.0) > limit)
    return [(("health_floor",), floor), (("variance",), variance)]


def _by_comparison(evidence: Evidence, policy: Policy, stage: int) -> Judged:
    """The candidate beside production, and the stages' floor (R1, R2)."""
    mine, total = evidence.canary_total, evidence.production_total
    theirs = _production(evidence, evidence.production.sessions >= policy.health_sessions)
    told = f"pass rate {_shown(mine.pass_rate)} of {mine.sessions} canary-arm sessions"
    story = f"{told}, {_shown(total.pass_rate)} of {total.sessions} of production"
    story += f", {evidence.pairs} replayed pairs" if evidence.pairs else ""
    story += f", allowed drop {policy.allowed_drops[stage - 1]:g}"
    floor = f"{told}, limit {policy.min_pass_rate:g}"
    variance = f"implementation variance {_shown(mine.variance)}, {_shown(total.variance)} of production"
    return [
        ((("drop_first", "drop_second")[stage - 1],), Crossing(DEGRADATION, story)),
        (("stage_floor",), Crossing(BELOW_FLOOR, floor, excused=_misses(theirs, policy.min_pass_rate))),
        (("variance_ratio", "variance_above_floor"), Crossing(VARIANCE_SPIKE, variance)),
    ]


def _told(evidence: Evidence, policy: Policy, tests: tuple[str, ...], crossing: Crossing) -> Crossing:
    found = min(evidence.e_values[name] for name in tests)
    needed = policy.threshold(TESTS[tests[0]])
    numbers = {"evidence": float(f"{found:.6g}"), "needed": round(needed, 3)}
    return replace(crossing, story=f"{crossing.story}; evidence {found:.3g} of {needed:.3g}", numbers=numbers)


def _production(evidence: Evidence, enough: bool) -> Tally:
    """Production's sums in this stage, or since the opening while there are too few (in the bake, none)."""
    return evidence.production if enough else evidence.production_total


def _misses(theirs: Tally, limit: float) -> bool:
    return theirs.pass_rate is not None and theirs.pass_rate < limit


def by_health_means(seen: Observation, policy: Policy) -> list[Crossing]:
    """R4 on the plain means of the health window."""
    mine, theirs = seen.canary_window, seen.production_window
    found = []
    if mine.requests >= policy.health_requests:
        rate = mine.errors / mine.requests
        beside = theirs.errors / theirs.requests if theirs.requests >= policy.health_requests else 0.0
        limit = policy.health_error_rate
        found.append(_above(ERROR_RATE_SPIKE, "error rate", rate, limit, beside > limit))
    if mine.sessions >= policy.health_sessions:
        known = theirs.sessions >= policy.health_sessions
        beside = theirs.pass_rate if known and theirs.pass_rate is not None else 1.0
        limit = policy.health_pass_rate
        found.append(_below(LOW_PASS_RATE, mine.pass_rate, limit, mine.sessions, beside < limit))
        beside, limit = (theirs.variance or 0.0) if known else 0.0, policy.health_variance
        found.append(_above(VARIANCE_SPIKE, "implementation variance", mine.variance, limit, beside > limit))
    return [one for one in found if one is not None]


def by_stage_means(evidence: Evidence, seen: Observation, policy: Policy, stage: int) -> list[Crossing]:
    """R1 or R2 on the plain means of the stage, looked at when it could advance."""
    mine, theirs = evidence.canary, evidence.production
    if stage == BAKE or mine.pass_rate is None:
        return []
    excused = theirs.pass_rate is not None and theirs.pass_rate < policy.min_pass_rate
    found = [_below(BELOW_FLOOR, mine.pass_rate, policy.min_pass_rate, mine.sessions, excused)]
    if theirs.pass_rate is not None:
        bound = theirs.pass_rate - policy.allowed_drops[stage - 1]
        found.append(_below(DEGRADATION, mine.pass_rate, bound, mine.sessions, False))
    limit = max(policy.max_variance_ratio * (theirs.variance or 0.0), policy.variance_floor)
    found.append(_above(VARIANCE_SPIKE, "implementation variance", mine.variance, limit, False))
    slow, fast = seen.canary_window, seen.production_window
    if fast.latency_p95 and min(slow.timed, fast.timed) >= policy.health_requests:
        limit = policy.max_latency_ratio * fast.latency_p95
        found.append(_above(LATENCY_REGRESSION, "p95 latency per token", slow.latency_p95, limit, False))
    return [one for one in found if one is not None]


def _below(reason: str, value: float | None, limit: float, of: int, excused: bool) -> Crossing | None:
    if value is None or value >= limit:
        return None
    story = f"mean pass rate {value:.3f} of {of} canary-arm sessions is below {limit:.3f}"
    return Crossing(reason, story, {"value": round(value, 6), "limit": round(limit, 6)}, excused)


def _above(reason: str, what: str, value: float | None, limit: float, excused: bool) -> Crossing | None:
    if value is None or value <= limit:
        return None
    story = f"{what} {value:.3f} is above {limit:.3f}"
    return Crossing(reason, story, {"value": round(value, 6), "limit": round(limit, 6)}, excused)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"

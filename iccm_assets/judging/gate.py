"""The quality gate (E3): may this candidate replace production? A pure function of stored evidence.

Every rule has one of three outcomes, and the strongest decides: ``fail`` before ``inconclusive`` before
``pass``. A failure is a failure only when it stands on evidence: items that are missing or whose verdict the
judge doubts are counted in the candidate's favour by the rules that can fail it, so that a gap can turn a
pass or a failure into ``inconclusive``, and nothing into a pass.

The two-sided rule on improvement is E3's: not above the bound fails, above it with confidence passes, above
it without is inconclusive. The harm rules (pass rate, variance, latency, slices) fail only when the
observed harm exceeds its limit *and* the confidence that the true harm exceeds that limit is reached: with
eight slices, a rule satisfied by "fell, and not by chance" would raise a false alarm on most equal models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from iccm_assets.judging import statistics
from iccm_assets.judging.verdict import GateEvidence, ItemEvidence, Outcome, RuleResult, Verdict
from iccm_assets.settings import Evaluation

# The settings a verdict depends on, besides its evidence.
NUMBERS = (
    "confidence",
    "emergency_bound",
    "max_pass_rate_drop",
    "max_variance_ratio",
    "variance_floor",
    "max_latency_ratio",
    "slice_min_items",
    "max_slice_drop",
    "latency_items",
)
_LATENCY_QUANTILE = 0.95
_FEWEST_LATENCIES = 20
_NAMED = 5
_STRONGEST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class _Measured:
    """The pairs whose numbers can be relied on, and how many items are not among them."""

    pairs: tuple[ItemEvidence, ...]
    missing: int

    @property
    def differences(self) -> list[float]:
        return [pair.difference for pair in self.pairs]


def decide(evidence: GateEvidence, settings: Evaluation, emergency: bool = False) -> Verdict:
    """E3 on one candidate's evidence; the same evidence, settings and ``emergency`` give the same verdict."""
    measured = _Measured(
        tuple(item for item in evidence.items if item.reliable),
        max(evidence.expected_items, len(evidence.items)) - sum(item.reliable for item in evidence.items),
    )
    rules = (
        _complete(evidence, measured.missing),
        _improvement(measured, settings, emergency),
        _degradation(measured, settings),
        _variance(measured, settings),
        _latency(evidence, settings),
        _forgetting(evidence, settings),
    )
    outcomes = {rule.outcome for rule in rules}
    status = next(outcome for outcome in _STRONGEST_FIRST if outcome in outcomes)
    improvement = statistics.mean(measured.differences) if measured.pairs else None
    return Verdict(status, improvement, emergency, rules)


def variance_limit(production: float, settings: Evaluation) -> float:
    """The largest implementation variance allowed beside production's (E3, R1, R2)."""
    return max(settings.max_variance_ratio * production, settings.variance_floor)


def _complete(evidence: GateEvidence, missing: int) -> RuleResult:
    """Nothing is missing and the judge stands by every number."""
    numbers = {"items": float(len(evidence.items)), "missing": float(missing)}
    doubts = [f"{item.item} ({item.doubt})" for item in evidence.items if item.doubt]
    gaps = [item.item for item in evidence.items if not item.reliable and not item.doubt]
    unseen = evidence.expected_items - len(evidence.items)
    found = [
        f"{len(gaps)} items have no score: {_some(gaps)}" if gaps else "",
        f"{unseen} of {evidence.expected_items} items were not measured" if unseen > 0 else "",
        f"the judge is in doubt about {len(doubts)} items: {_some(doubts)}" if doubts else "",
        f"sandbox layers were missing: {_some(evidence.missing_layers)}" if evidence.missing_layers else "",
        "nothing was measured" if not evidence.items and unseen <= 0 else "",
    ]
    reason = "; ".join(part for part in found if part)
    if reason:
        return RuleResult("complete_evidence", "inconclusive", reason, numbers)
    return RuleResult("complete_evidence", "pass", f"all {len(evidence.items)} items were measured", numbers)


def _improvement(measured: _Measured, settings: Evaluation, emergency: bool) -> RuleResult:
    """The mean paired difference is above the bound, with confidence."""
    name, bound = "improvement", settings.emergency_bound if emergency else 0.0
    if not measured.pairs:
        return RuleResult(name, "inconclusive", "no item could be compared", {"bound": bound})
    differences = measured.differences
    gain = statistics.mean(differences)
    best_case = statistics.mean([*differences, *[1.0] * measured.missing])
    sure = statistics.confidence_above(differences, bound, -1.0)
    numbers = {"improvement": gain, "bound": bound, "confidence": sure, "items": float(len(differences))}
    numbers |= {
        "candidate": statistics.mean([pair.rate(of_candidate=True) for pair in measured.pairs]),
        "production": statistics.mean([pair.rate(of_candidate=False) for pair in measured.pairs]),
    }
    story = f"improvement {gain:+.4f} on {len(differences)} items"
    if best_case <= bound:
        return RuleResult(name, "fail", f"{story} is not above {bound:g}", numbers)
    if gain <= bound:
        return RuleResult(
            name, "inconclusive", f"{story}, and {measured.missing} missing items could turn it", numbers
        )
    if sure < settings.confidence:
        shown = f"{sure:.3f}" if round(sure, 3) < settings.confidence else f"{sure:.6f}"
        why = f"{story}: confidence {shown} that it is above {bound:g}, {settings.confidence:g} asked for"
        return RuleResult(name, "inconclusive", why, numbers)
    return RuleResult(name, "pass", f"{story}: confidence {sure:.3f} that it is above {bound:g}", numbers)


def _degradation(measured: _Measured, settings: Evaluation) -> RuleResult:
    """The pass rate did not fall by more than the allowed drop."""
    return _drop(
        "test_pass_rate_degradation", "test pass rate", measured, settings.max_pass_rate_drop, settings
    )


def _forgetting(evidence: GateEvidence, settings: Evaluation) -> RuleResult:
    """No slice with enough items fell by more than the allowed drop."""
    slices: dict[str, list[ItemEvidence]] = defaultdict(list)
    for item in evidence.items:
        slices[item.slice].append(item)
    results: dict[str, RuleResult] = {}
    numbers: dict[str, float] = {}
    for name, items in sorted(slices.items()):
        pairs = tuple(item for item in items if item.reliable)
        if pairs:
            numbers[name] = statistics.mean([pair.difference for pair in pairs])
        if len(items) >= settings.slice_min_items:
            measured = _Measured(pairs, len(items) - len(pairs))
            results[name] = _drop("forgetting", f"slice {name}", measured, settings.max_slice_drop, settings)
    lost = [result.reason for result in results.values() if result.outcome == "fail"]
    if lost:
        return RuleResult("forgetting", "fail", "; ".join(lost), numbers)
    small = len(slices) - len(results)
    skipped = f" ({small} with fewer than {settings.slice_min_items} items not judged)" if small else ""
    if not numbers:
        return RuleResult("forgetting", "inconclusive", "no slice was measured", numbers)
    worst = min(numbers, key=lambda name: (numbers[name], name))
    reason = f"no slice of {len(results)} fell by more than {settings.max_slice_drop:g} with confidence"
    reason += f"{skipped}; worst: {worst} {numbers[worst]:+.4f}"
    return RuleResult("forgetting", "pass", reason, numbers)


def _drop(name: str, what: str, measured: _Measured, allowed: float, settings: Evaluation) -> RuleResult:
    """Fails when the pass rate fell by more than ``allowed``, with confidence that it did."""
    if not measured.pairs:
        return RuleResult(name, "inconclusive", f"{what}: nothing could be compared", {"allowed": allowed})
    differences = measured.differences
    change = statistics.mean(differences)
    favourable = [*differences, *[1.0] * measured.missing]
    # An item cannot gain more than production leaves to gain; of a missing one nothing is known.
    room = 1.0 if measured.missing else 1.0 - min(pair.rate(of_candidate=False) for pair in measured.pairs)
    sure = statistics.confidence_of_harm([-one for one in favourable], allowed, -room)
    numbers = {"change": change, "allowed": allowed, "confidence": sure, "items": float(len(differences))}
    story = f"{what} changed by {change:+.4f} on {len(differences)} items"
    if statistics.mean(favourable) < -allowed and sure >= settings.confidence:
        why = f"{story}: confidence {sure:.3f} that it fell by more than {allowed:g}"
        return RuleResult(name, "fail", why, numbers)
    return RuleResult(name, "pass", f"{story} (allowed: -{allowed:g}, confidence {sure:.3f})", numbers)


def _variance(measured: _Measured, settings: Evaluation) -> RuleResult:
    """The orchestra does not disagree much more about the candidate's texts than about production's."""
    name = "variance_spike"
    pairs = [
        (pair.candidate_variance, pair.production_variance)
        for pair in measured.pairs
        if pair.candidate_variance is not None and pair.production_variance is not None
    ]
    if not pairs:
        return RuleResult(name, "inconclusive", "no item has a variance for both versions", {})
    missing, ratio = measured.missing + len(measured.pairs) - len(pairs), settings.max_variance_ratio
    candidate = statistics.mean([mine for mine, _ in pairs])
    production = statistics.mean([theirs for _, theirs in pairs])
    limit = variance_limit(production, settings)
    # In the candidate's favour, a missing item has variance 0 and production's the largest there is, 1/4.
    over_ratio = [mine - ratio * theirs for mine, theirs in pairs] + [-ratio / 4] * missing
    over_floor = [mine for mine, _ in pairs] + [0.0] * missing
    sure = min(
        statistics.confidence_of_harm(over_ratio, 0.0, -ratio / 4),
        statistics.confidence_of_harm(over_floor, settings.variance_floor, 0.0),
    )
    numbers = {"candidate": candidate, "production": production, "limit": limit, "confidence": sure}
    story = f"implementation variance {candidate:.4f}, production {production:.4f}, limit {limit:.4f}"
    if candidate > limit and sure >= settings.confidence:
        return RuleResult(name, "fail", f"{story}: above it with confidence {sure:.3f}", numbers)
    return RuleResult(name, "pass", f"{story} (confidence {sure:.3f} that it is above)", numbers)


def _latency(evidence: GateEvidence, settings: Evaluation) -> RuleResult:
    """The slow answers are not much slower, per output token."""
    name, ratio = "latency_regression", settings.max_latency_ratio
    mine, theirs = evidence.candidate_latency, evidence.production_latency
    fewest = min(_FEWEST_LATENCIES, settings.latency_items)
    if min(len(mine), len(theirs)) < fewest:
        why = f"latency was measured on {len(mine)} and {len(theirs)} answers, {fewest} of each are needed"
        return RuleResult(name, "inconclusive", why, {})
    candidate = statistics.quantile(mine, _LATENCY_QUANTILE)
    production = statistics.quantile(theirs, _LATENCY_QUANTILE)
    sure = statistics.quantile_ratio_confidence(mine, theirs, _LATENCY_QUANTILE, ratio)
    numbers = {"candidate_ms": round(candidate, 6), "production_ms": round(production, 6)}
    numbers |= {"ratio": round(candidate / production, 6), "limit": ratio, "confidence": sure}
    story = f"p95 latency per output token {candidate:.3f} ms, {candidate / production:.2f} x production's"
    if candidate > ratio * production and sure >= settings.confidence:
        return RuleResult(name, "fail", f"{story}: above {ratio:g} x with confidence {sure:.3f}", numbers)
    return RuleResult(name, "pass", f"{story} (limit {ratio:g} x, confidence {sure:.3f})", numbers)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")

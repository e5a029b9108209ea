"""Quality gate: may a candidate replace production? A pure function of stored evidence, no I/O (E3).

Every rule has one of three outcomes, and the strongest decides: ``fail``, then ``inconclusive``, then
``pass``. A failure needs evidence. The rules that can fail count items that are missing, or whose verdict the
judge does not trust, in the candidate's favor. So a gap can turn a pass or a failure into ``inconclusive``,
and nothing into a pass.

Improvement: not above the bound fails, above it with confidence passes, above it without is inconclusive.
The harm rules (pass rate, variance, latency) fail only when the observed harm exceeds its limit *and* the
confidence that the true harm exceeds it is reached.

Forgetting is judged by slice, and once for all slices together that production masters: the observed drop
exceeds its limit, and is a drop with confidence. In a slice of 40 items, a loss of 0.10 cannot be shown to be
larger than 0.05. How much equal models differ by chance is read from the evidence itself: from what the other
slices of its kind lose (those that production masters, or those that it does not), and from what the slice
gains, because chance takes as often as it gives. A slice is lost when it falls by more than that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from iccm_assets.evaluation import confidence_bounds
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence, Outcome, RuleResult, Verdict
from iccm_assets.settings import EvaluationSettings

# The settings a verdict depends on, besides its evidence.
THRESHOLD_FIELDS = (
    "confidence",
    "emergency_bound",
    "max_pass_rate_drop",
    "max_variance_ratio",
    "variance_floor",
    "max_latency_ratio",
    "min_slice_items",
    "max_slice_drop",
    "max_pooled_drop",
    "latency_items",
)
_LATENCY_QUANTILE = 0.95
MIN_LATENCIES = 20
MAX_BLANK_FRACTION = 0.5
# Mean pass rate from which on production masters a slice.
MASTERED_PASS_RATE = 0.8
# How often at most equal models lose any slice at all, and the confidence that the mastered together dropped.
FORGETTING_ERROR, POOLED_CONFIDENCE = 0.05, 0.95
# How much the gains of a slice count for what chance takes from it, beside the losses of the other slices.
OWN_WEIGHT = 0.25
_MAX_NAMES = 5
_STRONGEST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class _Pairs:
    """The reliable pairs, and the number of items without one."""

    reliable: tuple[ItemEvidence, ...]
    missing: int

    @classmethod
    def build(cls, items: Sequence[ItemEvidence], expected: int) -> Self:
        reliable = tuple(item for item in items if item.reliable)
        return cls(reliable, max(expected, len(items)) - len(reliable))

    @property
    def differences(self) -> list[float]:
        return [pair.difference for pair in self.reliable]

    @property
    def items(self) -> int:
        """All items, those without a pair included."""
        return len(self.reliable) + self.missing

    @property
    def losses(self) -> list[float]:
        """What each item lost; a missing one counts as won."""
        return [*(-value for value in self.differences), *[-1.0] * self.missing]

    @property
    def is_mastered(self) -> bool:
        """Whether production masters these items."""
        return bool(self.reliable) and confidence_bounds.mean(self.production) >= MASTERED_PASS_RATE

    @property
    def production(self) -> list[float]:
        return [pair.rate(of_candidate=False) for pair in self.reliable]


def evaluate_gate(evidence: GateEvidence, settings: EvaluationSettings, emergency: bool = False) -> Verdict:
    """Decide on one candidate; the same evidence, settings and ``emergency`` give the same verdict."""
    pairs = _Pairs.build(evidence.items, evidence.expected_items)
    rules = (
        _evidence_rule(evidence, pairs.missing),
        _blank_rule(evidence),
        _improvement_rule(pairs, settings, emergency),
        _drop_rule(
            "test_pass_rate_degradation", "test pass rate", pairs, settings.max_pass_rate_drop, settings
        ),
        _variance_rule(pairs, settings),
        _latency_rule(evidence, settings),
        _forgetting_rule(evidence, settings),
        _pooled_forgetting_rule(evidence, settings),
    )
    status = min((rule.outcome for rule in rules), key=_STRONGEST_FIRST.index)
    improvement = confidence_bounds.mean(pairs.differences) if pairs.reliable else None
    return Verdict(status, improvement, emergency, rules)


def max_variance(production: float, settings: EvaluationSettings) -> float:
    """Return the largest allowed implementation variance, given production's (E3, R1, R2)."""
    return max(settings.max_variance_ratio * production, settings.variance_floor)


def _evidence_rule(evidence: GateEvidence, missing: int) -> RuleResult:
    """Pass if every item was measured and the judge trusts every number; inconclusive otherwise."""
    doubts = [f"{item.item} ({item.unreliable_reason})" for item in evidence.items if item.unreliable_reason]
    gaps = [item.item for item in evidence.items if not item.reliable and not item.unreliable_reason]
    unmeasured = max(0, evidence.expected_items - len(evidence.items))
    problems = [
        (gaps, f"{len(gaps)} items have no score: {_join(gaps)}"),
        (unmeasured, f"{unmeasured} of {evidence.expected_items} items were not measured"),
        (doubts, f"the judge does not trust its verdict on {len(doubts)} items: {_join(doubts)}"),
        (evidence.missing_layers, f"sandbox layers were missing: {_join(evidence.missing_layers)}"),
        (not evidence.items and not unmeasured, "nothing was measured"),
    ]
    reason = "; ".join(text for present, text in problems if present)
    numbers = {"items": float(len(evidence.items)), "missing": float(missing)}
    if reason:
        return RuleResult("complete_evidence", "inconclusive", reason, numbers)
    return RuleResult("complete_evidence", "pass", f"all {len(evidence.items)} items were measured", numbers)


def _blank_rule(evidence: GateEvidence) -> RuleResult:
    """Fail if most responses of the candidate are blank: a broken model, whatever it is compared with."""
    count, total = sum(item.is_blank for item in evidence.items), len(evidence.items)
    failed = count > MAX_BLANK_FRACTION * total
    reason = f"{count} of {total} responses of {evidence.candidate_version} are blank"
    numbers = {"blank": float(count), "items": float(total)}
    return RuleResult("blank_responses", "fail" if failed else "pass", reason, numbers)


def _improvement_rule(pairs: _Pairs, settings: EvaluationSettings, emergency: bool) -> RuleResult:
    """Pass if the mean paired difference is above the bound, with confidence."""
    bound = settings.emergency_bound if emergency else 0.0
    if not pairs.reliable:
        return RuleResult("improvement", "inconclusive", "no item could be compared", {"bound": bound})
    differences = pairs.differences
    gain = confidence_bounds.mean(differences)
    confidence = confidence_bounds.confidence_above(differences, bound, -1.0)
    observed = f"improvement {gain:+.4f} on {len(differences)} items"
    outcome: Outcome = "pass"
    reason = f"{observed}: confidence {confidence:.3f} that it is above {bound:g}"
    if confidence_bounds.mean([*differences, *[1.0] * pairs.missing]) <= bound:
        outcome, reason = "fail", f"{observed} is not above {bound:g}"
    elif gain <= bound:
        outcome, reason = "inconclusive", f"{observed}, and {pairs.missing} missing items could change that"
    elif confidence < settings.confidence:
        # Three digits would round up a confidence just below the required one.
        digits = 3 if round(confidence, 3) < settings.confidence else 6
        reason = f"{observed}: confidence {confidence:.{digits}f} that it is above {bound:g}"
        outcome, reason = "inconclusive", f"{reason}, {settings.confidence:g} required"
    numbers = {
        "improvement": gain,
        "bound": bound,
        "confidence": confidence,
        "items": float(len(differences)),
        "candidate": confidence_bounds.mean([pair.rate(of_candidate=True) for pair in pairs.reliable]),
        "production": confidence_bounds.mean([pair.rate(of_candidate=False) for pair in pairs.reliable]),
    }
    return RuleResult("improvement", outcome, reason, numbers)


def _forgetting_rule(evidence: GateEvidence, settings: EvaluationSettings) -> RuleResult:
    """Fail if the pass rate of a slice with enough items dropped by more than allowed."""
    slices = _group_by_slice(evidence.items)
    changes = {
        name: confidence_bounds.mean(pairs.differences) for name, pairs in slices.items() if pairs.reliable
    }
    judged = [name for name, pairs in slices.items() if pairs.items >= settings.min_slice_items]
    results = [
        _loss_rule(
            "forgetting",
            f"slice {name}",
            slices[name],
            settings.max_slice_drop,
            confidence_bounds.confidence_of_loss(slices[name].losses, _find_noise(slices, name)),
            _required_confidence(len(judged)),
        )
        for name in judged
    ]
    if forgotten := [result.reason for result in results if result.outcome == "fail"]:
        return RuleResult("forgetting", "fail", "; ".join(forgotten), changes)
    if not changes:
        return RuleResult("forgetting", "inconclusive", "no slice was measured", changes)
    small = len(slices) - len(results)
    skipped = f" ({small} with fewer than {settings.min_slice_items} items not judged)" if small else ""
    worst = min(changes, key=lambda name: (changes[name], name))
    reason = f"no slice of {len(results)} dropped by more than {settings.max_slice_drop:g} with confidence"
    return RuleResult(
        "forgetting", "pass", f"{reason}{skipped}; worst: {worst} {changes[worst]:+.4f}", changes
    )


def _pooled_forgetting_rule(evidence: GateEvidence, settings: EvaluationSettings) -> RuleResult:
    """Fail if the slices that production masters dropped, taken together, by more than allowed."""
    mastered = {name: pairs for name, pairs in _group_by_slice(evidence.items).items() if pairs.is_mastered}
    if not any(item.reliable for item in evidence.items):
        return RuleResult("pooled_forgetting", "inconclusive", "nothing could be compared", {})
    if not mastered:
        reason = f"production masters no slice (pass rate {MASTERED_PASS_RATE:g})"
        return RuleResult("pooled_forgetting", "pass", reason, {"slices": 0.0})
    pooled = _Pairs(
        tuple(pair for pairs in mastered.values() for pair in pairs.reliable),
        sum(pairs.missing for pairs in mastered.values()),
    )
    label = (
        f"the {len(mastered)} slices that production masters" if len(mastered) > 1 else next(iter(mastered))
    )
    # An equal model may solve what production does not, also where production solves all of these items.
    confidence = confidence_bounds.confidence_of_harm(pooled.losses, 0.0, -1.0)
    result = _loss_rule(
        "pooled_forgetting", label, pooled, settings.max_pooled_drop, confidence, POOLED_CONFIDENCE
    )
    return replace(result, numbers={**result.numbers, "slices": float(len(mastered))})


def _group_by_slice(items: Sequence[ItemEvidence]) -> dict[str, _Pairs]:
    slices: dict[str, list[ItemEvidence]] = defaultdict(list)
    for item in items:
        slices[item.slice].append(item)
    return {name: _Pairs.build(slices[name], len(slices[name])) for name in sorted(slices)}


def _find_noise(slices: Mapping[str, _Pairs], name: str) -> list[tuple[float, list[float]]]:
    """Find what equal models lose: the losses of the other slices of its kind, and the gains of this one."""
    own = slices[name]
    elsewhere = [
        max(0.0, -difference)
        for other, pairs in slices.items()
        if other != name and pairs.is_mastered == own.is_mastered
        for difference in pairs.differences
    ]
    here = [max(0.0, difference) for difference in own.differences]
    return [(1.0 - OWN_WEIGHT, elsewhere), (OWN_WEIGHT, here)] if elsewhere else [(1.0, here)]


def _required_confidence(judged: int) -> float:
    """Return the confidence with which equal models lose any of so many slices as rarely as promised."""
    return 1.0 - FORGETTING_ERROR / max(1, judged)


def find_detectable_loss(
    items: Sequence[ItemEvidence], name: str, settings: EvaluationSettings
) -> float | None:
    """Find the smallest loss of a slice that the forgetting rule could have shown in this evidence.

    Items of the slice ``name`` are lost whole, those that production solves best first. None for a slice with
    too few items to be judged, or where even the loss of all could not be shown.
    """
    slices = _group_by_slice(items)
    judged = sum(pairs.items >= settings.min_slice_items for pairs in slices.values())
    pairs = slices[name]
    if pairs.items < settings.min_slice_items or not pairs.reliable:
        return None
    noise, rates = _find_noise(slices, name), sorted(pairs.production, reverse=True)

    def is_shown(count: int) -> bool:
        losses = [*rates[:count], *[0.0] * (len(rates) - count)]
        exceeded = confidence_bounds.mean(losses) > settings.max_slice_drop
        confidence = confidence_bounds.confidence_of_loss(losses, noise) if exceeded else 0.0
        return exceeded and confidence >= _required_confidence(judged)

    # The more items are lost, the more certain: the first count that is shown, by bisection.
    count = bisect_left(range(len(rates) + 1), True, key=is_shown)
    return (
        confidence_bounds.mean([*rates[:count], *[0.0] * (len(rates) - count)])
        if count <= len(rates)
        else None
    )


def _drop_rule(
    name: str, label: str, pairs: _Pairs, allowed: float, settings: EvaluationSettings
) -> RuleResult:
    """Fail if the pass rate dropped by more than ``allowed``, with confidence that it is more."""
    if not pairs.reliable:
        return RuleResult(name, "inconclusive", f"{label}: nothing could be compared", {"allowed": allowed})
    observed, exceeded, numbers = _describe_drop(label, pairs, allowed)
    harms = pairs.losses
    # An item can gain at most 1 minus production's rate; of a missing item nothing is known.
    production = min(pair.rate(of_candidate=False) for pair in pairs.reliable)
    confidence = confidence_bounds.confidence_of_harm(harms, allowed, min(production - 1.0, *harms))
    return _harm_rule(name, observed, exceeded, confidence, numbers, settings)


def _loss_rule(
    name: str, label: str, pairs: _Pairs, allowed: float, confidence: float, required: float
) -> RuleResult:
    """Fail if the pass rate dropped by more than ``allowed``, with confidence that it dropped at all."""
    if not pairs.reliable:
        return RuleResult(name, "inconclusive", f"{label}: nothing could be compared", {"allowed": allowed})
    observed, exceeded, numbers = _describe_drop(label, pairs, allowed)
    failed = exceeded and confidence >= required
    reason = f"{observed} (confidence {confidence:.3f} that it dropped, {required:.4g} required)"
    return RuleResult(name, "fail" if failed else "pass", reason, {**numbers, "confidence": confidence})


def _describe_drop(label: str, pairs: _Pairs, allowed: float) -> tuple[str, bool, dict[str, float]]:
    """Describe the observed change; whether it exceeds the limit even if all missing items are gains."""
    change = confidence_bounds.mean(pairs.differences)
    observed = f"{label} changed by {change:+.4f} on {len(pairs.reliable)} items, -{allowed:g} allowed"
    numbers = {"change": change, "allowed": allowed, "items": float(len(pairs.reliable))}
    best_case = confidence_bounds.mean([*pairs.differences, *[1.0] * pairs.missing])
    return observed, best_case < -allowed, numbers


def _variance_rule(pairs: _Pairs, settings: EvaluationSettings) -> RuleResult:
    """Fail if the orchestra disagrees much more about the candidate's texts than about production's."""
    variances = [
        (pair.candidate_variance, pair.production_variance)
        for pair in pairs.reliable
        if pair.candidate_variance is not None and pair.production_variance is not None
    ]
    if not variances:
        return RuleResult("variance_spike", "inconclusive", "no item has a variance for both versions", {})
    ratio, missing = settings.max_variance_ratio, pairs.missing + len(pairs.reliable) - len(variances)
    candidate, production = (confidence_bounds.mean(values) for values in zip(*variances, strict=True))
    limit = max_variance(production, settings)
    # In the candidate's favor, a missing item has variance 0 and production's the largest there is, 1/4.
    over_ratio = [value - ratio * reference for value, reference in variances] + [-ratio / 4] * missing
    over_floor = [value for value, _ in variances] + [0.0] * missing
    confidence = min(
        confidence_bounds.confidence_of_harm(over_ratio, 0.0, -ratio / 4),
        confidence_bounds.confidence_of_harm(over_floor, settings.variance_floor, 0.0),
    )
    observed = f"implementation variance {candidate:.4f}, production {production:.4f}, limit {limit:.4f}"
    numbers = {"candidate": candidate, "production": production, "limit": limit}
    return _harm_rule("variance_spike", observed, candidate > limit, confidence, numbers, settings)


def _latency_rule(evidence: GateEvidence, settings: EvaluationSettings) -> RuleResult:
    """Fail if the slow responses (p95) are much slower than production's, per output token."""
    name, ratio = "latency_regression", settings.max_latency_ratio
    samples = (evidence.candidate_latency, evidence.production_latency)
    counts, required = list(map(len, samples)), min(MIN_LATENCIES, settings.latency_items)
    if min(counts) < required:
        reason = (
            f"latency was measured on {counts[0]} and {counts[1]} responses, {required} of each are needed"
        )
        return RuleResult(name, "inconclusive", reason, {})
    candidate, production = (confidence_bounds.quantile(sample, _LATENCY_QUANTILE) for sample in samples)
    confidence = confidence_bounds.quantile_ratio_confidence(*samples, _LATENCY_QUANTILE, ratio)
    observed = f"p95 latency per output token {candidate:.3f} ms, {candidate / production:.2f} x production's"
    numbers = {
        "candidate_ms": round(candidate, 6),
        "production_ms": round(production, 6),
        "ratio": round(candidate / production, 6),
        "limit": ratio,
    }
    observed = f"{observed}, limit {ratio:g} x"
    return _harm_rule(name, observed, candidate > ratio * production, confidence, numbers, settings)


def _harm_rule(
    name: str,
    observed: str,
    exceeded: bool,
    confidence: float,
    numbers: dict[str, float],
    settings: EvaluationSettings,
) -> RuleResult:
    """Fail if the observed harm exceeds its limit and the confidence that the true one does is reached."""
    failed = exceeded and confidence >= settings.confidence
    reason = f"{observed} (confidence {confidence:.3f} that it is exceeded)"
    return RuleResult(name, "fail" if failed else "pass", reason, {**numbers, "confidence": confidence})


def _join(names: Collection[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(sorted(names)[:_MAX_NAMES]) + more

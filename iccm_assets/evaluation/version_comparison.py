"""Version comparison: is a later version better than an earlier one, and what did it forget? (E1, E3)

The gate compares a candidate with the version before it. Over several retrains small losses, each too small
to detect, may add up: this compares the ends, by the gate's own rules for improvement and forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.errors import InputError
from iccm_assets.evaluation import confidence_bounds, quality_gate
from iccm_assets.evaluation.gate_evidence import GateEvidence, RuleResult
from iccm_assets.settings import EvaluationSettings

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class VersionComparison:
    """The paired comparison of a version with an earlier one.

    ``low`` and ``high`` bound the mean difference, two-sided at ``CONFIDENCE_LEVEL``; ``p_value`` is
    one-sided, against "not better". The last three are results of the gate's rules.
    """

    items: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    improvement: RuleResult
    no_forgetting: RuleResult
    no_pooled_forgetting: RuleResult

    @property
    def rules(self) -> tuple[RuleResult, ...]:
        """The results of the gate's rules."""
        return self.improvement, self.no_forgetting, self.no_pooled_forgetting

    @property
    def is_improvement(self) -> bool:
        """Whether the version is better with evidence and no slice was lost."""
        return all(rule.outcome == "pass" for rule in self.rules)

    @property
    def reason(self) -> str:
        """The reasons of the rules that did not pass, or of all."""
        decisive = [rule for rule in self.rules if rule.outcome != "pass"] or self.rules
        return "; ".join(rule.reason for rule in decisive)


def compare_versions(evidence: GateEvidence, settings: EvaluationSettings) -> VersionComparison:
    """Compare the evidence's candidate, the later version, with its production, the earlier one.

    Raises ``InputError`` when no item has a score of both.
    """
    pairs = [item for item in evidence.items if item.reliable]
    if not pairs:
        raise InputError("no item of the canary set has a score of both versions")
    differences = [pair.difference for pair in pairs]
    verdict = quality_gate.evaluate_gate(evidence, settings)
    low, high = confidence_interval(differences)
    return VersionComparison(
        items=len(pairs),
        before=confidence_bounds.mean([pair.rate(of_candidate=False) for pair in pairs]),
        after=confidence_bounds.mean([pair.rate(of_candidate=True) for pair in pairs]),
        difference=confidence_bounds.mean(differences),
        low=low,
        high=high,
        p_value=round(1.0 - confidence_bounds.confidence_above(differences, 0.0, -1.0), 6),
        improvement=verdict.rule("improvement"),
        no_forgetting=verdict.rule("forgetting"),
        no_pooled_forgetting=verdict.rule("pooled_forgetting"),
    )


def confidence_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the two-sided interval, at ``CONFIDENCE_LEVEL``, of the mean of differences in [-1, 1]."""
    return _lower_bound(differences), -_lower_bound([-value for value in differences])


def _lower_bound(differences: Sequence[float]) -> float:
    """Find the largest bound that the mean exceeds with the confidence required, to four decimals."""
    low, high = -1.0, confidence_bounds.mean(differences)
    while high - low > 1e-5:
        middle = (low + high) / 2.0
        if confidence_bounds.confidence_above(differences, middle, -1.0) >= (1.0 + CONFIDENCE_LEVEL) / 2.0:
            low = middle
        else:
            high = middle
    return round(low, 4)

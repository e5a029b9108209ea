"""Two versions on the same items, long apart: is the later one better, and what was lost on the way? (E1, E3)

The gate compares a candidate with the version before it. Over several retrains small losses, each too small
to be seen, may add up: this compares the ends, by the gate's own rules for improvement and forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.errors import InputError
from iccm_assets.judging import gate, statistics
from iccm_assets.judging.verdict import GateEvidence, RuleResult
from iccm_assets.settings import Evaluation

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of a version with an earlier one.

    ``low`` and ``high`` are the ends of a two-sided confidence interval of the mean difference at ``LEVEL``;
    ``p`` is one-sided, against "not better". ``better`` and ``nothing_lost`` are the gate's rules.
    """

    items: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    better: RuleResult
    nothing_lost: RuleResult

    @property
    def holds(self) -> bool:
        """Better with evidence, and no slice lost."""
        return self.better.outcome == "pass" and self.nothing_lost.outcome == "pass"

    @property
    def reason(self) -> str:
        """What the rules that did not pass say, or, when all did, all of them."""
        rules = (self.better, self.nothing_lost)
        said = [rule for rule in rules if rule.outcome != "pass"] or rules
        return "; ".join(rule.reason for rule in said)


def compare(evidence: GateEvidence, settings: Evaluation) -> Comparison:
    """The later version is the evidence's candidate, the earlier its production.

    Raises ``InputError`` when no item has a score of both.
    """
    pairs = [item for item in evidence.items if item.reliable]
    if not pairs:
        raise InputError("no item of the canary set has a score of both versions")
    differences = [pair.difference for pair in pairs]
    rules = {rule.name: rule for rule in gate.decide(evidence, settings).rules}
    low, high = interval(differences)
    return Comparison(
        items=len(pairs),
        before=statistics.mean([pair.rate(of_candidate=False) for pair in pairs]),
        after=statistics.mean([pair.rate(of_candidate=True) for pair in pairs]),
        difference=statistics.mean(differences),
        low=low,
        high=high,
        p=round(1.0 - statistics.confidence_above(differences, 0.0, -1.0), 6),
        better=rules["improvement"],
        nothing_lost=rules["forgetting"],
    )


def interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The two-sided interval of the mean of differences in [-1, 1] that the gate's test implies."""
    return _lowest(differences, level), -_lowest([-one for one in differences], level)


def _lowest(differences: Sequence[float], level: float) -> float:
    """The largest bound the mean lies above with confidence ``(1 + level) / 2``, to four decimals."""
    sure, low, high = (1.0 + level) / 2.0, -1.0, statistics.mean(differences)
    while high - low > 1e-5:
        middle = (low + high) / 2.0
        if statistics.confidence_above(differences, middle, -1.0) >= sure:
            low = middle
        else:
            high = middle
    return round(low, 4)

"""Degradation: how far production's quality has dropped, and with what confidence; pure functions (T2, T8).

On the canary set the same items were measured at the deployment: the drop is a mean of paired differences,
with Gaffke's bound on them as its confidence. The production holdout moves with time: there the drop is a
difference of two means over different conversations, with the error of two samples. Conversations in both
samples make the true error a little smaller than that, never larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from iccm_assets.evaluation.confidence_bounds import confidence_above

# With a larger share of items without a response or score, the rest may be a biased sample.
MAX_MISSING_FRACTION = 0.1


@dataclass(frozen=True)
class QualityDrop:
    """The numbers of one row of ``quality_measurements``; ``mean`` is None if it could not be measured."""

    n: int
    mean: float | None
    standard_error: float | None
    baseline_mean: float | None
    confidence: float | None = None
    remark: str = ""


def paired_drop(
    current: Mapping[str, float | None], baseline: Mapping[str, float] | None, allowed_drop: float
) -> QualityDrop:
    """Compare current rates with those at the deployment on the same items; ``allowed_drop`` is the limit."""
    rates = {item: rate for item, rate in current.items() if rate is not None}
    if unmeasured := _unmeasured(len(current), len(rates)):
        return unmeasured
    values = list(rates.values())
    if not baseline:
        return QualityDrop(len(values), _mean(values), _error(values), None, remark="no baseline yet")
    common = sorted(set(rates) & set(baseline))
    if len(common) < 2:
        remark = f"{len(common)} items of the baseline were measured"
        return QualityDrop(len(values), _mean(values), None, None, remark=remark)
    drops = [baseline[item] - rates[item] for item in common]
    return QualityDrop(
        n=len(common),
        mean=_mean([rates[item] for item in common]),
        standard_error=_error(drops),
        baseline_mean=_mean([baseline[item] for item in common]),
        confidence=confidence_above(drops, allowed_drop, min_value=-1.0),
    )


def unpaired_drop(current: Mapping[str, float | None], baseline: Sequence[float] | None) -> QualityDrop:
    """Compare current rates with those at the deployment on the conversations of that time."""
    values = [rate for rate in current.values() if rate is not None]
    if unmeasured := _unmeasured(len(current), len(values)):
        return unmeasured
    error = _error(values)
    if not baseline or len(baseline) < 2 or error is None:
        return QualityDrop(len(values), _mean(values), error, None, remark="no baseline yet")
    total_error = math.hypot(error, _error(baseline) or 0.0)
    return QualityDrop(len(values), _mean(values), total_error, _mean(baseline))


def _unmeasured(items: int, scored: int) -> QualityDrop | None:
    """Return the empty result if too few of the items have a score."""
    missing = items - scored
    if scored and missing <= MAX_MISSING_FRACTION * items:
        return None
    remark = f"{missing} of {items} items have no score" if items else "no items"
    return QualityDrop(scored, None, None, None, remark=remark)


def _error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for a single value."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else None


def _mean(rates: Sequence[float]) -> float:
    return round(fmean(rates), 9)

"""How far production has fallen, and how sure that is: pure (T2, T8).

On the canary set the same items were measured at the deployment, so the fall is a mean of paired differences
and its confidence Gaffke's bound on them. The production holdout moves on, so there it is the difference of
two means over different conversations, and its error that of two samples; conversations that are in both
make the truth a little more certain than that, never less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from iccm_assets.judging.statistics import confidence_above

# With more of the items unanswered or unscored than this the rest may be a biased sample.
MOST_MISSING = 0.1


@dataclass(frozen=True)
class Fall:
    """One row of ``quality_measurements``; ``mean`` is ``None`` where it could not be measured."""

    n: int
    mean: float | None
    standard_error: float | None
    baseline_mean: float | None
    confidence: float | None = None
    remark: str = ""


def fall_on_same_items(
    now: Mapping[str, float | None], before: Mapping[str, float] | None, drop: float
) -> Fall:
    """Production now and at its deployment on the same items; ``drop`` is the fall that is allowed."""
    rates = {item: rate for item, rate in now.items() if rate is not None}
    if unmeasured := _unmeasured(now, rates):
        return unmeasured
    mean = _share(fmean(rates.values()))
    if not before:
        return Fall(len(rates), mean, _error(list(rates.values())), None, remark="no baseline yet")
    common = sorted(set(rates) & set(before))
    if len(common) < 2:
        return Fall(len(rates), mean, None, None, remark=f"{len(common)} items of the baseline were measured")
    falls = [before[item] - rates[item] for item in common]
    return Fall(
        n=len(common),
        mean=_share(fmean(rates[item] for item in common)),
        standard_error=_error(falls),
        baseline_mean=_share(fmean(before[item] for item in common)),
        confidence=confidence_above(falls, drop, lowest=-1.0),
    )


def fall_on_other_items(now: Mapping[str, float | None], before: Sequence[float] | None) -> Fall:
    """Production now, and at its deployment on the conversations of that time."""
    rates = {item: rate for item, rate in now.items() if rate is not None}
    if unmeasured := _unmeasured(now, rates):
        return unmeasured
    values = list(rates.values())
    mean, error = _share(fmean(values)), _error(values)
    if not before or len(before) < 2 or error is None:
        return Fall(len(values), mean, error, None, remark="no baseline yet")
    other = _error(before)
    return Fall(len(values), mean, math.hypot(error, other or 0.0), _share(fmean(before)))


def _unmeasured(now: Mapping[str, float | None], rates: Mapping[str, float]) -> Fall | None:
    if not now:
        return Fall(0, None, None, None, remark="no items")
    missing = len(now) - len(rates)
    if not rates or missing > MOST_MISSING * len(now):
        return Fall(len(rates), None, None, None, remark=f"{missing} of {len(now)} items have no score")
    return None


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; ``None`` for a single value."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else None


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 9)

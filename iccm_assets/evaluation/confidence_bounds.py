"""Confidence bounds for the gate: deterministic, and without a normal approximation.

The paired differences that the gate judges are bounded (pass rates lie in [0, 1]), mostly zero, and few: the
t-test and the bootstrap are unreliable there (a t-test is 92 % confident after two wins in 240 items; a fair
coin gives two wins in one of four cases). ``confidence_above`` therefore uses Gaffke's bound: the share of
random convex weights, uniform over the observations *and the worst value an observation could have had*,
under which the mean exceeds the bound. For differences of one size it is the exact sign (McNemar) test, for
0/1 values the exact Clopper-Pearson bound. For other bounded values no distribution is known for which it
overstates the confidence; the tests simulate several.

Rules that protect users may react sooner: ``confidence_of_harm`` is the larger of that and Student's t, which
detects a loss of four items in thirty where Gaffke's bound, allowing for unobserved gains, needs six. Its
error rate is controlled by simulation on differences like the gate's, not for every distribution.

No function depends on the order of its input, so a stored verdict can be reproduced (E5).

N. Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Mathematical Methods of Statistics 14 (2005); E. Learned-Miller and P. Thomas, "A new confidence
interval for the mean of a bounded random variable", arXiv:1905.06208.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The integrand of `_positive_share` is smooth on a logarithmic axis: exact to about 1e-9 (tested).
_REACH = 32.0
_LOG_GRID = np.arange(-_REACH, _REACH, 1 / 64)
_DIGITS = 9


def mean(values: Sequence[float]) -> float:
    """Return the mean, rounded to 9 decimals so that 0.3 - 0.2 + 0.1 - 0.2 is zero; ValueError when empty."""
    if not values:
        raise ValueError("the mean of nothing")
    return round(math.fsum(values) / len(values), _DIGITS) + 0.0


def confidence_above(values: Sequence[float], bound: float, min_value: float) -> float:
    """Return the one-sided confidence in [0, 1] that the mean behind ``values`` is above ``bound``.

    ``min_value`` is the smallest value an observation can take (-1 for a difference of pass rates). Without
    observations, or when none lies above the bound, the confidence is 0. A claim made only at confidence
    0.9 or more is wrong in at most 10 % of the cases where the mean is not above the bound.
    """
    padded = np.append(np.asarray(values, dtype=np.float64), min_value)
    if not np.isfinite(padded).all() or padded.min() < min_value - 1e-12:
        raise ValueError(f"values must be finite and at least {min_value}")
    offsets = np.round(padded - bound, _DIGITS)
    if not (offsets > 0).any():
        return 0.0
    return _positive_share(offsets[offsets != 0.0])


def confidence_of_harm(values: Sequence[float], bound: float, min_value: float) -> float:
    """Return the confidence that the mean of a harm is above ``bound``; arguments as `confidence_above`.

    A claim made only at 0.9 or more is wrong in about 10 % of the cases where the harm is just ``bound``,
    and rarely where there is none.
    """
    confidence = confidence_above(values, bound, min_value)
    # Student's t is undefined where no two values differ.
    return max(confidence, _student_above(values, bound)) if len(set(values)) > 1 else confidence


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value with at least the share ``q`` at or below it; ValueError when empty."""
    if not values:
        raise ValueError("a quantile of nothing")
    return sorted(values)[_rank(q * len(values))]


def quantile_ratio_confidence(
    candidate: Sequence[float], production: Sequence[float], q: float, ratio: float
) -> float:
    """Return the confidence that the candidate's ``q`` quantile is above ``ratio`` times production's.

    The share of bootstrap resamples of both samples in which it is, computed exactly: the probability that
    an observation is the quantile of its resample is binomial. 0 without observations.
    """
    if not candidate or not production:
        return 0.0
    slow, slow_weights = _bootstrapped_quantile(candidate, q)
    fast, fast_weights = _bootstrapped_quantile(production, q)
    return _clamp(float(slow_weights @ (slow[:, None] > ratio * fast[None, :]) @ fast_weights))


def _student_above(values: Sequence[float], bound: float) -> float:
    """Return Student's one-sided confidence; some values must differ."""
    from scipy.special import stdtr

    observed = np.asarray(values, dtype=np.float64)
    error = math.sqrt(math.fsum((observed - mean(values)) ** 2) / (len(observed) - 1) / len(observed))
    return _clamp(float(stdtr(len(observed) - 1, (mean(values) - bound) / error)))


def _positive_share(coefficients: NDArray[np.float64]) -> float:
    """Return P(sum of coefficient x independent Exp(1) > 0), by inverting the characteristic function.

    P = 1/2 + 1/pi * integral over t > 0 of sin(sum arctan(c t)) * prod (1 + c^2 t^2)^(-1/2) / t (Gil-Pelaez),
    by the trapezoidal rule in log t.
    """
    sizes, counts = np.unique(coefficients, return_counts=True)
    t = np.exp(_LOG_GRID)[:, None] * (sizes / math.sqrt(len(coefficients)))[None, :]
    phase = np.arctan(t) @ counts
    log_size = np.log1p(t**2) @ counts * -0.5
    integral = float(np.sum(np.sin(phase) * np.exp(log_size))) * (_LOG_GRID[1] - _LOG_GRID[0])
    return _clamp(0.5 + integral / math.pi)


def _bootstrapped_quantile(
    values: Sequence[float], q: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sorted values, and the probability of each to be the ``q`` quantile of a resample."""
    from scipy.special import bdtrc

    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    # P(at least rank + 1 of n draws are among the j smallest values), for j = 0..n.
    cumulative = bdtrc(_rank(q * n), n, np.arange(n + 1) / n)
    return ordered, np.diff(cumulative)


def _rank(number: float) -> int:
    """Return the index of the first sorted value with at least this number at or below it."""
    return max(0, math.ceil(round(number, _DIGITS)) - 1)


def _clamp(value: float) -> float:
    """Limit a probability to [0, 1], at the precision the arithmetic has on every machine."""
    return round(min(1.0, max(0.0, value)), 6)

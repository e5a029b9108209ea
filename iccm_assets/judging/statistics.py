"""Evidence for the gate: how sure the numbers make us, without randomness and without a normal curve.

The paired differences the gate judges are bounded (pass rates lie in [0, 1]), mostly zero, and few: the
t-test and the bootstrap are wrong exactly there (two items won out of 240 give a t-test 92 % confidence; a
coin gives them in one of four). ``confidence_above`` therefore uses Gaffke's bound: the share of random
convex weights, uniform over the observations *and the worst value an observation could have had*, under
which the mean exceeds the bound. For differences of one size it is the exact sign (McNemar) test, for 0/1
values the exact Clopper-Pearson bound; for other bounded values no distribution is known for which it
promises too much, and the tests simulate it.

What protects users may be readier to speak: ``confidence_of_harm`` is the larger of that and Student's t,
which sees a loss of four items in thirty where Gaffke's bound, allowing for gains nobody has seen, waits for
six. Its error rate is held by simulation on differences like the gate's, not for every distribution.

Every function is deterministic, and none depends on the order of its input, so that a stored verdict can be
reproduced (E5).

N. Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Mathematical Methods of Statistics 14 (2005); E. Learned-Miller and P. Thomas, "A new confidence
interval for the mean of a bounded random variable", arXiv:1905.06208.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The integrand below is smooth on a logarithmic axis: this grid is exact to about 1e-9 (tested).
_LOG_GRID = np.arange(-32.0, 32.0, 1 / 64)
_DIGITS = 9


def mean(values: Sequence[float]) -> float:
    """The mean, rounded to 9 decimals so that 0.3 - 0.2 + 0.1 - 0.2 is zero; ``ValueError`` when empty."""
    if not values:
        raise ValueError("the mean of nothing")
    return round(math.fsum(values) / len(values), _DIGITS) + 0.0


def confidence_above(values: Sequence[float], bound: float, lowest: float) -> float:
    """One-sided confidence in [0, 1] that the mean behind ``values`` is above ``bound``.

    ``lowest`` is the smallest value an observation can take (-1 for a difference of pass rates). Without
    observations, or when none lies above the bound, the confidence is 0. A claim made only at confidence
    0.9 or more is wrong in at most 10 % of the cases where the mean is not above the bound.
    """
    finite = np.asarray(values, dtype=np.float64)
    if not np.isfinite(finite).all() or (finite.size and finite.min() < lowest - 1e-12):
        raise ValueError(f"values must be finite and at least {lowest}")
    offsets = np.round(np.append(finite, lowest) - bound, _DIGITS)
    offsets = offsets[offsets != 0.0]
    if not (offsets > 0).any():
        return 0.0
    if not (offsets < 0).any():
        return 1.0
    return _positive_share(offsets)


def confidence_of_harm(values: Sequence[float], bound: float, lowest: float) -> float:
    """Confidence in [0, 1] that the mean of a harm is above ``bound``; arguments as ``confidence_above``.

    A claim made only at 0.9 or more is wrong in about 10 % of the cases where the harm is just ``bound``,
    and rarely where there is none.
    """
    return max(confidence_above(values, bound, lowest), _student_above(values, bound))


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest observed value with at least the share ``q`` at or below it; ``ValueError`` when empty."""
    if not values:
        raise ValueError("a quantile of nothing")
    return sorted(values)[_rank(len(values), q)]


def quantile_ratio_confidence(
    candidate: Sequence[float], production: Sequence[float], q: float, ratio: float
) -> float:
    """Confidence in [0, 1] that the candidate's ``q`` quantile is above ``ratio`` times production's.

    The share of bootstrap resamples of both samples in which it is, computed exactly: how often each
    observation becomes the quantile of its resample is a binomial probability. 0 without observations.
    """
    if not candidate or not production:
        return 0.0
    above, weights_above = _bootstrapped_quantile(candidate, q)
    below, weights_below = _bootstrapped_quantile(production, q)
    wins = above[:, None] > ratio * below[None, :]
    return _share(float(weights_above @ wins @ weights_below))


def _student_above(values: Sequence[float], bound: float) -> float:
    """Student's one-sided confidence; 0 where it has nothing to say (one value, or all values equal)."""
    from scipy.special import stdtr

    observed = np.asarray(values, dtype=np.float64)
    if len(observed) < 2 or np.ptp(observed) == 0:
        return 0.0
    error = math.sqrt(math.fsum((observed - mean(values)) ** 2) / (len(observed) - 1) / len(observed))
    return _share(float(stdtr(len(observed) - 1, (mean(values) - bound) / error)))


def _positive_share(coefficients: NDArray[np.float64]) -> float:
    """P(sum of coefficient x independent Exp(1) variables > 0), by inverting the characteristic function.

    P = 1/2 + 1/pi * integral over t > 0 of sin(sum arctan(c t)) * prod (1 + c^2 t^2)^(-1/2) / t (Gil-Pelaez),
    by the trapezoidal rule in log t.
    """
    sizes, counts = np.unique(coefficients, return_counts=True)
    scale = math.sqrt(float(np.sum(counts * sizes**2)))
    t = np.exp(_LOG_GRID)[:, None] * (sizes / scale)[None, :]
    phase = np.arctan(t) @ counts
    log_size = np.log1p(t**2) @ counts * -0.5
    integral = float(np.sum(np.sin(phase) * np.exp(log_size))) * (_LOG_GRID[1] - _LOG_GRID[0])
    return _share(0.5 + integral / math.pi)


def _bootstrapped_quantile(
    values: Sequence[float], q: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sorted values, and how probable each is to be the ``q`` quantile of a resample."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    needed = _rank(n, q) + 1
    cumulative = np.array([_binomial_tail(n, j / n, needed) for j in range(n + 1)])
    return ordered, np.diff(cumulative)


def _binomial_tail(n: int, p: float, at_least: int) -> float:
    """P(Binomial(n, p) >= at_least)."""
    if p <= 0.0 or p >= 1.0:
        return 1.0 if at_least <= 0 or p >= 1.0 else 0.0
    log_p, log_q, log_n = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    return math.fsum(
        math.exp(log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        for k in range(at_least, n + 1)
    )


def _rank(n: int, q: float) -> int:
    return min(n - 1, max(0, math.ceil(round(q * n, _DIGITS)) - 1))


def _share(value: float) -> float:
    """Into [0, 1], at the precision the arithmetic has on every machine."""
    return round(min(1.0, max(0.0, value)), 6)

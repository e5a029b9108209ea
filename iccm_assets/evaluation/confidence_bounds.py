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

Whether the items of a slice fell by more than those of an equal model is judged against the losses seen
elsewhere (`confidence_of_loss`): few items of equal models differ where a model is good, and then four lost
items are certain; many differ where it often fails.

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
_STEPS = 240


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


def confidence_of_loss(losses: Sequence[float], samples: Sequence[tuple[float, Sequence[float]]]) -> float:
    """Return the confidence in [0, 1] that a slice fell by more than one of an equal model falls by chance.

    ``losses`` has the loss of pass rate of each item, negative for a gain, in [-1, 1]. Each of ``samples`` is
    a weight, and losses that equal models show, in [0, 1]; to each belongs one loss of 1 that nobody has seen
    yet. An item of an equal model falls by one draw from them and rises by another: the confidence
    is the probability that all items together fall by less than observed, computed exactly for values
    rounded to 1/240 (coarser beyond 2,000 items). 0 without items or samples.
    """
    if not losses or not samples:
        return 0.0
    count = len(losses)
    steps = max(1, min(_STEPS, _STEPS * 2_000 // count))
    histograms = [_histogram([*sample, 1.0], steps) for _, sample in samples]
    share = np.average(histograms, axis=0, weights=[weight for weight, _ in samples])
    size = 2 * steps * count + 1
    length = 1 << (size - 1).bit_length()
    spectrum = np.fft.rfft(np.convolve(share, share[::-1]), length)
    # `total[k]` is the probability that all items together fall by k / steps - count.
    total = np.fft.irfft(spectrum**count, length)[:size]
    observed = math.floor(round(math.fsum(losses) * steps, _DIGITS)) + steps * count
    return _clamp(1.0 - float(total[max(0, observed) :].sum()))


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


def _histogram(values: Sequence[float], steps: int) -> NDArray[np.float64]:
    """Return the shares of 0, 1 / steps, … 1 among the values, rounded."""
    levels = np.rint(np.asarray(values, dtype=np.float64) * steps).astype(np.int64)
    return np.bincount(levels, minlength=steps + 1) / len(levels)


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

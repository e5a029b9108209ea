"""Evidence that may be checked after every session: bets on a mean.

A bettor who puts a share ``b`` of the stake on ``z`` multiplies it by ``1 + b z``. When the mean of ``z``,
given all earlier values, is not above zero, no strategy makes money on average, and by Ville's inequality
the stake ever reaches ``1 / α`` times its start with probability at most α, however often it is checked. The
stake is the evidence (an *e-value*) that the mean is above zero.

An `EProcesses` object holds one such stake for each of several tests. It bets every share of a fixed grid at
once (a mixture: nothing adapts to the data, and the order of the observations between two starts does not
matter) and keeps a reserve, a small part of which is staked every hour, so that good hours do not use up the
evidence against a later bad one. Bets of any sizes, each started at a time fixed in advance, are together
such a bet again.

I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

Numbers = NDArray[np.float64]
# Per test: the largest loss of one observation, and how many times smaller each bet is than the one before.
Scales = tuple[tuple[float, float], ...]

GRID_SIZE = 5
_MAX_SHARE = 0.95  # of the share at which a single observation could lose everything
_INITIAL_STAKE = 0.9  # of the start capital; the rest is the reserve
_MAX_EXPONENT = 700.0  # exp of a larger number overflows a float


@dataclass(frozen=True)
class EProcesses:
    """The tests' common reserve, and per test the logarithms of its ``GRID_SIZE`` stakes."""

    reserve: float
    log_stakes: tuple[tuple[float, ...], ...]

    def e_values(self) -> list[float]:
        """Return the evidence per test: the present value of one unit at the start; finite."""
        total = np.logaddexp.reduce(np.array(self.log_stakes), axis=1)
        if self.reserve > 0:
            total = np.logaddexp(total, math.log(self.reserve))
        return list(map(float, np.exp(np.minimum(total, _MAX_EXPONENT))))


def start(tests: int) -> EProcesses:
    """Start with one unit per test, most of it spread evenly over the bets."""
    return EProcesses(1.0 - _INITIAL_STAKE, ((math.log(_INITIAL_STAKE / GRID_SIZE),) * GRID_SIZE,) * tests)


def restart(processes: EProcesses, hour: int) -> EProcesses:
    """Stake a further part of the reserve at the beginning of hour ``hour`` (1, 2, …) of the rollout.

    The part is 1 / (k (k + 1)) of the original reserve in hour k: over all hours exactly the reserve.
    """
    part = min((1.0 - _INITIAL_STAKE) / (hour * (hour + 1)), processes.reserve)
    if part <= 0.0:
        return processes
    stakes = np.logaddexp(np.array(processes.log_stakes), math.log(part / GRID_SIZE))
    return EProcesses(processes.reserve - part, _to_tuples(stakes))


def update(
    processes: EProcesses,
    scales: Scales,
    tests: Sequence[int],
    values: Sequence[float],
    counts: Sequence[float],
) -> EProcesses:
    """Update the stakes after ``values[i]`` was observed ``counts[i]`` times for test ``tests[i]``.

    No value may be below minus the first of its test's ``scales``, which is positive.
    """
    if not values:
        return processes
    rows = np.array(tests)
    gains = np.log1p(np.array(values)[:, None] * _shares(scales)[rows]) * np.array(counts)[:, None]
    stakes = np.array(processes.log_stakes)
    np.add.at(stakes, rows, gains)
    return EProcesses(processes.reserve, _to_tuples(stakes))


@lru_cache(maxsize=64)
def _shares(scales: Scales) -> Numbers:
    """Per test the shares to bet, in falling order: the worst value loses at most 95 % of any."""
    worst, ratio = np.array(scales).T
    return _MAX_SHARE / worst[:, None] / ratio[:, None] ** np.arange(GRID_SIZE)  # type: ignore[no-any-return]


def _to_tuples(stakes: Numbers) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, stakes))  # of numpy's floats, which the dataclass converts when it validates them

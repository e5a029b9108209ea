"""Evidence that may be looked at after every session: bets on a mean (R5).

Whoever bets a share ``b`` of their stake on ``z`` multiplies it by ``1 + b z``. When the mean of ``z``, given
all that came before, is not above zero, no way of betting makes money on average, and by Ville's inequality
the stake ever reaches ``1 / α`` times its beginning with probability at most α: however often, and whenever,
one looks. The stake is the evidence (an *e-value*) that the mean is above zero.

A `Book` holds one such stake for each of several tests. It bets every share of a fixed grid at once (a
mixture: nothing adapts to the data, and between two openings the order of the observations does not
matter) and keeps a reserve, of which a little more is put down every hour, so that good hours do not use up
the evidence against a later bad one. Bets of any sizes, each begun at a time fixed in advance, are together
such a bet again.

I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
# Per test: the most one observation can lose, and how many times smaller each bet is than the one before.
Scales = tuple[tuple[float, float], ...]

GRID = 5
_BOLDEST = 0.95  # of the share at which a single observation could lose everything
_OPENING = 0.9  # of the stake put down at the opening; the rest is the reserve
_HIGHEST = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Book:
    """The tests' common reserve, and for each test the logarithms of what its bets have become."""

    reserve: float
    log_stakes: tuple[tuple[float, ...], ...]

    def e_values(self) -> list[float]:
        """Per test, the evidence: what one unit at the opening has become; finite."""
        staked = np.logaddexp.reduce(np.array(self.log_stakes), axis=1)
        total = np.logaddexp(staked, math.log(self.reserve)) if self.reserve > 0 else staked
        found: list[float] = np.exp(np.minimum(total, _HIGHEST)).tolist()
        return found


def opened(tests: int) -> Book:
    """For each test one unit, most of it spread evenly over the bets."""
    return Book(1.0 - _OPENING, ((math.log(_OPENING / GRID),) * GRID,) * tests)


def reopened(book: Book, hour: int) -> Book:
    """A further part of the reserve put down at the beginning of hour ``hour`` (1, 2, …) of the rollout.

    1 / (k (k + 1)) of the original reserve in hour k: over all hours exactly the reserve.
    """
    part = min((1.0 - _OPENING) / (hour * (hour + 1)), book.reserve)
    if part <= 0.0:
        return book
    stakes = np.logaddexp(np.array(book.log_stakes), math.log(part / GRID))
    return Book(book.reserve - part, _frozen(stakes))


def bet(
    book: Book, scales: Scales, tests: Sequence[int], values: Sequence[float], counts: Sequence[float]
) -> Book:
    """The book after ``values[i]`` was observed ``counts[i]`` times for test ``tests[i]``.

    No value may be below minus the first of its test's ``scales``, which is positive.
    """
    if not values:
        return book
    rows = np.array(tests)
    gains = np.log1p(np.array(values)[:, None] * _shares(scales)[rows]) * np.array(counts)[:, None]
    stakes = np.array(book.log_stakes)
    np.add.at(stakes, rows, gains)
    return Book(book.reserve, _frozen(stakes))


@lru_cache(maxsize=64)
def _shares(scales: Scales) -> Numbers:
    """Per test the shares to bet, from the boldest down: the worst value loses at most 95 % of any."""
    worst, ratio = np.array(scales).T
    return _BOLDEST / worst[:, None] / ratio[:, None] ** np.arange(GRID)  # type: ignore[no-any-return]


def _frozen(stakes: Numbers) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, stakes.tolist()))

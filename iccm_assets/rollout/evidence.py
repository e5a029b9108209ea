"""What a rollout has learned since it was opened: sums per arm, and the evidence of every test (R5, R11).

Comparisons with production are made inside *blocks*: the sessions are cut, in the order they were served,
into slices of a fixed number, and inside a slice each canary session meets its share of the production
sessions. Both arms of a block saw the same hour and the same mix of work, and every session is in one block
at most, so a change of traffic between Monday and Tuesday cannot pass for a difference between models.
A slice that lacks an arm compares nothing. A session of an earlier stage that is scored late counts for the
candidate's own limits, not for comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from iccm_assets.rollout.eprocess import GRID, Book, Scales, bet, opened, reopened
from iccm_assets.rollout.observation import Counts, Observation, Paired, Scored
from iccm_assets.rollout.policy import BAKE, Policy

# Sessions in a slice: about two canary sessions at 10 %, four at 50 %.
SLICES = {1: 20, 2: 8}

# Variances lie in [0, 1/4]; bets are made on four times them.
_TO_UNIT = 4.0
# Each test's family, whose share of alpha it has (policy.ALPHA_SHARES).
TESTS = {
    "drop_first": "drop",
    "drop_second": "drop",
    "stage_floor": "pass_rate",
    "health_floor": "pass_rate",
    "variance_ratio": "variance_ratio",
    "variance_above_floor": "variance_ratio",
    "variance": "variance",
    "latency": "latency",
    "errors": "errors",
}
_ROW = {name: row for row, name in enumerate(TESTS)}


@dataclass(frozen=True)
class Tally:
    """One arm's sums: scored sessions, their pass rates and (of ``varied`` of them) variances, requests."""

    sessions: int = 0
    pass_rates: float = 0.0
    varied: int = 0
    variances: float = 0.0
    requests: int = 0
    errors: int = 0

    @property
    def pass_rate(self) -> float | None:
        """The mean pass rate; None without sessions."""
        return self.pass_rates / self.sessions if self.sessions else None

    @property
    def variance(self) -> float | None:
        """The mean implementation variance; None when none was measured."""
        return self.variances / self.varied if self.varied else None

    @property
    def error_rate(self) -> float | None:
        """The share of failed requests; None without requests."""
        return self.errors / self.requests if self.requests else None

    def counting(self, scored: Sequence[Scored], counts: Counts) -> Tally:
        """These sums and what was seen since."""
        if not scored and not counts.requests:
            return self
        variances = [one.variance for one in scored if one.variance is not None]
        return Tally(
            self.sessions + len(scored),
            self.pass_rates + sum(one.pass_rate for one in scored),
            self.varied + len(variances),
            self.variances + sum(variances),
            self.requests + counts.requests,
            self.errors + counts.errors,
        )


@dataclass(frozen=True)
class Evidence:
    """All of it. ``canary`` and ``production`` are the stage's sums, ``*_total`` the rollout's.

    ``slice``: the sessions of the unfinished slice. ``timing``: requests and slow ones of either arm not yet
    compared. ``blocks`` and ``pairs``: comparisons made live and by replay. ``hour``: the last hour of the
    rollout for which a new bet was opened. ``slow_after``: ms per output token above which the canary arm's
    next requests count as slow; None until production was measured.
    """

    book: Book = field(default_factory=lambda: opened(len(TESTS)))
    canary: Tally = Tally()
    production: Tally = Tally()
    canary_total: Tally = Tally()
    production_total: Tally = Tally()
    slice: tuple[Scored, ...] = ()
    timing: tuple[int, int, int, int] = (0, 0, 0, 0)
    blocks: int = 0
    pairs: int = 0
    hour: int = 0
    slow_after: float | None = None

    @property
    def e_values(self) -> dict[str, float]:
        """The evidence against the candidate, by test."""
        return dict(zip(TESTS, self.book.e_values(), strict=True))

    @property
    def comparisons(self) -> int:
        """Scored sessions that say something about the candidate: live ones and replayed pairs."""
        return self.canary_total.sessions + self.pairs

    def at_new_stage(self) -> Evidence:
        """The stage's sums and the unfinished slice begin anew; the evidence goes on."""
        return replace(self, canary=Tally(), production=Tally(), slice=(), timing=(0, 0, 0, 0))


class _Bets:
    """What one observation has to say to each test, collected to be bet on at once."""

    def __init__(self) -> None:
        self.tests: list[int] = []
        self.values: list[float] = []
        self.counts: list[float] = []

    def on(self, test: str, value: float, count: float = 1.0) -> None:
        self.tests.append(_ROW[test])
        self.values.append(value)
        self.counts.append(count)


def absorb(evidence: Evidence, seen: Observation, policy: Policy, stage: int, hour: int) -> Evidence:
    """The evidence after a faultless observation; ``hour`` of the rollout opens a new bet (eprocess.py)."""
    canary = [one for one in seen.sessions if one.arm == "canary"]
    production = [one for one in seen.sessions if one.arm == "production"]
    blocks, rest = _cut((*evidence.slice, *seen.sessions), stage)
    bets = _Bets()
    _own_limits(bets, canary, seen.canary, policy)
    _comparisons(bets, blocks, seen.replay, policy)
    timing = _latency(bets, evidence.timing, seen)
    book = reopened(evidence.book, hour) if hour > evidence.hour else evidence.book
    mine = [one for one in canary if one.stage == stage]
    theirs = [one for one in production if one.stage == stage]
    return Evidence(
        book=bet(book, _scales(policy), bets.tests, bets.values, bets.counts),
        canary=evidence.canary.counting(mine, seen.canary),
        production=evidence.production.counting(theirs, seen.production),
        canary_total=evidence.canary_total.counting(canary, seen.canary),
        production_total=evidence.production_total.counting(production, seen.production),
        slice=rest,
        timing=timing,
        blocks=evidence.blocks + len(blocks),
        pairs=evidence.pairs + len(seen.replay),
        hour=max(hour, evidence.hour),
        slow_after=_slow_after(evidence, seen, policy),
    )


@lru_cache(maxsize=64)
def _scales(policy: Policy) -> Scales:
    """How each test bets: narrowly where the effects worth finding are of one size, else widely.

    Two tests of one family on the same quantity bet the same shares: the evidence against the laxer limit
    is then never more than that against the stricter one, and they can share their part of alpha.
    """
    drop = (1.0 + max(policy.allowed_drops), 1.5)
    floor = (1.0 - min(policy.min_pass_rate, policy.health_pass_rate), 1.8)
    scales = {
        "drop_first": drop,
        "drop_second": drop,
        "stage_floor": floor,
        "health_floor": floor,
        "variance_ratio": (max(policy.max_variance_ratio, 1.0), 1.8),
        "variance_above_floor": (max(_TO_UNIT * policy.variance_floor, 0.01), 3.0),
        "variance": (_TO_UNIT * policy.health_variance, 2.0),
        "latency": (1.0, 1.8),
        "errors": (policy.health_error_rate, 3.0),
    }
    return tuple(scales[name] for name in TESTS)


Block = tuple[list[Scored], list[Scored]]


def _cut(sessions: Sequence[Scored], stage: int) -> tuple[list[Block], tuple[Scored, ...]]:
    """Blocks of (canary, production) sessions out of every full slice, and the unfinished rest."""
    if stage == BAKE:
        return [], ()
    waiting = [one for one in sessions if one.stage == stage]
    size, blocks = SLICES[stage], []
    full = len(waiting) - len(waiting) % size
    for start in range(0, full, size):
        part = waiting[start : start + size]
        canary = [one for one in part if one.arm == "canary"]
        production = [one for one in part if one.arm == "production"]
        meetings = min(len(canary), len(production))
        blocks += [(canary[at::meetings], production[at::meetings]) for at in range(meetings)]
    return blocks, tuple(waiting[full:])


def _own_limits(bets: _Bets, canary: Sequence[Scored], counts: Counts, policy: Policy) -> None:
    """The candidate against fixed limits: two floors of the pass rate, the variance, the error rate."""
    for one in canary:
        bets.on("stage_floor", policy.min_pass_rate - one.pass_rate)
        bets.on("health_floor", policy.health_pass_rate - one.pass_rate)
        if one.variance is not None:
            bets.on("variance", _TO_UNIT * (one.variance - policy.health_variance))
            bets.on("variance_above_floor", _TO_UNIT * (one.variance - policy.variance_floor))
    if counts.requests:
        bets.on("errors", 1.0 - policy.health_error_rate, counts.errors)
        bets.on("errors", -policy.health_error_rate, counts.requests - counts.errors)


def _comparisons(bets: _Bets, blocks: Sequence[Block], replay: Sequence[Paired], policy: Policy) -> None:
    """The candidate against production: the pass rate live and replayed, the variance live."""
    losses = [_mean_pass_rate(theirs) - _mean_pass_rate(mine) for mine, theirs in blocks]
    losses += [pair.production - pair.canary for pair in replay]
    for loss in losses:
        bets.on("drop_first", loss - policy.allowed_drops[0])
        bets.on("drop_second", loss - policy.allowed_drops[1])
    for mine, theirs in blocks:
        variance, beside = _mean_variance(mine), _mean_variance(theirs)
        if variance is not None and beside is not None:
            bets.on("variance_ratio", _TO_UNIT * (variance - policy.max_variance_ratio * beside))


def _latency(bets: _Bets, waiting: tuple[int, int, int, int], seen: Observation) -> tuple[int, int, int, int]:
    """Slow requests of both arms side by side, once both have some; what is left over waits."""
    new = (seen.canary.timed, seen.canary.slow, seen.production.timed, seen.production.slow)
    timed, slow, their_timed, their_slow = (old + more for old, more in zip(waiting, new, strict=True))
    if not (timed and their_timed):
        return timed, slow, their_timed, their_slow
    bets.on("latency", slow / timed - their_slow / their_timed)
    return 0, 0, 0, 0


def _slow_after(evidence: Evidence, seen: Observation, policy: Policy) -> float | None:
    """Known before the requests it is used on: E3's ratio times production's p95 over the window."""
    window = seen.production_window
    if window.latency_p95 is None or window.timed < policy.health_requests:
        return evidence.slow_after
    return policy.max_latency_ratio * window.latency_p95


def _mean_pass_rate(scored: Sequence[Scored]) -> float:
    return sum(one.pass_rate for one in scored) / len(scored)


def _mean_variance(scored: Sequence[Scored]) -> float | None:
    known = [one.variance for one in scored if one.variance is not None]
    return sum(known) / len(known) if known else None


def to_json(evidence: Evidence) -> dict[str, Any]:
    """Plain JSON; `from_json` is the inverse."""
    tallies = ("canary", "production", "canary_total", "production_total")
    return {
        "reserve": evidence.book.reserve,
        "log_stakes": {name: list(one) for name, one in zip(TESTS, evidence.book.log_stakes, strict=True)},
        **{name: list(vars(getattr(evidence, name)).values()) for name in tallies},
        "slice": [list(one) for one in evidence.slice],
        "timing": list(evidence.timing),
        "blocks": evidence.blocks,
        "pairs": evidence.pairs,
        "hour": evidence.hour,
        "slow_after": evidence.slow_after,
    }


def from_json(document: Mapping[str, Any]) -> Evidence:
    """The stored evidence; ``KeyError``, ``TypeError`` or ``ValueError`` when it is damaged."""
    stakes = tuple(tuple(map(float, document["log_stakes"][name])) for name in TESTS)
    if any(len(one) != GRID for one in stakes):
        raise ValueError(f"not {GRID} bets for every test")
    return Evidence(
        book=Book(float(document["reserve"]), stakes),
        canary=Tally(*document["canary"]),
        production=Tally(*document["production"]),
        canary_total=Tally(*document["canary_total"]),
        production_total=Tally(*document["production_total"]),
        slice=tuple(Scored(*one) for one in document["slice"]),
        timing=tuple(document["timing"]),
        blocks=document["blocks"],
        pairs=document["pairs"],
        hour=document["hour"],
        slow_after=document["slow_after"],
    )

"""Rollouts on a virtual clock: the same `decide`, with sessions drawn at random (R10).

One session is one request with one scored answer. Sessions arrive as a Poisson stream and are scored by the
next tick. Ticks come every five minutes, or as seldom as four sessions, but every quarter of an hour (plain
means are looked at every five minutes, R4); one at which nothing arrived and nothing falls due is skipped.
So the simulation's lease spans a day.

A score is the share of ten planned tests that passed, all of them easier or harder together in one session
(beta-binomial, correlation 0.4): at a mean of 0.80, 47 % of the answers are perfect, 2 % pass nothing
and the standard deviation is 0.27. Sessions are independent of each other. The orchestra's variance is what
such a score leaves room for, 0.2 x score x (1 - score) on average. 0.5 % of the requests of either arm fail,
and both arms are equally fast.

Below 200 sessions a day, 15 % of 28 days' sessions are held out and replayed through both versions during
the first six hours (R11): both answers to one session share its difficulty and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import Counts, Observation, Paired, Scored, Window
from iccm_assets.rollout.outcome import RollBack
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State, opening

TICK = 300.0
OPENED = datetime(2026, 1, 1, tzinfo=UTC)
_DAY = 86400.0
_TESTS = 10
_CORRELATION = 0.4
_VARIANCE = 0.2
_ERROR_RATE = 0.005
_SLOW = 0.05
_HELD_OUT_DAYS = 0.15 * 28
_REPLAY_SECONDS = 6 * 3600.0

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """The truth behind a simulated rollout: mean pass rates of both arms, and the traffic."""

    production: float
    canary: float
    sessions_per_day: float
    replay_below: float = 200.0


@dataclass(frozen=True)
class Ending:
    """How one rollout ended: ``promoted``, ``rolled_back`` or ``undecided``, when, why, after how much."""

    outcome: str
    reason: str
    hours: float
    canary_sessions: int
    pairs: int


@dataclass(frozen=True)
class Simulation:
    """Many rollouts of one world."""

    world: World
    evidence: str
    seed: int
    endings: tuple[Ending, ...] = field(repr=False)

    def of(self, outcome: str) -> list[Ending]:
        """The rollouts that ended so."""
        return [one for one in self.endings if one.outcome == outcome]

    def to_json(self) -> dict[str, Any]:
        """Shares of the outcomes, with times in hours and scored canary-arm sessions (R10)."""
        shares = {name: len(self.of(name)) / len(self.endings) for name in OUTCOMES}
        back = self.of("rolled_back")
        return {
            **{name: round(share, 6) for name, share in shares.items()},
            "hours": {name: spread([one.hours for one in self.of(name)]) for name in OUTCOMES},
            "canary_sessions_until_rollback": spread([one.canary_sessions for one in back]),
            "replayed_pairs_until_rollback": spread([one.pairs for one in back]),
            "reasons": dict(Counter(one.reason for one in back).most_common()),
            "production": self.world.production,
            "canary": self.world.canary,
            "sessions_per_day": self.world.sessions_per_day,
            "runs": len(self.endings),
            "seed": self.seed,
            "evidence": self.evidence,
        }


OUTCOMES = ("promoted", "rolled_back", "undecided")
_OUTCOMES = {"completed": "promoted", "rolled_back": "rolled_back", "aborted": "undecided"}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and 90th percentile; None of nothing."""
    if not values:
        return None
    median, high = np.quantile(values, (0.5, 0.9))
    return {"median": round(float(median), 2), "p90": round(float(high), 2)}


def simulate(
    world: World, policy: Policy, runs: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> Simulation:
    """``runs`` rollouts, each with its own stream of random numbers; the same arguments, the same endings."""
    # Nobody dies here: the lease must only reach over the ticks that are skipped.
    patient = replace(policy, lease_seconds=_DAY)
    endings = []
    for run in range(runs):
        endings.append(_Rollout(world, patient, np.random.default_rng((seed, run))).ending())
        progress(1)
    return Simulation(world, policy.evidence, seed, tuple(endings))


class _Rollout:
    """One rollout: its virtual clock, the sessions to come, the window, and the state."""

    def __init__(self, world: World, policy: Policy, rng: np.random.Generator) -> None:
        self.world, self.policy, self.rng = world, policy, rng
        self.state: State = opening(1, "candidate", "production", policy, OPENED)
        self.clock = 0.0
        self.sessions = _Sessions(world, rng)
        self.replay = _pairs(world, rng)
        pause = TICK if policy.evidence == "point" else min(_DAY / world.sessions_per_day * 4, 3 * TICK)
        self.step = math.ceil(pause / TICK) * TICK
        self.window: deque[tuple[float, Scored, bool]] = deque()

    def ending(self) -> Ending:
        """Tick until the rollout is closed."""
        while True:
            decision = decide(self.state, self._observe(), OPENED + timedelta(seconds=self.clock))
            self.state = decision.state
            if not self.state.live:
                break
            self.clock = self._next_tick()
        reason = next((one.reason for one in decision.actions if isinstance(one, RollBack)), "")
        total = self.state.evidence.canary_total.sessions
        outcome = "undecided" if reason == "undecided" else _OUTCOMES[self.state.state]
        return Ending(outcome, reason, self.clock / 3600, total, self.state.evidence.pairs)

    def _next_tick(self) -> float:
        """The first tick at which there is something to decide."""
        state, policy = self.state, self.policy
        due = [self.sessions.next_at, self.clock + _DAY]
        due.append(self.clock + policy.max_hold_seconds - state.stage_seconds)
        left = policy.stage_seconds[state.stage - 1] - state.healthy_seconds
        if left > 0:
            due.append(self.clock + left)
        if self.replay:
            due.append(self.clock + TICK)
        if policy.evidence == "point" and len(self.window) >= policy.health_sessions:
            due.append(self.clock + TICK)
        return max(math.ceil(min(due) / TICK) * TICK, self.clock + self.step)

    def _observe(self) -> Observation:
        stage, weight = self.state.stage, self.state.weight
        scored, failed = self.sessions.until(self.clock, stage, weight)
        counts = {arm: self._counts(arm, scored, failed) for arm in ("canary", "production")}
        windows = self._windows(scored, failed) if self.policy.evidence == "point" else (Window(), Window())
        paired = len(self.replay) * TICK / max(_REPLAY_SECONDS - self.clock, TICK)
        pairs = [self.replay.pop() for _ in range(min(math.ceil(paired), len(self.replay)))]
        return Observation(
            since=self.state.cursor,
            until=str(self.clock),
            fresh_at=OPENED + timedelta(seconds=self.clock),
            replicas=1,
            ready=1,
            sessions=tuple(scored),
            replay=tuple(pairs),
            canary=counts["canary"],
            production=counts["production"],
            canary_window=windows[0],
            production_window=windows[1],
        )

    def _counts(self, arm: str, scored: Sequence[Scored], failed: Sequence[bool]) -> Counts:
        mine = [bad for one, bad in zip(scored, failed, strict=True) if one.arm == arm]
        if not mine:
            return Counts()
        return Counts(len(mine), sum(mine), len(mine), int(self.rng.binomial(len(mine), _SLOW)))

    def _windows(self, scored: Sequence[Scored], failed: Sequence[bool]) -> tuple[Window, Window]:
        self.window.extend((self.clock, one, bad) for one, bad in zip(scored, failed, strict=True))
        while self.window and self.window[0][0] <= self.clock - self.policy.health_window_seconds:
            self.window.popleft()
        return self._window("canary"), self._window("production")

    def _window(self, arm: str) -> Window:
        mine = [(one, bad) for _, one, bad in self.window if one.arm == arm]
        if not mine:
            return Window()
        n = len(mine)
        rate = sum(one.pass_rate for one, _ in mine) / n
        variance = sum(one.variance or 0.0 for one, _ in mine) / n
        return Window(n, rate, variance, n, sum(bad for _, bad in mine), n, 1.0)


class _Sessions:
    """The stream of sessions, drawn a day at a time."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng, self.day = world, rng, 0
        self._draw()

    @property
    def next_at(self) -> float:
        """When the next session arrives, in seconds; the end of the day drawn when none is left in it."""
        return self.times[self.at] if self.at < len(self.times) else self.day * _DAY

    def until(self, clock: float, stage: int, weight: float) -> tuple[list[Scored], list[bool]]:
        """The sessions up to ``clock``, each in an arm by ``weight``, and which of their requests failed."""
        scored: list[Scored] = []
        failed: list[bool] = []
        while True:
            while self.at < len(self.times) and self.times[self.at] <= clock:
                canary = self.draws[self.at] < weight
                rate, variance = (self.canary if canary else self.production)[self.at]
                scored.append(Scored("canary" if canary else "production", stage, rate, variance))
                failed.append(self.failures[self.at])
                self.at += 1
            if self.at < len(self.times) or clock < self.day * _DAY:
                return scored, failed
            self._draw()

    def _draw(self) -> None:
        n = int(self.rng.poisson(self.world.sessions_per_day))
        self.times = (self.day * _DAY + np.sort(self.rng.random(n)) * _DAY).tolist()
        self.draws = self.rng.random(n).tolist()
        self.failures = (self.rng.random(n) < _ERROR_RATE).tolist()
        self.production = self._scores(self.world.production, n)
        self.canary = self._scores(self.world.canary, n)
        self.at, self.day = 0, self.day + 1

    def _scores(self, mean: float, n: int) -> list[tuple[float, float]]:
        rates = _passed(self.rng, _easiness(self.rng.random(n), mean, self.rng))
        variances = np.minimum(2 * _VARIANCE * rates * (1 - rates) * self.rng.random(n), 0.25)
        return list(zip(rates.tolist(), variances.tolist(), strict=True))


def _easiness(quantile: Numbers, mean: float, rng: np.random.Generator | None = None) -> Numbers:
    """Each session's probability to pass a test, Beta distributed with this mean.

    With a generator drawn by it, else the Beta distribution's quantiles: shared ones pair two versions.
    """
    strength = (1 - _CORRELATION) / _CORRELATION
    if mean in (0.0, 1.0):
        return np.full_like(quantile, mean)
    a, b = mean * strength, (1 - mean) * strength
    if rng is not None:
        return rng.beta(a, b, size=quantile.shape)
    from scipy.special import betaincinv

    return np.asarray(betaincinv(a, b, quantile), dtype=np.float64)


def _passed(rng: np.random.Generator, easiness: Numbers) -> Numbers:
    """The share of the planned tests that passed."""
    return rng.binomial(_TESTS, easiness) / _TESTS


def _pairs(world: World, rng: np.random.Generator) -> list[Paired]:
    """The holdout sessions to replay; none where the live traffic is enough."""
    if world.sessions_per_day >= world.replay_below:
        return []
    shared = rng.random(int(world.sessions_per_day * _HELD_OUT_DAYS))
    mine = _passed(rng, _easiness(shared, world.canary))
    theirs = _passed(rng, _easiness(shared, world.production))
    return [Paired(*one) for one in zip(mine.tolist(), theirs.tolist(), strict=True)]

"""Rollouts on a virtual clock: the same `decide`, with sessions drawn at random (R10).

One session is one request with one scored response. Sessions arrive as a Poisson stream and are scored by the
next tick. Ticks come every four sessions, at intervals of 5 to 15 minutes (every 5 minutes for plain means);
one at which nothing arrived and nothing is due is skipped. The simulation's lease therefore lasts a day.

A score is the share of ten planned tests that passed, all of them easier or harder together in one session
(beta-binomial, correlation 0.4): at a mean of 0.80, 47 % of the responses are perfect, 2 % pass nothing
and the standard deviation is 0.27. Sessions are independent of each other. The orchestra's variance averages
0.2 x score x (1 - score). 0.5 % of the requests of either arm fail, and both arms are equally fast.

Below 200 sessions a day, 15 % of 28 days' sessions are held out and replayed through both versions during
the first six hours: both responses to one session share its difficulty and nothing else.
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

from iccm_assets.rollout.actions import RollBack
from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import (
    ARMS,
    Arm,
    ArmTotals,
    HealthWindow,
    Observation,
    ReplayPair,
    RequestCounts,
    SessionScore,
)
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State

TICK = 300.0
OPENED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_DAY = 86400.0
_TESTS = 10
_CORRELATION = 0.4
_VARIANCE = 0.2
_ERROR_RATE = 0.005
_SLOW = 0.05
_HOLDOUT_DAYS = 0.15 * 28
_REPLAY_SECONDS = 6 * 3600.0

Numbers = NDArray[np.float64]
# A scored session, and whether its request failed.
_Outcome = tuple[SessionScore, bool]


@dataclass(frozen=True)
class TrueEffect:
    """The truth behind a simulated rollout: mean pass rates of both arms, and the traffic."""

    production: float
    canary: float
    sessions_per_day: float
    replay_threshold_sessions: float = 200.0


@dataclass(frozen=True)
class SimulatedOutcome:
    """The end of a rollout: ``promoted``, ``rolled_back`` or ``undecided``, its reason, time and samples."""

    outcome: str
    reason: str
    hours: float
    canary_sessions: int
    pairs: int


@dataclass(frozen=True)
class Simulation:
    """Many rollouts with the same true effect."""

    effect: TrueEffect
    evidence: str
    seed: int
    outcomes: tuple[SimulatedOutcome, ...] = field(repr=False)

    def with_outcome(self, outcome: str) -> list[SimulatedOutcome]:
        """Return the rollouts with this outcome."""
        return [rollout for rollout in self.outcomes if rollout.outcome == outcome]

    def to_json(self) -> dict[str, Any]:
        """Return the shares of the outcomes, with times in hours and scored canary-arm sessions."""
        rollbacks, total = self.with_outcome("rolled_back"), len(self.outcomes)
        return {
            **{outcome: round(len(self.with_outcome(outcome)) / total, 6) for outcome in OUTCOMES},
            "hours": {
                name: percentiles([rollout.hours for rollout in self.with_outcome(name)]) for name in OUTCOMES
            },
            "canary_sessions_until_rollback": percentiles([rollout.canary_sessions for rollout in rollbacks]),
            "replayed_pairs_until_rollback": percentiles([rollout.pairs for rollout in rollbacks]),
            "reasons": dict(Counter(rollout.reason for rollout in rollbacks).most_common()),
            "production": self.effect.production,
            "canary": self.effect.canary,
            "sessions_per_day": self.effect.sessions_per_day,
            "runs": total,
            "seed": self.seed,
            "evidence": self.evidence,
        }


OUTCOMES = ("promoted", "rolled_back", "undecided")
_OUTCOMES = {"completed": "promoted", "rolled_back": "rolled_back", "aborted": "undecided"}


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return the median and the 90th percentile; None without values."""
    if not values:
        return None
    median, high = np.quantile(values, (0.5, 0.9))
    return {"median": round(float(median), 2), "p90": round(float(high), 2)}


def simulate(
    effect: TrueEffect,
    policy: Policy,
    runs: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Simulation:
    """Simulate ``runs`` rollouts, each with its own random stream; equal arguments give equal results."""
    # The simulated controller never fails: the lease only has to cover the ticks that are skipped.
    policy = replace(policy, lease_seconds=_DAY)
    outcomes = []
    for run in range(runs):
        outcomes.append(_Rollout(effect, policy, np.random.default_rng((seed, run))).run())
        progress(1)
    return Simulation(effect, policy.evidence, seed, tuple(outcomes))


class _Rollout:
    """One rollout: its virtual clock, the sessions to come, the window, and the state."""

    def __init__(self, effect: TrueEffect, policy: Policy, rng: np.random.Generator) -> None:
        self.policy, self.rng = policy, rng
        self.state = State(1, "candidate", "production", policy, OPENED_AT, OPENED_AT)
        self.clock = 0.0
        self.sessions = _Sessions(effect, rng)
        self.replay = _pairs(effect, rng)
        pause = TICK if policy.evidence == "point" else min(_DAY / effect.sessions_per_day * 4, 3 * TICK)
        self.step = math.ceil(pause / TICK) * TICK
        self.window: deque[tuple[float, SessionScore, bool]] = deque()

    def run(self) -> SimulatedOutcome:
        """Tick until the rollout is closed."""
        while True:
            decision = decide(self.state, self._observe(), OPENED_AT + timedelta(seconds=self.clock))
            self.state = decision.state
            if not self.state.is_live:
                break
            self.clock = self._next_tick()
        reason = next((action.reason for action in decision.actions if isinstance(action, RollBack)), "")
        outcome = "undecided" if reason == "undecided" else _OUTCOMES[self.state.state]
        evidence = self.state.evidence
        return SimulatedOutcome(
            outcome, reason, self.clock / 3600, evidence.canary_total.sessions, evidence.pairs
        )

    def _next_tick(self) -> float:
        """Return the first tick at which there is something to decide."""
        state, policy = self.state, self.policy
        due = [self.sessions.next_at, self.clock + _DAY]
        due.append(self.clock + policy.max_hold_seconds - state.stage_seconds)
        remaining = state.min_seconds - state.healthy_seconds
        if remaining > 0:
            due.append(self.clock + remaining)
        if self.replay or (policy.evidence == "point" and len(self.window) >= policy.health_sessions):
            due.append(self.clock + TICK)
        return max(math.ceil(min(due) / TICK) * TICK, self.clock + self.step)

    def _observe(self) -> Observation:
        outcomes = self.sessions.until(self.clock, self.state.stage, self.state.weight)
        canary, production = (self._counts(arm, outcomes) for arm in ARMS)
        if self.policy.evidence == "point":
            self.window.extend((self.clock, *outcome) for outcome in outcomes)
            while self.window and self.window[0][0] <= self.clock - self.policy.health_window_seconds:
                self.window.popleft()
        paired = len(self.replay) * TICK / max(_REPLAY_SECONDS - self.clock, TICK)
        pairs = [self.replay.pop() for _ in range(min(math.ceil(paired), len(self.replay)))]
        return Observation(
            since=self.state.watermark,
            until=str(self.clock),
            fresh_at=OPENED_AT + timedelta(seconds=self.clock),
            replicas=1,
            ready=1,
            sessions=tuple(session for session, _ in outcomes),
            replay=tuple(pairs),
            canary=canary,
            production=production,
            canary_window=self._window("canary"),
            production_window=self._window("production"),
        )

    def _counts(self, arm: Arm, outcomes: list[_Outcome]) -> RequestCounts:
        failures = [failed for session, failed in outcomes if session.arm == arm]
        n = len(failures)
        return RequestCounts(n, sum(failures), n, int(self.rng.binomial(n, _SLOW))) if n else RequestCounts()

    def _window(self, arm: Arm) -> HealthWindow:
        outcomes = [(session, failed) for _, session, failed in self.window if session.arm == arm]
        counts = RequestCounts(len(outcomes), sum(failed for _, failed in outcomes))
        totals = ArmTotals().add([session for session, _ in outcomes], counts)
        return HealthWindow(**vars(totals), timed=len(outcomes), latency_p95=1.0 if outcomes else None)


class _Sessions:
    """The stream of sessions, drawn a day at a time."""

    def __init__(self, effect: TrueEffect, rng: np.random.Generator) -> None:
        self.effect, self.rng, self.day = effect, rng, 0
        self._draw()

    @property
    def next_at(self) -> float:
        """The arrival of the next session in seconds; the end of the drawn day when none remains in it."""
        return self.waiting[0][0] if self.waiting else self.day * _DAY

    def until(self, clock: float, stage: int, weight: float) -> list[_Outcome]:
        """Return the sessions up to ``clock``, assigned by ``weight``, and whether their request failed."""
        outcomes: list[_Outcome] = []
        while True:
            while self.waiting and self.waiting[0][0] <= clock:
                _, draw, failed, canary, production = self.waiting.popleft()
                arm = ARMS[draw >= weight]
                score = canary if arm == "canary" else production
                outcomes.append((SessionScore(arm, stage, *score), failed))
            if self.waiting or clock < self.day * _DAY:
                return outcomes
            self._draw()

    def _draw(self) -> None:
        n = int(self.rng.poisson(self.effect.sessions_per_day))
        times = self.day * _DAY + np.sort(self.rng.random(n)) * _DAY
        draws, failed = self.rng.random(n), self.rng.random(n) < _ERROR_RATE
        production, canary = self._scores(self.effect.production, n), self._scores(self.effect.canary, n)
        columns = (times.tolist(), draws.tolist(), failed.tolist(), canary, production)
        self.waiting = deque(zip(*columns, strict=True))
        self.day += 1

    def _scores(self, mean: float, n: int) -> list[tuple[float, float]]:
        rates = _passed(self.rng, _easiness(self.rng.random(n), mean, self.rng))
        variances = np.minimum(2 * _VARIANCE * rates * (1 - rates) * self.rng.random(n), 0.25)
        return list(zip(rates.tolist(), variances.tolist(), strict=True))


def _easiness(quantile: Numbers, mean: float, rng: np.random.Generator | None = None) -> Numbers:
    """Return each session's probability to pass a test, Beta distributed with this mean.

    Drawn by the generator if there is one, else by quantile: shared quantiles pair two versions.
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
    """Return the share of the planned tests that passed."""
    return rng.binomial(_TESTS, easiness) / _TESTS


def _pairs(effect: TrueEffect, rng: np.random.Generator) -> list[ReplayPair]:
    """Return the holdout sessions to replay; none where the live traffic is enough."""
    if effect.sessions_per_day >= effect.replay_threshold_sessions:
        return []
    shared = rng.random(int(effect.sessions_per_day * _HOLDOUT_DAYS))
    canary = _passed(rng, _easiness(shared, effect.canary))
    production = _passed(rng, _easiness(shared, effect.production))
    return list(map(ReplayPair, canary.tolist(), production.tolist()))

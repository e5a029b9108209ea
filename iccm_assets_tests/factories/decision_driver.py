"""Rollouts for tests: a short policy, small observations, and a clock that tests set."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from iccm_assets.rollout.actions import Decision
from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import HealthWindow, Observation, RequestCounts, SessionScore
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State
from iccm_assets.settings import EvaluationSettings, RolloutSettings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PRODUCTION = Policy.from_settings(RolloutSettings(), EvaluationSettings())
# Stages of minutes, a handful of samples, two hours of patience; lease and limits as in production.
SHORT = replace(
    PRODUCTION,
    stage_seconds=(600.0, 900.0, 1200.0),
    stage_sessions=(5, 8, 3),
    health_sessions=3,
    max_hold_seconds=7200.0,
)


def scored(
    arm: str, rate: float, n: int, stage: int, variance: float | None = 0.01
) -> tuple[SessionScore, ...]:
    return (SessionScore(arm, stage, rate, variance),) * n


def make_observation(
    state: State,
    now: datetime,
    *,
    canary: float = 0.8,
    production: float = 0.8,
    n: int = 2,
    requests: int = 4,
    errors: int = 0,
    slow: int = 0,
    **changes: object,
) -> Observation:
    """A fresh, valid observation for this state: ``n`` scored sessions of either arm, interleaved."""
    pairs = zip(
        scored("canary", canary, n, state.stage),
        scored("production", production, n if state.stage < 3 else 0, state.stage) or [None] * n,
        strict=True,
    )
    window = HealthWindow(n, n * canary, n, n * 0.01, requests, errors, requests, 10.0)
    production_window = HealthWindow(n, n * production, n, n * 0.01, requests, 0, requests, 10.0)
    look = Observation(
        since=state.watermark,
        until=str(state.revision + 1),
        fresh_at=now,
        replicas=2,
        ready=2,
        sessions=tuple(session for pair in pairs for session in pair if session is not None),
        canary=RequestCounts(requests, errors, requests, slow),
        production=RequestCounts(requests, 0, requests, 0) if state.stage < 3 else RequestCounts(),
        canary_window=window if n else HealthWindow(),
        production_window=production_window if n else HealthWindow(),
    )
    return replace(look, **changes)


class Drive:
    """A rollout and its clock; `tick` moves the clock and decides, by default on a good observation."""

    def __init__(self, policy: Policy = SHORT) -> None:
        self.state = State(7, "candidate", "former", policy, NOW, NOW)
        self.now = NOW
        self.decisions: list[Decision] = []

    def tick(
        self, seconds: float = 100.0, observation: Observation | str | None = "good", **look: object
    ) -> Decision:
        self.now += timedelta(seconds=seconds)
        current = make_observation(self.state, self.now, **look) if observation == "good" else observation
        return self.take(decide(self.state, current, self.now))

    def take(self, decision: Decision) -> Decision:
        self.decisions.append(decision)
        self.state = decision.state
        return decision

    def until(self, stage: int, ticks: int = 60, **look: object) -> Drive:
        """Tick with good observations until a stage has begun."""
        for _ in range(ticks):
            if self.state.stage == stage and self.state.weight > 0:
                return self
            self.tick(**look)
        raise AssertionError(f"stage {stage} was not reached: {self.state.reason}")

    @property
    def events(self) -> list[str]:
        return [event.event_type for decision in self.decisions for event in decision.events]

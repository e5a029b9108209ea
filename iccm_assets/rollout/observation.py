"""The observations of the controller since its last decision, and their validation (R6, R11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

Arm = Literal["canary", "production"]
ARMS: tuple[Arm, Arm] = ("canary", "production")

# A clock this far ahead of the database's is a wrong clock, not a race.
_CLOCK_TOLERANCE = timedelta(seconds=60)
MAX_VARIANCE = 0.25


class SessionScore(NamedTuple):
    """One newly scored session: its arm, the stage it was served in, and its score.

    ``pass_rate`` in [0, 1]; ``variance`` in [0, 0.25], None when the orchestra gave none. A session that
    used both arms is not among them; a response that cannot be scored for the candidate's fault scores 0.
    """

    arm: Arm
    stage: int
    pass_rate: float
    variance: float | None = None


class ReplayPair(NamedTuple):
    """One production-holdout session replayed through both versions: their pass rates."""

    canary: float
    production: float


@dataclass(frozen=True)
class RequestCounts:
    """Requests assigned to one arm since the last decision.

    ``errors`` of ``requests`` failed, timed out or fell back. ``slow`` of the ``timed`` ones took longer per
    output token than ``Evidence.slow_threshold_ms`` ms (canary arm) or than that divided by the gate's
    latency ratio (production).
    """

    requests: int = 0
    errors: int = 0
    timed: int = 0
    slow: int = 0


@dataclass(frozen=True)
class ArmTotals:
    """One arm's sums: scored sessions, their pass rates and (of ``variance_count`` of them) variances."""

    sessions: int = 0
    pass_rate_sum: float = 0.0
    variance_count: int = 0
    variance_sum: float = 0.0
    requests: int = 0
    errors: int = 0

    @property
    def pass_rate(self) -> float | None:
        """The mean pass rate; None without sessions."""
        # A sum of floats may exceed the number of its addends, none of which is above 1.
        return min(self.pass_rate_sum / self.sessions, 1.0) if self.sessions else None

    @property
    def variance(self) -> float | None:
        """The mean implementation variance; None when none was measured."""
        return self.variance_sum / self.variance_count if self.variance_count else None

    @property
    def error_rate(self) -> float | None:
        """The share of failed requests; None without requests."""
        return self.errors / self.requests if self.requests else None

    def add(self, scored: Sequence[SessionScore], counts: RequestCounts) -> ArmTotals:
        """Add newly scored sessions and newly counted requests."""
        variances = [session.variance for session in scored if session.variance is not None]
        return ArmTotals(
            self.sessions + len(scored),
            self.pass_rate_sum + sum(session.pass_rate for session in scored),
            self.variance_count + len(variances),
            self.variance_sum + sum(variances),
            self.requests + counts.requests,
            self.errors + counts.errors,
        )


@dataclass(frozen=True)
class HealthWindow(ArmTotals):
    """One arm's sums over the health window, not since the opening.

    ``latency_p95``: milliseconds per output token of the ``timed`` requests.
    """

    timed: int = 0
    latency_p95: float | None = None


@dataclass(frozen=True)
class Observation:
    """One reading of the database, for the state whose ``watermark`` is ``since``.

    ``sessions`` are in the order in which they were served; each is observed once in the life of a rollout,
    which ``since``/``until`` (opaque to the decision) ensure. ``fresh_at`` is the time up to which everything
    that can be scored has been scored; None when that is unknown. ``ready`` of the live ``replicas`` have the
    candidate loaded, verified and warm. ``faults`` are those that the observer itself reports.
    """

    since: str
    until: str
    fresh_at: datetime | None
    replicas: int
    ready: int
    sessions: tuple[SessionScore, ...] = ()
    replay: tuple[ReplayPair, ...] = ()
    canary: RequestCounts = RequestCounts()
    production: RequestCounts = RequestCounts()
    canary_window: HealthWindow = HealthWindow()
    production_window: HealthWindow = HealthWindow()
    faults: tuple[str, ...] = ()


def validation_errors(observation: Observation, watermark: str, now: datetime) -> tuple[str, ...]:
    """Return what makes the observation unusable as a whole; empty when it can be counted."""
    errors = list(observation.faults)
    if observation.since != watermark:
        errors.append(f"it starts at {observation.since!r}, the evidence ends at {watermark!r}")
    errors += _time_errors(observation.fresh_at, now)
    if not _are_counts(observation.ready, observation.replicas) or observation.ready > observation.replicas:
        errors.append(f"{observation.ready} of {observation.replicas} replicas are ready")
    invalid = sum(not _is_score(session) for session in observation.sessions)
    invalid += sum(not all(map(_is_share, pair)) for pair in observation.replay)
    if invalid:
        errors.append(f"{invalid} scores are not pass rates in [0, 1] with a variance in [0, 0.25]")
    for arm in ARMS:
        counts, window = getattr(observation, arm), getattr(observation, f"{arm}_window")
        if not _is_possible(counts):
            errors.append(f"{arm}: impossible counts: {counts}")
        if not _is_possible_window(window):
            errors.append(f"{arm}: an impossible window: {window}")
    return tuple(errors)


def _time_errors(fresh_at: datetime | None, now: datetime) -> list[str]:
    if fresh_at is not None and fresh_at.tzinfo is None:
        return ["the time of its scores has no time zone"]
    if fresh_at is not None and fresh_at > now + _CLOCK_TOLERANCE:
        return [f"its scores are from {fresh_at:%Y-%m-%d %H:%M:%S}, after now"]
    return []


def _is_possible(counts: RequestCounts) -> bool:
    return _are_counts(counts.requests, counts.errors, counts.timed, counts.slow) and (
        counts.errors <= counts.requests and counts.slow <= counts.timed <= counts.requests
    )


def _is_possible_window(window: HealthWindow) -> bool:
    latency = window.latency_p95
    return (
        _are_counts(window.sessions, window.requests, window.errors, window.timed)
        and window.errors <= window.requests
        and all(mean is None or _is_share(mean) for mean in (window.pass_rate, window.variance))
        and (latency is None or (_is_number(latency) and latency >= 0))
    )


def _is_score(session: SessionScore) -> bool:
    variance = session.variance
    return (
        session.arm in ARMS
        and _is_share(session.pass_rate)
        and (variance is None or (_is_share(variance) and variance <= MAX_VARIANCE))
    )


# A database driver may return a Decimal or None instead of a number: both are rejected.
def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_share(value: float) -> bool:
    return _is_number(value) and 0.0 <= value <= 1.0


def _are_counts(*values: object) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)

"""What the controller saw since its last decision: plain numbers, and what is wrong with them (R6, R11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

Arm = Literal["production", "canary"]

# A clock this far ahead of the database's is a wrong clock, not a race.
_AHEAD = timedelta(seconds=60)
_HIGHEST_VARIANCE = 0.25


class Scored(NamedTuple):
    """One newly scored session (R11): its arm, the stage it was served in, and what it scored.

    ``pass_rate`` in [0, 1]; ``variance`` in [0, 0.25], None when the orchestra gave none. A session that
    met both arms is not among them; content that cannot be scored for the candidate's fault scores 0.
    """

    arm: Arm
    stage: int
    pass_rate: float
    variance: float | None = None


class Paired(NamedTuple):
    """One production-holdout session replayed through both versions: their pass rates."""

    canary: float
    production: float


@dataclass(frozen=True)
class Counts:
    """Requests assigned to one arm since the last decision.

    ``errors`` of ``requests`` failed, timed out or fell back. ``slow`` of the ``timed`` ones took longer per
    output token than ``State.slow_after`` ms (canary arm) or than that divided by E3's ratio (production).
    """

    requests: int = 0
    errors: int = 0
    timed: int = 0
    slow: int = 0


@dataclass(frozen=True)
class Window:
    """One arm over the health window (R4); means are None where nothing was measured.

    ``latency_p95``: milliseconds per output token of the ``timed`` requests.
    """

    sessions: int = 0
    pass_rate: float | None = None
    variance: float | None = None
    requests: int = 0
    errors: int = 0
    timed: int = 0
    latency_p95: float | None = None


@dataclass(frozen=True)
class Observation:
    """One reading of the database, for the state whose ``cursor`` is ``since``.

    ``sessions`` are in the order in which they were served; each is given once in the life of a rollout,
    and ``since``/``until`` (opaque to the decision) are what makes sure of that. ``fresh_at`` is the moment
    up to which everything that can be scored has been scored; None when that is not known. ``ready`` of the
    live ``replicas`` have the candidate loaded, verified and warm (G3). ``faults`` are what the reader
    itself found wrong.
    """

    since: str
    until: str
    fresh_at: datetime | None
    replicas: int
    ready: int
    sessions: tuple[Scored, ...] = ()
    replay: tuple[Paired, ...] = ()
    canary: Counts = Counts()
    production: Counts = Counts()
    canary_window: Window = Window()
    production_window: Window = Window()
    faults: tuple[str, ...] = ()


def faults(observation: Observation, cursor: str, now: datetime) -> tuple[str, ...]:
    """What makes the observation unusable as a whole; empty when it can be counted."""
    found = list(observation.faults)
    if observation.since != cursor:
        found.append(f"it begins at {observation.since!r}, the evidence ends at {cursor!r}")
    fresh_at = observation.fresh_at
    if fresh_at is not None and fresh_at.tzinfo is None:
        found.append("the time of its scores has no time zone")
    elif fresh_at is not None and fresh_at > now + _AHEAD:
        found.append(f"its scores are from {fresh_at:%Y-%m-%d %H:%M:%S}, after now")
    if not _are_counts(observation.ready, observation.replicas) or observation.ready > observation.replicas:
        found.append(f"{observation.ready} of {observation.replicas} replicas are ready")
    wrong = sum(not _is_score(one) for one in observation.sessions)
    wrong += sum(not (_is_share(one.canary) and _is_share(one.production)) for one in observation.replay)
    if wrong:
        found.append(f"{wrong} scores are not pass rates in [0, 1] with a variance in [0, 0.25]")
    for arm in ("canary", "production"):
        found += _impossible(arm, getattr(observation, arm), getattr(observation, f"{arm}_window"))
    return tuple(found)


def _impossible(arm: str, counts: Counts, window: Window) -> list[str]:
    found = []
    whole = _are_counts(counts.requests, counts.errors, counts.timed, counts.slow)
    if not (whole and counts.errors <= counts.requests and counts.slow <= counts.timed <= counts.requests):
        found.append(f"{arm}: counts that cannot be: {counts}")
    whole = _are_counts(window.sessions, window.requests, window.errors, window.timed)
    means = all(one is None or _is_share(one) for one in (window.pass_rate, window.variance))
    latency = window.latency_p95 is None or (_is_number(window.latency_p95) and window.latency_p95 >= 0)
    if not (whole and window.errors <= window.requests and means and latency):
        found.append(f"{arm}: a window that cannot be: {window}")
    return found


def _is_score(scored: Scored) -> bool:
    known = scored.arm in ("production", "canary")
    variance = scored.variance is None or (
        _is_share(scored.variance) and scored.variance <= _HIGHEST_VARIANCE
    )
    return known and _is_share(scored.pass_rate) and variance


# A database driver may hand over a Decimal or a None where a number was meant: neither is one.
def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_share(value: float) -> bool:
    return _is_number(value) and 0.0 <= value <= 1.0


def _are_counts(*values: object) -> bool:
    return all(isinstance(one, int) and one >= 0 for one in values)

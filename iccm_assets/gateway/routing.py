"""Who answers a request: one immutable snapshot of what the database said, judged per request (G2-G4, R7).

A snapshot is as good as its lease: when nothing renews it, the canary's weight ends by itself, on the
platform's clock, whether or not the database can be reached.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from iccm_assets.gateway.split import Arm, arm_of


def elapsed() -> float:
    """Seconds that pass even while the machine sleeps or its date is set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Clock:
    """The platform's clock as last read: it said ``said`` when ``elapsed`` said ``at``, and runs at ``rate``.

    ``at`` is taken before the question, so the clock is early by the way to the database, never late:
    a lease ends a little too soon rather than too late.
    """

    said: datetime
    at: float
    rate: float = 1.0

    def now(self) -> datetime:
        """The platform's time (S4)."""
        return self.said + timedelta(seconds=self.rate * (elapsed() - self.at))


@dataclass(frozen=True)
class Version:
    """A model version and where it lies."""

    version: str
    path: str
    digest: str


@dataclass(frozen=True)
class Split:
    """The live rollout: ``candidate`` has ``weight`` of the sessions until ``lease_until``.

    ``former`` is what the rollout was opened against; while it bakes, the candidate is production itself.
    """

    rollout_id: int
    state: str
    stage: int
    candidate: str
    former: str
    weight: float
    lease_until: datetime | None


@dataclass(frozen=True)
class Routing:
    """What the database said: production, the live rollout if any, and the models it needs.

    ``everywhere`` holds the versions that every living replica has ready (G3).
    """

    production: str
    split: Split | None = None
    former: str | None = None
    versions: Mapping[str, Version] = field(default_factory=dict)
    everywhere: frozenset[str] = frozenset()
    replicas: int = 1

    def wanted(self, keep_former: bool) -> list[Version]:
        """The models to have loaded, most urgent first."""
        names = [self.production]
        if self.split is not None:
            names += [self.split.candidate, self.split.former]
        if keep_former and self.former is not None:
            names.append(self.former)
        return [self.versions[name] for name in dict.fromkeys(names) if name in self.versions]


@dataclass(frozen=True)
class Route:
    """Who is to answer: ``version``, and ``instead`` when that one fails in the canary arm."""

    arm: Arm
    version: str
    instead: str | None = None
    rollout_id: int | None = None


def canary_weight(routing: Routing, now: datetime, loaded: Collection[str]) -> tuple[float, str]:
    """The canary arm's share at this moment, and why it is what it is (R7, G3). Pure."""
    split = routing.split
    if split is None:
        return 0.0, "no rollout is live"
    if split.weight <= 0:
        return 0.0, f"rollout {split.rollout_id} has weight 0"
    if split.lease_until is None or now > split.lease_until:
        over = "was never given" if split.lease_until is None else f"ended {split.lease_until:%H:%M:%S}"
        return 0.0, f"the lease of rollout {split.rollout_id} {over}"
    if split.candidate not in loaded:
        return 0.0, f"{split.candidate} is not loaded here"
    if split.candidate not in routing.everywhere:
        return 0.0, f"{split.candidate} is not loaded on all of {routing.replicas} replicas"
    return split.weight, f"rollout {split.rollout_id}, stage {split.stage}"


def choose(routing: Routing, key: str, now: datetime, loaded: Collection[str], last: str | None) -> Route:
    """Who answers a session (or request) called ``key``. Pure.

    ``last`` has answered as production before: it goes on while a new production version is being loaded.
    """
    production = routing.production if routing.production in loaded or last is None else last
    split = routing.split
    weight, _ = canary_weight(routing, now, loaded)
    if split is None or weight == 0:
        return Route("production", production)
    if arm_of(split.rollout_id, key, weight) == "production":
        # The candidate at 100 % is production itself; whoever is left out of it has the former version.
        return Route("production", production, rollout_id=split.rollout_id)
    instead = split.former if production == split.candidate else production
    return Route("canary", split.candidate, instead if instead in loaded else None, split.rollout_id)


def routing_of(row: Mapping[str, Any], asked_at: float) -> tuple[Routing | None, Clock]:
    """The answer of the control query as values; no routing before there is a production version."""
    clock = Clock(row["now"].astimezone(UTC), asked_at, row["rate"])
    if row["production"] is None:
        return None, clock
    found = row["rollout"]
    split = None
    if found is not None:
        lease = found["lease_until"]
        split = Split(
            rollout_id=found["id"],
            state=found["state"],
            stage=found["stage"],
            candidate=found["candidate"],
            former=found["production"],
            weight=float(found["weight"]),
            lease_until=None if lease is None else datetime.fromisoformat(lease),
        )
    replicas = row["replicas"] or []
    ready = [frozenset(one) for one in replicas]
    return (
        Routing(
            production=row["production"],
            split=split,
            former=row["former"],
            versions={one["version"]: Version(**one) for one in row["versions"] or []},
            everywhere=frozenset.intersection(*ready) if ready else frozenset(),
            replicas=len(replicas),
        ),
        clock,
    )

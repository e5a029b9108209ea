"""Choose the model version for each request, from an immutable snapshot of the database (G2-G4, R7).

A snapshot is valid while its lease is: if nothing renews it, the canary's weight ends at that time on the
platform clock, even while the database cannot be reached.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from iccm_assets.errors import CorruptCheckpointError

Arm = Literal["production", "canary"]


def monotonic_seconds() -> float:
    """Return monotonic seconds, unaffected by suspending the machine or setting its date."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Clock:
    """The platform clock: ``reading`` at monotonic time ``read_at``, advancing ``rate`` times as fast.

    ``read_at`` is measured before the query, so this clock may be ahead by the query's duration but never
    behind: a lease ends slightly too early rather than too late.
    """

    reading: datetime
    read_at: float
    rate: float = 1.0

    def now(self) -> datetime:
        """Return the current platform time (S4)."""
        return self.reading + timedelta(seconds=self.rate * (monotonic_seconds() - self.read_at))

    def seconds_until(self, timestamp: datetime) -> float:
        """Return the wall-clock seconds until a platform time; negative after it."""
        return (timestamp - self.now()).total_seconds() / self.rate


@dataclass(frozen=True)
class ModelLocation:
    """A model version and the location of its files, absolute or relative to the home."""

    version: str
    path: str
    digest: str

    def check_digest(self, digest: str) -> None:
        """Raise ``CorruptCheckpointError`` if the files have another digest than the version."""
        if digest != self.digest:
            raise CorruptCheckpointError(f"{self.path} has digest {digest[:12]}, not {self.digest[:12]}")


class CanarySplit(BaseModel):
    """The live rollout: ``candidate`` gets ``weight`` of the sessions until ``lease_until``.

    ``former`` is the version the rollout started from. While it bakes, the candidate is production itself.
    """

    model_config = ConfigDict(frozen=True)

    rollout_id: int
    state: str
    stage: int
    candidate: str
    former: str
    weight: float = Field(description="Traffic fraction set by the controller.")
    lease_until: Annotated[datetime, PlainSerializer(datetime.isoformat, return_type=str)] | None


@dataclass(frozen=True)
class Routing:
    """Snapshot of production, the live rollout if any, and the models they need.

    ``ready_everywhere`` contains the versions that all live replicas have ready (G3), ``ready_somewhere``
    those that at least one has; ``versions`` knows all of them.
    """

    production: str
    split: CanarySplit | None = None
    previous_version: str | None = None
    versions: Mapping[str, ModelLocation] = field(default_factory=dict)
    ready_everywhere: frozenset[str] = frozenset()
    ready_somewhere: frozenset[str] = frozenset()
    replicas: int = 1

    def required_models(self, keep_previous_warm: bool) -> list[ModelLocation]:
        """List the models to load, most urgent first."""
        names = [self.production]
        if self.split is not None:
            names += [self.split.candidate, self.split.former]
        if keep_previous_warm and self.previous_version is not None:
            names.append(self.previous_version)
        return [self.versions[name] for name in dict.fromkeys(names) if name in self.versions]

    def loaded_elsewhere(self) -> list[ModelLocation]:
        """List the models that live replicas have loaded, whether or not they are still required."""
        return [self.versions[name] for name in sorted(self.ready_somewhere) if name in self.versions]


@dataclass(frozen=True)
class Route:
    """The chosen ``version``, and the ``fallback_version`` if it fails in the canary arm."""

    arm: Arm
    version: str
    fallback_version: str | None = None
    rollout_id: int | None = None


def session_bucket(rollout_id: int, session_key: str) -> float:
    """Hash a session to [0, 1): uniformly, and independently for every rollout."""
    key = f"{rollout_id}:{session_key}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"iccm-split").digest(), "big")
    # A float represents 53 bits exactly, so the largest result stays below 1.
    return (number >> 11) / (1 << 53)


def assign_arm(rollout_id: int, session_key: str, weight: float) -> Arm:
    """Assign ``weight`` of all sessions to the canary arm; a larger weight only adds sessions."""
    return "canary" if session_bucket(rollout_id, session_key) < weight else "production"


def canary_weight(routing: Routing, now: datetime, loaded: Collection[str]) -> tuple[float, str]:
    """Return the canary arm's traffic fraction now, in [0, 1], and its reason (R7, G3)."""
    split = routing.split
    if split is None:
        return 0.0, "no live rollout"
    if split.weight <= 0:
        return 0.0, f"rollout {split.rollout_id} has weight 0"
    if split.lease_until is None:
        return 0.0, f"rollout {split.rollout_id} has no lease"
    if now > split.lease_until:
        return 0.0, f"the lease of rollout {split.rollout_id} ended at {split.lease_until:%H:%M:%S}"
    if split.candidate not in loaded:
        return 0.0, f"{split.candidate} is not loaded on this replica"
    if split.candidate not in routing.ready_everywhere:
        return 0.0, f"{split.candidate} is not loaded on all {routing.replicas} replicas"
    return split.weight, f"rollout {split.rollout_id}, stage {split.stage}"


def choose_route(
    routing: Routing, key: str, now: datetime, loaded: Collection[str], last_production: str | None
) -> Route:
    """Choose the version that serves the session (or request) ``key``.

    ``last_production`` is the version that served as production before: it continues while a new production
    version is being loaded.
    """
    production = (
        routing.production if routing.production in loaded or last_production is None else last_production
    )
    split = routing.split
    weight, _ = canary_weight(routing, now, loaded)
    if split is None or weight == 0:
        return Route("production", production)
    if assign_arm(split.rollout_id, key, weight) == "production":
        # A candidate at 100 % is production itself, so the other sessions stay on production, too.
        return Route("production", production, rollout_id=split.rollout_id)
    fallback = split.former if production == split.candidate else production
    return Route("canary", split.candidate, fallback if fallback in loaded else None, split.rollout_id)


def parse_routing(row: Mapping[str, Any], queried_at: float) -> tuple[Routing | None, Clock]:
    """Parse the result of the routing query; the routing is None before there is a production version."""
    clock = Clock(row["now"].astimezone(UTC), queried_at, row["rate"])
    if row["production"] is None:
        return None, clock
    replicas = [frozenset(ready) for ready in row["replicas"] or []]
    routing = Routing(
        production=row["production"],
        split=None if row["rollout"] is None else CanarySplit.model_validate(row["rollout"]),
        previous_version=row["previous"],
        versions={version["version"]: ModelLocation(**version) for version in row["versions"] or []},
        ready_everywhere=frozenset.intersection(*replicas) if replicas else frozenset(),
        ready_somewhere=frozenset().union(*replicas),
        replicas=len(replicas),
    )
    return routing, clock

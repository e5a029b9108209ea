"""Does the registry say one thing about who serves? Decisions over plain values (U4, M1, R7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from iccm_assets.findings import Finding


@dataclass(frozen=True)
class LiveRollout:
    """The live row of ``rollouts``."""

    id: int
    candidate: str
    production: str
    state: str
    weight: float
    lease_until: datetime | None


def one_production(versions: Sequence[str]) -> Finding:
    """Exactly one version is in production (M1)."""
    told = f"{len(versions)} versions in production: {', '.join(versions) or 'none'}"
    recovery = (
        "None: materialize `base_model`, which puts the base model in production when there is none. More "
        "than one cannot be written by this platform (partial unique index `model_versions_one_production`): "
        "`iccm db upgrade` restores the schema."
    )
    return Finding(len(versions) == 1, told, recovery, numbers={"production_versions": float(len(versions))})


def consistent(rollout: LiveRollout | None, serving: str | None, canaries: Sequence[str]) -> Finding:
    """The live rollout and the versions' statuses fit each other (R8)."""
    recovery = (
        "Both change in one transaction, so somebody wrote to the tables by hand. `iccm rollout show` tells "
        "what the controller sees; `iccm rollout abort` ends the rollout and leaves production where it is."
    )
    if rollout is None:
        told = f"no rollout is live; {len(canaries)} versions have the status canary"
        return Finding(not canaries, told, recovery)
    baking = rollout.state == "baking"
    expected = rollout.candidate if baking else rollout.production
    told = f"rollout {rollout.id} is {rollout.state}: {expected} should be in production, {serving} is"
    fits = serving == expected and set(canaries) <= {rollout.candidate}
    if not baking:
        fits = fits and rollout.candidate in canaries
        told += f"; canary: {', '.join(canaries) or 'none'}, should be {rollout.candidate}"
    return Finding(fits, told, recovery)


def leased(rollout: LiveRollout | None, now: datetime) -> Finding:
    """A canary arm with weight has a lease that is not over (R7)."""
    recovery = (
        "Nothing is served by the candidate now: without a lease all traffic goes to production. The "
        "controller has stopped: is the Dagster daemon running, and `rollout_controller_sensor` on? Its "
        "ticks say what holds it up. It takes the rollout up where it stands."
    )
    if rollout is None or rollout.weight == 0:
        return Finding(True, "no canary arm has traffic", recovery)
    left = (rollout.lease_until - now).total_seconds() if rollout.lease_until else float("-inf")
    if rollout.lease_until is None:
        told = f"the canary arm of rollout {rollout.id} has weight {rollout.weight:g} and no lease"
    else:
        told = f"weight {rollout.weight:g}, the lease {'ends in' if left > 0 else 'ended'} {abs(left):.0f} s"
        told += "" if left > 0 else " ago"
    return Finding(left > 0, told, recovery, numbers={"weight": rollout.weight})

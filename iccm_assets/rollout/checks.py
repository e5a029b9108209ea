"""Checks that versions, rollout and lease are consistent; decisions on plain values (U4, M1, R7)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.settings import Settings


class RolloutStatus(NamedTuple):
    """The columns of the live rollout that the checks read.

    Not a whole `State`: its parser rejects a damaged row, which a check has to report instead.
    """

    id: int
    candidate: str
    production: str
    state: str
    weight: float
    lease_until: datetime | None


def check_single_production(versions: Sequence[str]) -> CheckResult:
    """Check that exactly one version is in production."""
    description = f"{len(versions)} versions in production: {', '.join(versions) or 'none'}"
    recovery = (
        "None: materialize `base_model`, which puts the base model in production when there is none. More "
        "than one cannot be written by this platform (partial unique index `model_versions_one_production`): "
        "`iccm db upgrade` restores the schema."
    )
    numbers = {"production_versions": float(len(versions))}
    return CheckResult(len(versions) == 1, description, recovery, metrics=numbers)


def check_statuses(
    rollout: RolloutStatus | None, serving: str | None, canaries: Sequence[str]
) -> CheckResult:
    """Check that the live rollout and the versions' statuses match."""
    recovery = (
        "Both change in one transaction, so the tables were changed by hand. `iccm rollout show` shows "
        "the state the controller has; `iccm rollout abort` ends the rollout and leaves production as it is."
    )
    if rollout is None:
        description = f"no rollout is live; {len(canaries)} versions have the status canary"
        return CheckResult(not canaries, description, recovery)
    baking = rollout.state == "baking"
    expected = rollout.candidate if baking else rollout.production
    matches = serving == expected and set(canaries) <= {rollout.candidate}
    description = f"rollout {rollout.id} is {rollout.state}: {expected} should be in production, {serving} is"
    if not baking:
        matches = matches and rollout.candidate in canaries
        description += f"; canary: {', '.join(canaries) or 'none'}, should be {rollout.candidate}"
    return CheckResult(matches, description, recovery)


def check_lease(rollout: RolloutStatus | None, now: datetime) -> CheckResult:
    """Check that a canary arm with traffic has a lease that has not expired."""
    recovery = (
        "The candidate serves nothing now: without a lease all traffic goes to production. The controller "
        "has stopped: is the Dagster daemon running, and `rollout_controller_sensor` on? Its ticks log the "
        "reason. Once it runs, it continues the rollout from the current stage."
    )
    if rollout is None or rollout.weight == 0:
        return CheckResult(True, "no canary arm has traffic", recovery)
    weight, numbers = f"weight {rollout.weight:g}", {"weight": rollout.weight}
    if rollout.lease_until is None:
        return CheckResult(False, f"{weight}, no lease", recovery, metrics=numbers)
    seconds = (rollout.lease_until - now).total_seconds()
    # Routing sends traffic up to and including the end of the lease.
    is_active = seconds >= 0
    lease = f"expires in {seconds:.0f} s" if is_active else f"expired {-seconds:.0f} s ago"
    return CheckResult(is_active, f"{weight}, the lease {lease}", recovery, metrics=numbers)


def load_live_rollout(conn: sa.Connection) -> RolloutStatus | None:
    """Return the live rollout; None when there is none."""
    r = t.rollouts.c
    query = sa.select(*(r[name] for name in RolloutStatus._fields)).where(r.state.in_(t.LIVE_STATES))
    row = conn.execute(query).one_or_none()
    return None if row is None else RolloutStatus(*row)


def list_versions(conn: sa.Connection, status: str) -> list[str]:
    """Return the versions of one status, sorted."""
    query = sa.text("select version from iccm.model_versions where status = :status order by version")
    return list(conn.execute(query, {"status": status}).scalars())


def exactly_one_production_version(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Count the versions in production."""
    return check_single_production(list_versions(conn, "production"))


def statuses_match_rollout(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Compare the statuses of the versions with the live rollout."""
    production, canaries = (list_versions(conn, status) for status in ("production", "canary"))
    return check_statuses(load_live_rollout(conn), next(iter(production), None), canaries)


def canary_lease_is_active(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Check the lease of the live rollout."""
    return check_lease(load_live_rollout(conn), now(conn))

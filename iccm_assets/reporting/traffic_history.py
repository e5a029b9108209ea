"""Versions that served traffic at a time, and the periods in which a version did (M2, V1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class ServedVersion:
    """A version and its share of live traffic, above 0 and at most 1."""

    version: str
    weight: float


@dataclass(frozen=True)
class ServingPeriod:
    """A period in which a version had this share of the traffic; ``until`` is None while it lasts."""

    since: datetime
    until: datetime | None
    weight: float


@dataclass(frozen=True)
class TrafficEvent:
    """A deployment event that changes traffic: from ``timestamp`` on, ``version`` has ``weight``."""

    timestamp: datetime
    version: str
    weight: float


# An event with a version sets the share of that version; production, the last version that was set to 1, has
# the rest.
_SERVED_AT = text(
    """
    with events as (
        select version, weight, "timestamp", id
        from iccm.deployment_events
        where version is not null and "timestamp" <= :as_of
    ),
    production as (
        select version from events where weight = 1 order by "timestamp" desc, id desc limit 1
    ),
    latest as (
        select version, weight from events order by "timestamp" desc, id desc limit 1
    )
    select version, weight from latest where weight > 0
    union all
    select production.version, 1 - latest.weight from production, latest where latest.weight < 1
    order by weight desc, version
    """
)
_EVENTS = text(
    """
    select "timestamp", version, weight from iccm.deployment_events
    where version is not null order by "timestamp", id
    """
)


def versions_served_at(conn: Connection, as_of: datetime) -> list[ServedVersion]:
    """Return the versions live at a time with their weights, largest first; empty before the first one.

    Weights come from `deployment_events` alone and add up to 1.
    """
    return [ServedVersion(*row) for row in conn.execute(_SERVED_AT, {"as_of": as_of})]


def compute_served_versions(history: Iterable[TrafficEvent], as_of: datetime) -> list[ServedVersion]:
    """Compute what `versions_served_at` returns from traffic events in order of time."""
    production: str | None = None
    latest: TrafficEvent | None = None
    for event in history:
        if event.timestamp > as_of:
            break
        latest = event
        if event.weight == 1:
            production = event.version
    if latest is None:
        return []
    served = [ServedVersion(latest.version, latest.weight)] if latest.weight > 0 else []
    if production is not None and latest.weight < 1:
        served.append(ServedVersion(production, 1 - latest.weight))
    return sorted(served, key=lambda each: (-each.weight, each.version))


def serving_periods(conn: Connection, version: str) -> list[ServingPeriod]:
    """Return the periods in which a version served, oldest first; consistent with `versions_served_at`."""
    return compute_serving_periods(version, (TrafficEvent(*row) for row in conn.execute(_EVENTS)))


def compute_serving_periods(version: str, history: Iterable[TrafficEvent]) -> list[ServingPeriod]:
    """Compute the periods of a version from all traffic events, in order of time."""
    changes: list[tuple[datetime, float]] = []
    production: str | None = None
    for event in history:
        if event.weight == 1:
            production = event.version
        share = event.weight if event.version == version else 0.0
        # Production has the rest, which is nothing when the event is about production itself.
        if production == version:
            share += 1 - event.weight
        # Of several events at one time only the last one counts.
        if changes and changes[-1][0] == event.timestamp:
            changes.pop()
        if not changes or changes[-1][1] != share:
            changes.append((event.timestamp, share))
    ends = [*(since for since, _ in changes[1:]), None]
    return [
        ServingPeriod(since, until, share)
        for (since, share), until in zip(changes, ends, strict=False)
        if share > 0
    ]

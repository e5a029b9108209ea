"""Which version served traffic at a moment, and when a version did (M2, V1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa


@dataclass(frozen=True)
class Served:
    """A version and its share of the live traffic, above 0 and at most 1."""

    version: str
    weight: float


@dataclass(frozen=True)
class Period:
    """A time during which a version had this share of the traffic; ``until`` is None while it lasts."""

    since: datetime
    until: datetime | None
    weight: float


@dataclass(frozen=True)
class Said:
    """A deployment event that says something about traffic: from then on ``version`` has ``weight``."""

    timestamp: datetime
    version: str
    weight: float


# An event with a version sets that version's share from then on; production, the last version to have
# been given everything, has the rest.
_SERVED_AT = sa.text(
    """
    with said as (
        select version, weight, "timestamp", id
        from iccm.deployment_events
        where version is not null and "timestamp" <= :moment
    ),
    production as (
        select version from said where weight = 1 order by "timestamp" desc, id desc limit 1
    ),
    latest as (
        select version, weight from said order by "timestamp" desc, id desc limit 1
    )
    select version, weight from latest where weight > 0
    union all
    select production.version, 1 - latest.weight from production, latest where latest.weight < 1
    order by weight desc, version
    """
)


def served_at(conn: sa.Connection, moment: datetime) -> list[Served]:
    """The versions live at a moment with their weights, heaviest first; empty before the first one.

    Weights come from `deployment_events` alone and add up to 1.
    """
    return [Served(row.version, row.weight) for row in conn.execute(_SERVED_AT, {"moment": moment})]


_SAID = sa.text(
    """
    select "timestamp", version, weight from iccm.deployment_events
    where version is not null order by "timestamp", id
    """
)


def periods(conn: sa.Connection, version: str) -> list[Period]:
    """When a version served, and with what share, oldest first; `served_at` says the same of any moment."""
    return fold_periods(version, (Said(*row) for row in conn.execute(_SAID)))


def fold_periods(version: str, history: Iterable[Said]) -> list[Period]:
    """`periods` of a history in its order. Pure."""
    found: list[Period] = []
    production: str | None = None
    for event in history:
        if event.weight == 1:
            production = event.version
        own = event.weight if event.version == version else 0.0
        # Production has what the version spoken of has not, and all of it when that is production itself.
        share = own + (1 - event.weight if production == version else 0.0)
        last = found[-1] if found and found[-1].until is None else None
        if last is not None and last.weight == share:
            continue
        if last is not None:
            found.pop()
            if last.since < event.timestamp:
                found.append(Period(last.since, event.timestamp, last.weight))
        if share > 0:
            found.append(Period(event.timestamp, None, share))
    return found

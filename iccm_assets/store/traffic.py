"""Which version served traffic at a moment (M2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa


@dataclass(frozen=True)
class Served:
    """A version and its share of the live traffic, above 0 and at most 1."""

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

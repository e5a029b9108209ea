"""What arrived, counted: the facts behind `capture.health` and the observations of `conversations` (U1).

Every query follows the rows of the days it asks for, not the size of the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

MOST_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Arrivals:
    """One UTC day's conversations: all of them, and how many came in which way."""

    day: date
    total: int
    by_origin: dict[str, int] = field(default_factory=dict)
    users: int = 0
    with_test_suite: int = 0


@dataclass(frozen=True)
class SpoolState:
    """The spools below a home: refused records, bytes not delivered, age of the oldest file in seconds."""

    refused: int
    waiting_bytes: int
    oldest_seconds: float


def count_days(conn: sa.Connection, first: date, last: date) -> list[Arrivals]:
    """Every day from ``first`` to ``last``, days without conversations too."""
    rows = conn.execute(
        sa.text(
            """
            select (c."timestamp" at time zone 'UTC')::date as day, c.origin, count(*) as n,
                count(distinct coalesce(c.user_id, c.session_id)) as users,
                count(*) filter (where exists (
                    select from iccm.requirements r
                    where r.session_id = c.session_id and r.kind = 'accepted' and r.test_suite is not null
                )) as suites
            from iccm.conversations c
            where c."timestamp" >= :start and c."timestamp" < :end
            group by grouping sets (1, (1, 2)) order by 1, 2
            """
        ),
        {"start": midnight(first), "end": midnight(last + timedelta(days=1))},
    ).all()
    found = []
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        by_origin = {row.origin: row for row in rows if row.day == day}
        whole = by_origin.pop(None, None)  # the row over all origins
        found.append(
            Arrivals(
                day,
                whole.n if whole else 0,
                {origin: row.n for origin, row in by_origin.items()},
                whole.users if whole else 0,
                whole.suites if whole else 0,
            )
        )
    return found


def unreadable(conn: sa.Connection, since: datetime) -> tuple[int, list[int]]:
    """How many of the newest conversations were looked at, and the ids of those without messages (M3)."""
    rows = conn.execute(
        sa.text(
            """
            select c.id, jsonb_typeof(c.content) = 'array' and jsonb_path_exists(c.content,
                '$[*] ? (exists(@.role) && @.content.type() == "string")') as readable
            from iccm.conversations c
            where c."timestamp" >= :since and c.erased_at is null
            order by c."timestamp" desc limit :most
            """
        ),
        {"since": since, "most": MOST_LOOKED_AT},
    ).all()
    return len(rows), [row.id for row in rows if not row.readable]


def spool_state(root: Path) -> SpoolState:
    """Of the spools below ``root``; a folder that is not there holds nothing."""
    refused, waiting, oldest = root / "refused.jsonl", 0, 0.0
    for segment in root.glob("*/*.log"):
        try:
            status = segment.stat()
        except FileNotFoundError:
            continue  # delivered just now
        if status.st_size:
            waiting += status.st_size
            oldest = max(oldest, time.time() - status.st_mtime)
    return SpoolState(_lines(refused), waiting, oldest)


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            return sum(1 for _ in stream)
    except FileNotFoundError:
        return 0


def midnight(day: date) -> datetime:
    """When a UTC day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def totals(days: Sequence[Arrivals]) -> list[int]:
    """The counts alone, in order."""
    return [one.total for one in days]

"""Daily volumes, invalid content and spool state, for the checks and observations of `conversations`.

Every query reads the rows of the requested days only, not the whole table. (U1)
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, text

MAX_SCANNED = 20_000


@dataclass(frozen=True)
class DailyVolume:
    """The conversations of one UTC day: all of them, and their number by origin."""

    day: date
    total: int
    by_origin: dict[str, int] = field(default_factory=dict)
    users: int = 0
    with_test_suite: int = 0


def daily_volumes(conn: Connection, first: date, last: date) -> list[DailyVolume]:
    """Count every day from ``first`` to ``last``, days without conversations too."""
    rows = conn.execute(
        text(
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
        {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))},
    ).all()
    days = []
    for day in (first + timedelta(days=number) for number in range((last - first).days + 1)):
        by_origin = {row.origin: row for row in rows if row.day == day}
        whole = by_origin.pop(None, None)  # the row over all origins
        counts = {origin: row.n for origin, row in by_origin.items()}
        days.append(
            DailyVolume(day, whole.n, counts, whole.users, whole.suites) if whole else DailyVolume(day, 0)
        )
    return days


def invalid_conversations(conn: Connection, since: datetime) -> tuple[int, list[int]]:
    """Return how many of the newest conversations were examined, and the ids of those without messages."""
    rows = conn.execute(
        text(
            """
            select c.id, jsonb_typeof(c.content) = 'array' and jsonb_path_exists(c.content,
                '$[*] ? (exists(@.role) && @.content.type() == "string")') as valid
            from iccm.conversations c
            where c."timestamp" >= :since and c.erased_at is null
            order by c."timestamp" desc limit :max_rows
            """
        ),
        {"since": since, "max_rows": MAX_SCANNED},
    ).all()
    return len(rows), [row.id for row in rows if not row.valid]


def get_spool_state(root: Path) -> tuple[int, int, float]:
    """Dead letters, bytes not flushed, and age of the oldest file in seconds, of the spools below ``root``.

    A folder that does not exist holds nothing.
    """
    dead_letters, size, oldest = 0, 0, 0.0
    with suppress(FileNotFoundError), (root / "dead_letters.jsonl").open("rb") as stream:
        dead_letters = sum(1 for _ in stream)
    for segment in root.glob("*/*.log"):
        with suppress(FileNotFoundError):  # flushed just now
            status = segment.stat()
            size += status.st_size
            oldest = max(oldest, time.time() - status.st_mtime if status.st_size else 0.0)
    return dead_letters, size, oldest


def start_of_day(day: date) -> datetime:
    """The beginning of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)

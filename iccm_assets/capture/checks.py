"""Checks of the daily volume, its content and the spool, and what they read. (U4, M3, G5)"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import dropwhile
from pathlib import Path
from statistics import median

from sqlalchemy import Connection, text

from iccm_assets.check_result import CheckResult, sample_ids
from iccm_assets.db.clock import now, start_of_day
from iccm_assets.settings import Settings

# With fewer conversations a day, a quiet day proves nothing.
MIN_BASELINE = 10
LOW_VOLUME_RATIO = 0.2
MAX_INVALID_RATIO = 0.02
MAX_SEGMENT_AGE_SECONDS = 900.0
MAX_SCANNED = 20_000  # conversations

BASELINE_DAYS = 14


def check_daily_volume(previous_days: Sequence[int], yesterday: int) -> CheckResult:
    """Compare yesterday's conversations with the median of the days before, from the first that had any."""
    previous_days = list(dropwhile(lambda count: count == 0, previous_days))
    baseline = median(previous_days) if previous_days else 0.0
    quiet = baseline >= MIN_BASELINE and yesterday < LOW_VOLUME_RATIO * baseline
    return CheckResult(
        not quiet,
        f"{yesterday} conversations yesterday, usually {baseline:g} (median of {len(previous_days)} days)",
        "Is the gateway up (`GET /readyz`, `iccm status`), and do developers still reach it? See "
        "`spool_is_flushed`: responses may wait on the gateway's disk. Late deliveries count for their own "
        "day, and the daily job processes that day again.",
        severity="error" if yesterday == 0 else "warning",
        metrics={"yesterday": float(yesterday), "baseline": float(baseline)},
    )


def check_content(scanned: int, invalid_ids: Sequence[int]) -> CheckResult:
    """Check the share of the scanned conversations whose content is not a list of messages (ids)."""
    return CheckResult(
        len(invalid_ids) / max(scanned, 1) <= MAX_INVALID_RATIO,
        f"{len(invalid_ids)} of {scanned} recent conversations hold no readable messages",
        "They are rejected as `no_messages` and nothing else is affected. Find who writes them by `origin` "
        "and `created_at` of the ids named here; posting a session again to `/v1/conversations` replaces it.",
        severity="warning",
        metrics={"scanned": float(scanned), "invalid": float(len(invalid_ids))},
        sample_ids=sample_ids(list(invalid_ids)),
    )


def check_spool(dead_letters: int, pending_bytes: int, oldest_seconds: float) -> CheckResult:
    """Check what the gateways of this machine could not store: dead letters, and pending segments."""
    description = f"{dead_letters} records rejected by the database, {pending_bytes} bytes pending"
    if pending_bytes:
        description += f", the oldest for {oldest_seconds:.0f} s"
    return CheckResult(
        not dead_letters and oldest_seconds <= MAX_SEGMENT_AGE_SECONDS,
        description,
        "Rejected: `$ICCM_HOME/spool/dead_letters.jsonl` holds each record with its error; fix the cause, "
        "post the sessions again, then move the file away. Pending: nothing is lost; start a gateway (`iccm "
        "serve`), which also flushes the segments of dead ones, or read in its log why the database rejects.",
        severity="error" if dead_letters > 0 else "warning",
        metrics={"dead_letters": float(dead_letters), "pending_bytes": float(pending_bytes)},
    )


@dataclass(frozen=True)
class DailyVolume:
    """Counts of the conversations of one UTC day."""

    day: date
    total: int
    by_origin: dict[str, int] = field(default_factory=dict)
    users: int = 0
    with_test_suite: int = 0


def load_daily_volumes(conn: Connection, first: date, last: date) -> list[DailyVolume]:
    """Count the conversations of every day from ``first`` to ``last``, including empty days."""
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


def find_invalid_conversations(conn: Connection, since: datetime) -> tuple[int, list[int]]:
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
    """Return dead letters, pending bytes and the oldest segment's age (s) of the spools below ``root``."""
    dead_letters, size, oldest = 0, 0, 0.0
    with suppress(FileNotFoundError), (root / "dead_letters.jsonl").open("rb") as stream:
        dead_letters = sum(1 for _ in stream)
    for segment in root.glob("*/*.log"):
        with suppress(FileNotFoundError):  # flushed just now
            status = segment.stat()
            size += status.st_size
            oldest = max(oldest, time.time() - status.st_mtime if status.st_size else 0.0)
    return dead_letters, size, oldest


def daily_volume_is_normal(conn: Connection, settings: Settings) -> CheckResult:
    """Compare yesterday's volume with the days before it."""
    yesterday = now(conn).date() - timedelta(days=1)
    days = load_daily_volumes(conn, yesterday - timedelta(days=BASELINE_DAYS), yesterday)
    *baseline, last = [day.total for day in days]
    return check_daily_volume(baseline, last)


def content_is_valid(conn: Connection, settings: Settings) -> CheckResult:
    """Check the messages of the last week."""
    return check_content(*find_invalid_conversations(conn, now(conn) - timedelta(days=7)))


def spool_is_flushed(conn: Connection, settings: Settings) -> CheckResult:
    """Check the spools of the gateways of this machine."""
    return check_spool(*get_spool_state(settings.home / "spool"))

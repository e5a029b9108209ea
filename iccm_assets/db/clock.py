"""The platform clock: the SQL function `iccm.now()` (S4).

Everything that waits, expires or is dated reads it, so that tests, simulations and the local profile can let
a week pass in a minute without changing the time of any process.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, Double, bindparam, text

# A one-row FROM item: platform time, and platform seconds per wall-clock second.
CLOCK_SQL = """
    (select iccm.now() as now, coalesce(
        (select (value ->> 'rate')::double precision from iccm.platform where key = 'clock'), 1.0
    ) as rate) as clock
"""


def now(conn: Connection) -> datetime:
    """Return the platform time, timezone-aware UTC."""
    time: datetime = conn.execute(text("select iccm.now()")).scalar_one()
    return time.astimezone(UTC)


def set_clock(conn: Connection, *, shift: timedelta = timedelta(0), rate: float | None = None) -> datetime:
    """Shift the platform clock by `shift` and let it run `rate` times as fast from now on.

    Both are relative to the current platform time; without `rate` the speed does not change. The change is
    visible to everyone when the caller's transaction commits. Returns the new time. Raises `ValueError`
    unless the rate is above 0: the clock may jump, but it must not stop.
    """
    if rate is not None and not rate > 0:
        raise ValueError(f"the clock's rate must be above 0, not {rate}")
    statement = text(
        f"""
        insert into iccm.platform (key, value)
        select 'clock', jsonb_build_object(
            'real_anchor', clock_timestamp(),
            'platform_anchor', clock.now + make_interval(secs => :shift),
            'rate', coalesce(:rate, clock.rate)
        )
        from {CLOCK_SQL}
        on conflict (key) do update set value = excluded.value
        """
    ).bindparams(bindparam("rate", type_=Double), bindparam("shift", type_=Double))
    conn.execute(statement, {"shift": shift.total_seconds(), "rate": rate})
    return now(conn)


def reset_clock(conn: Connection) -> datetime:
    """Return to the server's clock; returns the new time."""
    conn.execute(text("delete from iccm.platform where key = 'clock'"))
    return now(conn)


def start_of_day(day: date) -> datetime:
    """Return the beginning of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)

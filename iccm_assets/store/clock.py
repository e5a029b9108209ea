"""The one clock (S4): the SQL function `iccm.now()`.

Everything that waits, expires or is dated reads it, so that tests, simulations and the local profile can
make a week pass in a minute without touching any process's own time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa


def now(conn: sa.Connection) -> datetime:
    """The platform's time, timezone-aware UTC."""
    moment: datetime = conn.execute(sa.text("select iccm.now()")).scalar_one()
    return moment.astimezone(UTC)


def set_clock(conn: sa.Connection, *, shift: timedelta = timedelta(0), rate: float | None = None) -> datetime:
    """Move the platform's clock by `shift` and let it run `rate` times as fast from here on.

    Both are relative to what the clock says now; without `rate` the speed stays. Takes effect for
    everyone when the caller's transaction commits. Returns the new time. Raises `ValueError` when the
    rate is not above 0: time may jump, it may not stand still.
    """
    if rate is not None and not rate > 0:
        raise ValueError(f"the clock's rate must be above 0, not {rate}")
    conn.execute(
        sa.text(
            """
            insert into iccm.platform (key, value)
            select 'clock', jsonb_build_object(
                'real_anchor', clock_timestamp(),
                'platform_anchor', iccm.now() + make_interval(secs => :shift),
                'rate', coalesce(:rate, (
                    select (value ->> 'rate')::double precision from iccm.platform where key = 'clock'
                ), 1.0)
            )
            on conflict (key) do update set value = excluded.value
            """
        ).bindparams(sa.bindparam("rate", type_=sa.Double), sa.bindparam("shift", type_=sa.Double)),
        {"shift": shift.total_seconds(), "rate": rate},
    )
    return now(conn)


def reset_clock(conn: sa.Connection) -> datetime:
    """Let the platform's clock be the server's again; returns the new time."""
    conn.execute(sa.text("delete from iccm.platform where key = 'clock'"))
    return now(conn)

"""The platform clock, which may be shifted and scaled (S4)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, reset_clock, set_clock

SLACK = timedelta(seconds=2)


def test_the_default_time_is_the_servers_in_utc(engine):
    with engine.connect() as conn:
        platform_time = now(conn)
    assert platform_time.tzinfo is UTC
    assert abs(platform_time - datetime.now(UTC)) < SLACK


def test_the_clock_advances_within_a_transaction(engine):
    """Waiting for a lock takes time, and a lease must not be dated before the wait."""
    with engine.begin() as conn:
        first = now(conn)
        conn.execute(sa.text("select pg_sleep(0.02)"))
        assert now(conn) - first >= timedelta(milliseconds=20)


def test_a_shift_is_visible_to_every_connection_once_committed(engine):
    with engine.begin() as conn:
        platform_time = set_clock(conn, shift=timedelta(days=7))
        with engine.connect() as other:
            assert abs(now(other) - datetime.now(UTC)) < SLACK
    assert abs(platform_time - datetime.now(UTC) - timedelta(days=7)) < SLACK
    with engine.connect() as other:
        assert now(other) >= platform_time


def test_shifts_add_up_and_may_be_negative(engine):
    with engine.begin() as conn:
        for shift in (timedelta(hours=5), timedelta(hours=2), timedelta(hours=-4)):
            platform_time = set_clock(conn, shift=shift)
    assert abs(platform_time - datetime.now(UTC) - timedelta(hours=3)) < SLACK


def test_a_rate_scales_the_clock_without_a_jump(engine):
    with engine.begin() as conn:
        began, before = time.monotonic(), now(conn)
        after = set_clock(conn, rate=3600.0)
        before_start, started = time.monotonic(), now(conn)
        after_start = time.monotonic()
        time.sleep(0.2)
        before_end, ended = time.monotonic(), now(conn)
        after_end = time.monotonic()
    assert timedelta(0) < after - before < timedelta(hours=before_start - began)
    # A reading takes time: the real time between both readings lies between these bounds.
    assert (
        (before_end - after_start) * 3590
        < (ended - started).total_seconds()
        < (after_end - before_start) * 3610
    )


def test_a_shift_keeps_the_rate_and_a_rate_keeps_the_shift(engine):
    with engine.begin() as conn:
        set_clock(conn, rate=2.0)
        set_clock(conn, shift=timedelta(days=1))
        rate = conn.execute(sa.text("select value ->> 'rate' from iccm.platform where key = 'clock'"))
        assert float(rate.scalar_one()) == 2.0
        platform_time = set_clock(conn, rate=1.0)
        assert abs(platform_time - datetime.now(UTC) - timedelta(days=1)) < SLACK
        assert abs(reset_clock(conn) - datetime.now(UTC)) < SLACK


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_must_be_above_zero(engine, rate):
    with engine.begin() as conn, pytest.raises(ValueError, match="above 0"):
        set_clock(conn, rate=rate)


def test_rows_are_dated_by_the_platform_clock(engine):
    with engine.begin() as conn:
        platform_time = set_clock(conn, shift=timedelta(days=30))
        row = {"session_id": "s", "origin": "simulated"}
        conn.execute(t.conversations.insert().values(row))
        dated = conn.execute(sa.select(t.conversations.c.timestamp)).scalar_one()
    assert platform_time <= dated < platform_time + SLACK


def test_the_time_zone_of_a_connection_does_not_change_a_scaled_day(engine):
    """Days are added in seconds: a daylight saving change in between must not shift the platform's time."""
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                """
                insert into iccm.platform (key, value) values ('clock', jsonb_build_object(
                    'real_anchor', clock_timestamp() - interval '86400 seconds',
                    'platform_anchor', '2026-03-01T00:00:00+00:00', 'rate', 60))
                """
            )
        )
        platform_time = now(conn)
        conn.execute(sa.text("set local timezone = 'Europe/Berlin'"))
        assert abs(now(conn) - platform_time) < timedelta(minutes=2)
    assert abs(platform_time - datetime(2026, 4, 30, tzinfo=UTC)) < timedelta(minutes=2)


def test_reading_the_clock_costs_one_lookup(engine):
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(days=1), rate=10.0)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            conn.execute(sa.text("select max(iccm.now()) from generate_series(1, 2000)"))
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 2.0

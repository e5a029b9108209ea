"""Versions that served traffic at a time, with their weights (M2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.db import tables as t
from iccm_assets.reporting.traffic_history import (
    ServedVersion,
    TrafficEvent,
    compute_serving_periods,
    serving_periods,
    versions_served_at,
)

T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def record_event(engine):
    """Return a function that records the weight of a version from an hour on."""
    with engine.begin() as conn:
        for name in ("v1", "v2", "v3"):
            row = {"version": name, "status": "candidate", "digest": name, "path": name}
            conn.execute(t.model_versions.insert().values(row))

        def record(hour: float, version: str | None, weight: float | None, event: str = "noted") -> None:
            conn.execute(
                t.deployment_events.insert().values(
                    timestamp=T0 + timedelta(hours=hour),
                    version=version,
                    weight=weight,
                    event_type=event,
                    actor="test",
                )
            )

        record.conn = conn
        yield record


def served_at(conn: sa.Connection, hour: float) -> dict[str, float]:
    return {row.version: round(row.weight, 9) for row in versions_served_at(conn, T0 + timedelta(hours=hour))}


def test_before_the_first_version_nothing_served(record_event):
    record_event(1, "v1", 1.0)
    assert served_at(record_event.conn, 0.99) == {}
    assert served_at(record_event.conn, 1) == {"v1": 1.0}


def test_a_rollout_from_ten_percent_to_promotion(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 0.1)
    record_event(16, "v2", 0.5)
    record_event(20, None, None, "paused")  # no change of traffic
    record_event(28, "v2", 1.0)
    hours = {5: {"v1": 1.0}, 10: {"v1": 0.9, "v2": 0.1}, 22: {"v1": 0.5, "v2": 0.5}, 40: {"v2": 1.0}}
    assert {hour: served_at(record_event.conn, hour) for hour in hours} == hours


def test_a_rollback_from_a_stage_leaves_production_alone(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 0.5)
    record_event(11, "v2", 0.0)
    assert served_at(record_event.conn, 12) == {"v1": 1.0}


def test_a_rollback_from_the_bake_and_a_later_rollout(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 1.0)
    record_event(20, "v1", 1.0, "rolled_back")
    record_event(30, "v3", 0.1)
    assert served_at(record_event.conn, 15) == {"v2": 1.0}
    assert served_at(record_event.conn, 25) == {"v1": 1.0}
    assert served_at(record_event.conn, 31) == {"v1": 0.9, "v3": 0.1}


def test_an_expired_lease_recorded_later_counts_from_its_own_time(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 0.5)
    record_event(15, "v2", 0.5, "lease_resumed")
    record_event(12, "v2", 0.0, "lease_lapsed")  # written on recovery, dated when it happened
    assert served_at(record_event.conn, 11) == {"v1": 0.5, "v2": 0.5}
    assert served_at(record_event.conn, 13) == {"v1": 1.0}
    assert served_at(record_event.conn, 16) == {"v1": 0.5, "v2": 0.5}


def test_of_two_events_at_one_time_the_later_written_counts(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 0.1)
    record_event(10, "v2", 0.5)
    assert served_at(record_event.conn, 10) == {"v1": 0.5, "v2": 0.5}


def test_weights_add_up_to_one_and_the_heaviest_is_first(record_event):
    record_event(0, "v1", 1.0)
    record_event(1, "v2", 0.1)
    served = versions_served_at(record_event.conn, T0 + timedelta(hours=2))
    assert [row.version for row in served] == ["v1", "v2"]
    assert sum(row.weight for row in served) == pytest.approx(1.0)
    assert isinstance(served[0], ServedVersion)


def test_serving_periods_agree_with_the_versions_served_at_a_time(record_event):
    record_event(0, "v1", 1.0)
    record_event(10, "v2", 0.1)
    record_event(16, "v2", 0.5)
    record_event(16, "v2", 0.5, "noted again")
    record_event(20, "v2", 0.0, "rolled_back")
    record_event(30, "v3", 1.0)
    hours = {
        name: [
            (
                (period.since - T0).total_seconds() / 3600,
                period.until and (period.until - T0).total_seconds() / 3600,
                period.weight,
            )
            for period in serving_periods(record_event.conn, name)
        ]
        for name in ("v1", "v2", "v3")
    }
    assert hours["v1"] == [(0, 10, 1.0), (10, 16, 0.9), (16, 20, 0.5), (20, 30, 1.0)]
    assert hours["v2"] == [(10, 16, 0.1), (16, 20, 0.5)]
    assert hours["v3"] == [(30, None, 1.0)]


EVENTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["v1", "v2", "v3"]), st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    max_size=8,
)


@given(EVENTS)
def test_periods_do_not_overlap_and_weights_of_all_versions_add_up_to_one(history):
    events = [
        TrafficEvent(T0 + timedelta(hours=hour), name, weight) for hour, name, weight in sorted(history)
    ]
    by_version = {name: compute_serving_periods(name, events) for name in ("v1", "v2", "v3")}
    for version_periods in by_version.values():
        for before, after in pairwise(version_periods):
            assert before.since < before.until <= after.since
    first = next((event.timestamp for event in events if event.weight == 1), None)
    for hour in range(11):
        now = T0 + timedelta(hours=hour)
        shares = [
            period.weight
            for version_periods in by_version.values()
            for period in version_periods
            if period.since <= now and (period.until is None or now < period.until)
        ]
        if first is not None and now >= first:
            assert sum(shares) == pytest.approx(1.0)

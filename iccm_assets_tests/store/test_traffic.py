"""Which version served traffic at time T, with what weight (M2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.store import tables as t
from iccm_assets.store.traffic import Served, served_at

T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def told(engine):
    """Says at which hour a version was given which weight; the history of two rollouts is told below."""
    with engine.begin() as conn:
        for name in ("v1", "v2", "v3"):
            row = {"version": name, "status": "candidate", "digest": name, "path": name}
            conn.execute(t.model_versions.insert().values(row))

        def tell(hour: float, version: str | None, weight: float | None, event: str = "noted") -> None:
            conn.execute(
                t.deployment_events.insert().values(
                    timestamp=T0 + timedelta(hours=hour),
                    version=version,
                    weight=weight,
                    event_type=event,
                    actor="test",
                )
            )

        tell.conn = conn
        yield tell


def at(conn: sa.Connection, hour: float) -> dict[str, float]:
    return {one.version: round(one.weight, 9) for one in served_at(conn, T0 + timedelta(hours=hour))}


def test_before_the_first_version_nothing_served(told):
    told(1, "v1", 1.0)
    assert at(told.conn, 0.99) == {}
    assert at(told.conn, 1) == {"v1": 1.0}


def test_a_rollout_from_ten_percent_to_promotion(told):
    told(0, "v1", 1.0)
    told(10, "v2", 0.1)
    told(16, "v2", 0.5)
    told(20, None, None, "paused")  # says nothing about traffic
    told(28, "v2", 1.0)
    hours = {5: {"v1": 1.0}, 10: {"v1": 0.9, "v2": 0.1}, 22: {"v1": 0.5, "v2": 0.5}, 40: {"v2": 1.0}}
    assert {hour: at(told.conn, hour) for hour in hours} == hours


def test_a_rollback_from_a_stage_leaves_production_alone(told):
    told(0, "v1", 1.0)
    told(10, "v2", 0.5)
    told(11, "v2", 0.0)
    assert at(told.conn, 12) == {"v1": 1.0}


def test_a_rollback_from_the_bake_and_a_later_rollout(told):
    told(0, "v1", 1.0)
    told(10, "v2", 1.0)
    told(20, "v1", 1.0, "rolled_back")
    told(30, "v3", 0.1)
    assert at(told.conn, 15) == {"v2": 1.0}
    assert at(told.conn, 25) == {"v1": 1.0}
    assert at(told.conn, 31) == {"v1": 0.9, "v3": 0.1}


def test_a_lapsed_lease_recorded_later_is_answered_as_it_was(told):
    told(0, "v1", 1.0)
    told(10, "v2", 0.5)
    told(15, "v2", 0.5, "lease_resumed")
    told(12, "v2", 0.0, "lease_lapsed")  # written on recovery, dated when it happened
    assert at(told.conn, 11) == {"v1": 0.5, "v2": 0.5}
    assert at(told.conn, 13) == {"v1": 1.0}
    assert at(told.conn, 16) == {"v1": 0.5, "v2": 0.5}


def test_of_two_events_at_one_moment_the_later_written_counts(told):
    told(0, "v1", 1.0)
    told(10, "v2", 0.1)
    told(10, "v2", 0.5)
    assert at(told.conn, 10) == {"v1": 0.5, "v2": 0.5}


def test_weights_add_up_to_one_and_the_heaviest_is_first(told):
    told(0, "v1", 1.0)
    told(1, "v2", 0.1)
    served = served_at(told.conn, T0 + timedelta(hours=2))
    assert [one.version for one in served] == ["v1", "v2"]
    assert sum(one.weight for one in served) == pytest.approx(1.0)
    assert isinstance(served[0], Served)

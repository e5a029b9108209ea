"""Checks of the production version, the versions' statuses and the lease (U4, M1, R7, R8)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.rollout import checks
from iccm_assets.rollout.checks import RolloutStatus
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import version

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIVE = RolloutStatus(3, "v2", "v1", "ramping", 0.1, NOW + timedelta(seconds=100))
BAKING = LIVE._replace(state="baking", weight=1.0)


@pytest.mark.parametrize(("versions", "passed"), [([], False), (["v1"], True), (["v1", "v2"], False)])
def test_exactly_one_version_is_in_production(versions: list[str], passed: bool) -> None:
    result = checks.check_single_production(versions)
    names = ", ".join(versions) or "none"
    assert result.passed is passed and result.metrics == {"production_versions": len(versions)}
    assert result.description == f"{len(versions)} versions in production: {names}"
    assert "iccm db upgrade" in result.recovery


@pytest.mark.parametrize(
    ("rollout", "serving", "canaries", "passed", "description"),
    [
        (None, "v1", [], True, "no rollout is live; 0 versions have the status canary"),
        (None, "v1", ["v2"], False, "no rollout is live; 1 versions have the status canary"),
        (LIVE, "v1", ["v2"], True, "rollout 3 is ramping: v1 should be in production, v1 is; canary: v2,"),
        (LIVE, "v2", ["v2"], False, "v1 should be in production, v2 is; canary: v2, should be v2"),
        (LIVE, "v1", [], False, "v1 should be in production, v1 is; canary: none, should be v2"),
        (LIVE, "v1", ["v2", "v3"], False, "canary: v2, v3, should be v2"),
        (LIVE, "v1", ["v3"], False, "canary: v3, should be v2"),
        (LIVE, None, ["v2"], False, "v1 should be in production, None is"),
        (BAKING, "v2", [], True, "rollout 3 is baking: v2 should be in production, v2 is"),
        (BAKING, "v2", ["v2"], True, "v2 should be in production, v2 is"),
        (BAKING, "v2", ["v3"], False, "v2 should be in production, v2 is"),
        (BAKING, "v1", ["v2"], False, "v2 should be in production, v1 is"),
    ],
)
def test_statuses_match_the_rollout(rollout, serving, canaries, passed, description) -> None:
    result = checks.check_statuses(rollout, serving, canaries)
    assert result.passed is passed and description in result.description
    assert ("; canary: " in result.description) == (rollout is LIVE)
    assert "iccm rollout abort" in result.recovery


@pytest.mark.parametrize(
    ("rollout", "passed", "description"),
    [
        (LIVE, True, "weight 0.1, the lease expires in 100 s"),
        (LIVE._replace(lease_until=NOW + timedelta(seconds=0.75)), True, "the lease expires in 1 s"),
        (LIVE._replace(lease_until=NOW), True, "the lease expires in 0 s"),
        (LIVE._replace(lease_until=NOW - timedelta(seconds=0.75)), False, "the lease expired 1 s ago"),
        (LIVE._replace(lease_until=NOW - timedelta(seconds=60)), False, "the lease expired 60 s ago"),
        (LIVE._replace(lease_until=None), False, "weight 0.1, no lease"),
        (BAKING, True, "weight 1, the lease expires in 100 s"),
        (BAKING._replace(lease_until=None), False, "weight 1, no lease"),
    ],
)
def test_weight_needs_an_unexpired_lease(rollout, passed, description) -> None:
    result = checks.check_lease(rollout, NOW)
    assert result.passed is passed and description in result.description
    assert result.metrics == {"weight": rollout.weight} and "Dagster daemon" in result.recovery


@pytest.mark.parametrize("rollout", [None, LIVE._replace(weight=0.0, lease_until=None)])
def test_without_traffic_no_lease_is_needed(rollout) -> None:
    result = checks.check_lease(rollout, NOW)
    assert (result.passed, result.description) == (True, "no canary arm has traffic")


def test_the_checks_read_the_versions_and_the_live_rollout(engine: sa.Engine, settings: Settings) -> None:
    def results(conn):
        return (
            checks.exactly_one_production_version(conn, settings),
            checks.statuses_match_rollout(conn, settings),
            checks.canary_lease_is_active(conn, settings),
        )

    with engine.begin() as conn:
        assert [result.passed for result in results(conn)] == [False, True, True]
        assert checks.load_live_rollout(conn) is None
        version(conn, "v1", status="production")
        for name in ("v3", "v2"):
            version(conn, name, "v1", status="canary")
        assert checks.list_versions(conn, "canary") == ["v2", "v3"]
        single, statuses, lease = results(conn)
        assert (single.passed, single.description) == (True, "1 versions in production: v1")
        assert "2 versions have the status canary" in statuses.description and lease.passed
        closed, until = {"state": "aborted", "closed_at": now(conn)}, now(conn) + timedelta(seconds=100)
        conn.execute(t.rollouts.insert().values(candidate="v3", production="v1", **closed))
        assert checks.load_live_rollout(conn) is None
        columns = {"candidate": "v2", "production": "v1", "weight": 0.1, "lease_until": until}
        number = conn.execute(t.rollouts.insert().values(columns).returning(t.rollouts.c.id)).scalar_one()
        assert checks.load_live_rollout(conn) == RolloutStatus(number, "v2", "v1", "ramping", 0.1, until)
        single, statuses, lease = results(conn)
        assert (single.passed, statuses.passed, lease.passed) == (True, False, True)
        assert "v1 should be in production, v1 is; canary: v2, v3, should be v2" in statuses.description
        assert lease.description.startswith("weight 0.1, the lease expires in ")

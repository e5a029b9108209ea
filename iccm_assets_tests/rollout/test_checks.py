"""Checks of the production version, the versions' statuses and the lease (U4, M1, R7, R8)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from iccm_assets.rollout import checks
from iccm_assets.rollout.checks import RolloutStatus

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIVE = RolloutStatus(3, "v2", "v1", "ramping", 0.1, NOW + timedelta(seconds=100))


@pytest.mark.parametrize(("versions", "passed"), [([], False), (["v1"], True), (["v1", "v2"], False)])
def test_exactly_one_version_is_in_production(versions: list[str], passed: bool) -> None:
    assert checks.check_single_production(versions).passed is passed


@pytest.mark.parametrize(
    ("rollout", "serving", "canaries", "passed"),
    [
        (None, "v1", [], True),
        (None, "v1", ["v2"], False),
        (LIVE, "v1", ["v2"], True),
        (LIVE, "v2", ["v2"], False),
        (LIVE, "v1", [], False),
        (LIVE, "v1", ["v2", "v3"], False),
        (LIVE._replace(state="baking", weight=1.0), "v2", [], True),
        (LIVE._replace(state="baking", weight=1.0), "v1", ["v2"], False),
        (LIVE, None, ["v2"], False),
    ],
)
def test_statuses_match_the_rollout(rollout, serving, canaries, passed) -> None:
    assert checks.check_statuses(rollout, serving, canaries).passed is passed


def test_weight_needs_an_unexpired_lease() -> None:
    assert checks.check_lease(None, NOW).passed
    assert checks.check_lease(LIVE, NOW).passed
    late = checks.check_lease(LIVE, NOW + timedelta(seconds=160))
    assert not late.passed and "60 s ago" in late.description
    assert not checks.check_lease(LIVE._replace(lease_until=None), NOW).passed
    assert checks.check_lease(LIVE._replace(weight=0.0, lease_until=None), NOW).passed

"""The serving version, chosen from the latest snapshot of the database (G3, R7)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from iccm_assets.gateway.routing import (
    CanarySplit,
    Clock,
    Routing,
    canary_weight,
    choose_route,
    monotonic_seconds,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BOTH = frozenset({"v1", "v2"})


def routing(production: str = "v1", everywhere: frozenset[str] = BOTH, **split: object) -> Routing:
    values = {
        "rollout_id": 1, "state": "ramping", "stage": 1, "candidate": "v2", "former": "v1", "weight": 1.0,
        "lease_until": NOW + timedelta(seconds=180), **split,
    }  # fmt: skip
    return Routing(production, CanarySplit(**values), ready_everywhere=everywhere, replicas=2)


def test_the_canary_serves_while_its_lease_is_valid_and_all_replicas_are_ready():
    assert choose_route(routing(), "s", NOW, BOTH, None).version == "v2"


@pytest.mark.parametrize(
    ("changed", "loaded", "why"),
    [
        ({"lease_until": NOW - timedelta(microseconds=1)}, BOTH, "lease of rollout 1 ended"),
        ({"lease_until": None}, BOTH, "has no lease"),
        ({"weight": 0.0}, BOTH, "weight 0"),
        ({"everywhere": frozenset({"v1"})}, BOTH, "not loaded on all 2 replicas"),
        ({}, {"v1"}, "not loaded on this replica"),
    ],
)
def test_if_a_condition_is_missing_production_serves_and_the_reason_is_given(changed, loaded, why):
    changed_routing = routing(**changed)
    weight, reason = canary_weight(changed_routing, NOW, loaded)
    assert weight == 0 and why in reason
    route = choose_route(changed_routing, "s", NOW, loaded, None)
    assert (route.arm, route.version, route.rollout_id) == ("production", "v1", None)


def test_production_is_the_fallback_of_a_failing_canary():
    assert choose_route(routing(), "s", NOW, BOTH, None).fallback_version == "v1"


def test_during_the_bake_the_former_version_is_the_fallback_and_an_expired_lease_means_the_new_one():
    baking = {"production": "v2", "state": "baking", "stage": 3}
    route = choose_route(routing(**baking), "s", NOW, BOTH, None)
    assert (route.arm, route.version, route.fallback_version) == ("canary", "v2", "v1")
    lapsed = choose_route(routing(**baking, lease_until=NOW - timedelta(seconds=1)), "s", NOW, BOTH, None)
    assert (lapsed.arm, lapsed.version) == ("production", "v2")


def test_the_former_production_version_serves_until_the_new_one_is_loaded():
    new = Routing("v3")
    assert choose_route(new, "s", NOW, {"v1"}, "v1").version == "v1"
    assert choose_route(new, "s", NOW, {"v1", "v3"}, "v1").version == "v3"


def test_the_clock_advances_at_the_platform_rate_without_the_database():
    clock = Clock(NOW, monotonic_seconds() - 2.0, rate=3600.0)
    assert clock.now() >= NOW + timedelta(hours=2)

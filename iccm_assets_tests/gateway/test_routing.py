"""The serving version, chosen from the latest snapshot of the database (G3, R7)."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from iccm_assets.gateway.routing import (
    CanarySplit,
    Clock,
    ModelLocation,
    Routing,
    assign_arm,
    canary_weight,
    choose_route,
    monotonic_seconds,
    parse_routing,
    session_bucket,
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
    ("changed", "loaded", "words"),
    [
        ({"lease_until": NOW - timedelta(microseconds=1)}, BOTH, "lease of rollout 1 ended"),
        ({"lease_until": None}, BOTH, "has no lease"),
        ({"weight": 0.0}, BOTH, "weight 0"),
        ({"everywhere": frozenset({"v1"})}, BOTH, "not loaded on all 2 replicas"),
        ({}, {"v1"}, "not loaded on this replica"),
    ],
)
def test_if_a_condition_is_missing_production_serves_and_the_reason_is_given(changed, loaded, words):
    changed_routing = routing(**changed)
    weight, reason = canary_weight(changed_routing, NOW, loaded)
    assert weight == 0 and words in reason
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


def test_the_clock_advances_at_the_platform_rate_without_the_database(monkeypatch):
    monkeypatch.setattr("iccm_assets.gateway.routing.monotonic_seconds", lambda: 102.0)
    assert Clock(NOW, 100.0, rate=3600.0).now() == NOW + timedelta(hours=2)
    assert Clock(NOW, 100.0).now() == NOW + timedelta(seconds=2)


def test_a_snapshot_cannot_be_changed_and_is_of_one_replica_unless_it_says_more():
    with pytest.raises(ValueError, match="frozen"):
        routing().split.weight = 0.5
    split = routing().split
    assert canary_weight(Routing("v1", split), NOW, BOTH) == (0.0, "v2 is not loaded on all 1 replicas")


def test_a_fallback_that_is_not_loaded_is_not_named():
    route = choose_route(routing(), "s", NOW, {"v2"}, None)
    assert (route.arm, route.version, route.fallback_version, route.rollout_id) == ("canary", "v2", None, 1)
    # Until the new production version is loaded, the last one is the fallback.
    moved = choose_route(routing(production="v3"), "s", NOW, BOTH, "v1")
    assert (moved.arm, moved.version, moved.fallback_version) == ("canary", "v2", "v1")


def test_the_lease_is_valid_to_its_end():
    assert canary_weight(routing(weight=0.5, lease_until=NOW), NOW, BOTH) == (0.5, "rollout 1, stage 1")
    assert canary_weight(Routing("v1"), NOW, BOTH) == (0.0, "no live rollout")
    assert canary_weight(routing(weight=-0.1), NOW, BOTH)[0] == 0.0


def test_sessions_outside_the_canary_arm_belong_to_the_rollout_too():
    routes = [choose_route(routing(weight=0.5), f"s{n}", NOW, BOTH, None) for n in range(50)]
    assert {route.arm for route in routes} == {"canary", "production"}
    assert {route.rollout_id for route in routes} == {1}
    assert [route.arm for route in routes] == [assign_arm(1, f"s{n}", 0.5) for n in range(50)]
    assert {route.version for route in routes if route.arm == "production"} == {"v1"}
    assert {route.fallback_version for route in routes if route.arm == "production"} == {None}


@pytest.mark.parametrize(("warm", "names"), [(True, ["v1", "v2", "v0"]), (False, ["v1", "v2"])])
def test_the_previous_version_is_loaded_only_where_it_is_kept_warm(warm, names):
    locations = {name: ModelLocation(name, f"models/{name}", name) for name in ("v0", "v1", "v2")}
    loaded = replace(routing(), previous_version="v0", versions=locations).required_models(warm)
    assert [location.version for location in loaded] == names
    alone = Routing("v1", previous_version="v0", versions=locations)
    assert [location.version for location in alone.required_models(warm)] == [n for n in names if n != "v2"]
    assert Routing("v9", versions=locations).required_models(warm) == []


def test_a_snapshot_of_the_database_is_parsed():
    clock_row = {"now": NOW, "rate": 60.0}
    nothing = {"production": None, "replicas": None, "rollout": None, "previous": None, "versions": None}
    parsed, clock = parse_routing({**clock_row, **nothing}, 5.0)
    assert parsed is None and (clock.reading, clock.read_at, clock.rate) == (NOW, 5.0, 60.0)
    versions = [{"version": "v1", "path": "models/a", "digest": "a"}]
    row = {**clock_row, **nothing, "production": "v1", "previous": "v0", "versions": versions}
    parsed, _ = parse_routing(row, 5.0)
    assert parsed == Routing("v1", None, "v0", {"v1": ModelLocation("v1", "models/a", "a")}, replicas=0)
    rollout = routing().split.model_dump(mode="json")
    parsed, _ = parse_routing({**row, "rollout": rollout, "replicas": [["v1", "v2"], ["v1"]]}, 5.0)
    assert parsed.split == routing().split and parsed.replicas == 2
    assert parsed.ready_everywhere == {"v1"}


def test_seconds_are_counted_on_the_wall_clock():
    clock = Clock(NOW, monotonic_seconds(), rate=60.0)
    assert clock.seconds_until(NOW + timedelta(hours=1)) == pytest.approx(60.0, abs=1.0)
    assert clock.seconds_until(NOW - timedelta(hours=1)) == pytest.approx(-60.0, abs=1.0)


def test_a_session_exactly_at_the_weight_stays_on_production():
    bucket = session_bucket(1, "s")
    assert assign_arm(1, "s", bucket) == "production"
    assert assign_arm(1, "s", math.nextafter(bucket, 1)) == "canary"


def test_where_no_clock_counts_suspended_time_the_monotonic_one_is_read(monkeypatch):
    monkeypatch.delattr("time.CLOCK_BOOTTIME", raising=False)
    before = time.monotonic()
    assert before <= monotonic_seconds() <= time.monotonic()

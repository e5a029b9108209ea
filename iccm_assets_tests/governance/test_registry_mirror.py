"""Decisions reach a registry in order and once in effect, and it knows who served when (L13)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as search
from hypothesis import strategies as st

from iccm_assets.db.clock import set_clock
from iccm_assets.governance.registry_mirror import (
    compute_aliases,
    count_pending_decisions,
    has_due_decisions,
    mirror_decisions,
    read_history,
    versions_served_at,
)
from iccm_assets.reporting import traffic_history
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.model_registries import DECISIONS, DecisionHistory, MemoryRegistry

STEPS = st.lists(
    st.tuples(st.sampled_from(DECISIONS), st.integers(0, 3), st.sampled_from([0.0, 1.0, 3600.0])),
    min_size=1,
    max_size=7,
)


@pytest.fixture
def world(engine: sa.Engine, settings: Settings) -> DecisionHistory:
    return DecisionHistory(engine, settings.model_copy(update={"mlflow_model": "cet-d"}))


def wait(engine: sa.Engine, **time: float) -> None:
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(**time))


def assert_the_same_history(world: DecisionHistory, registry: MemoryRegistry) -> None:
    history = read_history(registry)
    with world.engine.connect() as conn:
        for at in world.served():
            expected = traffic_history.versions_served_at(conn, at)
            assert versions_served_at(history, at) == expected, at
        decisions = "select (select count(*) from iccm.deployment_events) + count(*) from iccm.gate_verdicts"
        assert len(history) == conn.execute(sa.text(decisions)).scalar_one()
        production = sa.text("select version from iccm.model_versions where status = 'production'")
        assert registry.aliases["production"] == conn.execute(production).scalar_one()
        candidate = registry.aliases.get("candidate")
        live = sa.text("select version from iccm.model_versions where status = 'canary'")
        running = conn.execute(live).scalar_one_or_none()
    assert running is None or candidate == running
    assert registry.aliases == {name: at for name, at in compute_aliases(history).items() if at}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@search(max_examples=200, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phase.generate])
@given(steps=STEPS, seed=st.integers(0, 2**16), failure_rate=st.sampled_from([0.0, 0.1, 0.3]))
def test_the_registry_knows_who_served_when_as_the_database_does_whatever_fails(
    world: DecisionHistory, steps: list[tuple[str, int, float]], seed: int, failure_rate: float
) -> None:
    world.bootstrap()
    registry = MemoryRegistry(random.Random(seed), failure_rate)
    for decision, number, seconds in steps:
        world.do(decision, number, seconds)
        if number % 2:
            mirror_decisions(world.engine, world.settings, registry)
    registry.failure_rate /= 2
    while mirror_decisions(world.engine, world.settings, registry).pending:
        wait(world.engine, hours=2)
    registry.failure_rate = 0.0
    assert_the_same_history(world, registry)


def test_decisions_are_delivered_in_order_and_wait_for_one_that_fails(world: DecisionHistory) -> None:
    world.bootstrap()
    for decision, number in (("pass", 1), ("open", 1), ("advance", 0), ("take_back", 0), ("promote", 2)):
        world.do(decision, number, 60.0)
    assert has_due_decisions(world.engine, world.settings)
    assert not has_due_decisions(world.engine, world.settings.model_copy(update={"mlflow_model": ""}))
    broken = MemoryRegistry(random.Random(0), 1.0)
    report = mirror_decisions(world.engine, world.settings, broken)
    assert (report.delivered, report.pending) == (0, 6) and "ConnectionError" in report.summary()
    assert not has_due_decisions(world.engine, world.settings), "a failed one is not due at once"
    assert mirror_decisions(world.engine, world.settings, broken).error == ""
    wait(world.engine, minutes=1)
    registry = MemoryRegistry(random.Random(0), 0.0)
    assert mirror_decisions(world.engine, world.settings, registry).delivered == 6
    assert count_pending_decisions(world.engine) == 0
    assert_the_same_history(world, registry)
    history = read_history(registry)
    assert [entry.event for entry in history] == [
        *("bootstrapped", "verdict", "opened", "advanced", "rolled_back", "forced"),
    ]
    assert [entry.weight for entry in history] == [1.0, None, 0.0, 0.1, 0.0, 1.0]
    tags = registry.versions[world.versions[1]]
    assert (tags["iccm.verdict"], tags["iccm.rollout"]) == ("pass", "rolled_back")
    assert "manual" in tags["iccm.rollout_reason"] and tags["iccm.improvement"] == "0.05"
    assert tags["iccm.digest"] == "1" * 64 and tags["iccm.parent"] == world.versions[0]


def test_a_decision_that_is_rolled_back_is_never_mirrored(world: DecisionHistory) -> None:
    world.bootstrap()
    with pytest.raises(RuntimeError), world.engine.begin() as conn:
        from iccm_assets.rollout import deployment

        candidate = deployment.versions.get_version(conn, world.versions[1])
        authorization = deployment.Authorization(True, "drill", {})
        deployment.promote(conn, candidate, authorization, actor="user:ada")
        raise RuntimeError
    assert count_pending_decisions(world.engine) == 1  # the first version
    with world.engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.deployment_events")).scalar_one() == 1


@dataclass
class InterruptedRegistry(MemoryRegistry):
    """Lets another dispatcher try while it delivers."""

    world: DecisionHistory | None = None
    second: str = ""

    def add_history(self, key: str, value: str) -> None:
        assert self.world is not None
        other = MemoryRegistry(random.Random(0), 0.0)
        self.second = mirror_decisions(self.world.engine, self.world.settings, other).error
        assert other.history == {}
        super().add_history(key, value)


def test_two_dispatchers_do_not_deliver_at_the_same_time(world: DecisionHistory) -> None:
    world.bootstrap()
    registry = InterruptedRegistry(random.Random(0), 0.0, world=world)
    assert mirror_decisions(world.engine, world.settings, registry).delivered == 1
    assert registry.second == "another process is mirroring"

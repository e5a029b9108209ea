"""The controller on a real database: whole rollouts, commands, and the rows that each end leaves (R7-R9)."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.reporting.traffic_history import versions_served_at
from iccm_assets.rollout import controller
from iccm_assets.rollout.preemption import abort_for_emergency
from iccm_assets_tests.factories.rollouts import World


def served(world: World, time: object) -> dict[str, float]:
    with world.engine.connect() as conn:
        return {version.version: round(version.weight, 9) for version in versions_served_at(conn, time)}


def test_without_a_rollout_there_is_nothing_to_decide(world: World) -> None:
    assert controller.tick(world.engine, world.settings) is None


def test_a_good_candidate_passes_all_stages_and_stays_in_production(world: World) -> None:
    opened = world.open()
    assert (opened.weight, opened.stage) == (0.0, 1)
    assert world.statuses()[world.candidate] == "canary"
    moments = {0: world.now()}
    world.tick()  # nobody has the model yet
    assert world.state().weight == 0
    for stage in (1, 2, 3):
        world.stage(stage)
        moments[stage] = world.now()
    assert world.statuses() == {world.production: "retired", world.candidate: "production"}
    final = world.until("completed")
    assert world.events() == ["opened", "held", "started", "advanced", "promoted", "completed"]
    assert final.weight == 1.0 and final.closed_at is not None
    assert world.statuses() == {world.production: "retired", world.candidate: "production"}
    assert served(world, moments[0]) == {world.production: 1.0}
    assert served(world, moments[1]) == {world.production: 0.9, world.candidate: 0.1}
    assert served(world, moments[2]) == {world.production: 0.5, world.candidate: 0.5}
    assert served(world, moments[3]) == {world.candidate: 1.0}
    assert served(world, world.now()) == {world.candidate: 1.0}
    [deployed] = world.rows("select deployed_at from iccm.model_versions where status = 'production'")
    [promoted] = world.rows("select timestamp from iccm.deployment_events where event_type = 'promoted'")
    assert abs(deployed.deployed_at - promoted.timestamp) < timedelta(seconds=5)
    assert controller.tick(world.engine, world.settings) is None


def test_a_bad_candidate_is_rolled_back_with_event_alert_and_archive(world: World) -> None:
    world.open()
    world.stage(1)
    before = world.now()
    world.until("rolled_back", canary=0.05, sessions=40)
    after = world.now()
    assert world.statuses() == {world.production: "production", world.candidate: "rolled_back"}
    state = world.state()
    assert state.weight == 0 and state.reason.startswith(
        ("test_pass_rate_degradation", "low_pass_rate", "pass")
    )
    [row] = world.rows("select * from iccm.rollback_events")
    assert (row.rollout_id, row.from_version, row.to_version) == (state.id, world.candidate, world.production)
    assert row.new_model_path.endswith("/b") and row.metrics["canary"]["sessions"] >= 3
    [alert] = world.rows("select * from iccm.alerts where title = 'Model Rollback'")
    assert alert.severity == "warning" and world.candidate in alert.body
    [metrics] = world.rows("select metrics from iccm.model_versions where version = :v", v=world.candidate)
    archived = metrics.metrics["rollout"]
    assert archived["state"] == "rolled_back" and archived["evidence"]["e_values"]
    assert served(world, before) == {world.production: 0.9, world.candidate: 0.1}
    assert served(world, after) == {world.production: 1.0}


def test_a_failing_arm_is_rolled_back_for_its_errors(world: World) -> None:
    world.open()
    world.stage(1)
    for _ in range(40):
        world.wait(30)
        world.beat()
        for number in range(6):
            arm = "canary" if number % 2 else "production"
            world.ask(arm=arm, status="fallback" if arm == "canary" else "ok", tests=False)
        if world.tick().state.state == "rolled_back":
            break
    assert world.state().reason.startswith("error_rate_spike")
    [row] = world.rows("select reason, metrics from iccm.rollback_events")
    assert row.reason == "error_rate_spike" and row.metrics["canary"]["errors"] >= 20


def test_a_rollback_in_the_bake_restores_the_previous_version_in_one_transaction(world: World) -> None:
    world.open()
    world.stage(3)
    controller.execute_command(
        world.engine, world.settings, "rollback", actor="user:ada", note="users complain"
    )
    assert world.statuses() == {world.production: "production", world.candidate: "rolled_back"}
    assert served(world, world.now()) == {world.production: 1.0}
    assert world.events()[-1] == "rolled_back"
    [event] = world.rows("select * from iccm.deployment_events order by id desc limit 1")
    assert (event.actor, event.version, event.weight) == ("user:ada", world.production, 1.0)
    [row] = world.rows("select * from iccm.rollback_events")
    assert row.reason == "manual" and "users complain" in row.notes


def test_a_violated_guardrail_in_the_bake_restores_the_previous_version_automatically(world: World) -> None:
    world.open()
    world.stage(3)
    world.until("rolled_back", canary=0.0, sessions=40)
    assert world.statuses() == {world.production: "production", world.candidate: "rolled_back"}
    assert world.state().reason.startswith("low_pass_rate")


def test_a_lapsed_lease_is_recorded_on_recovery_and_adds_no_healthy_time(world: World) -> None:
    world.open()
    world.stage(1)
    world.step()
    before = world.state()
    world.wait(3600)
    assert before.canary_weight(world.now()) == 0.0
    world.beat()
    world.tick()
    after = world.state()
    assert after.healthy_seconds == before.healthy_seconds
    assert world.events()[-2:] == ["lapsed", "recovered"]
    lapsed, recovered = world.rows(
        "select * from iccm.deployment_events where event_type in ('lapsed', 'recovered') order by seq"
    )
    assert lapsed.timestamp == before.lease_until and lapsed.weight == 0.0
    halfway = lapsed.timestamp + timedelta(minutes=20)
    assert served(world, halfway) == {world.production: 1.0}
    assert served(world, recovered.timestamp) == {world.production: 0.9, world.candidate: 0.1}


def test_commands_are_recorded_with_their_actor(world: World) -> None:
    def order(verb: str) -> str:
        return controller.execute_command(world.engine, world.settings, verb, actor="user:ada").state.state

    world.open()
    with pytest.raises(OperationNotAllowedError, match="no traffic yet"):
        order("approve")
    world.stage(1)
    assert order("pause") == "paused"
    with pytest.raises(OperationNotAllowedError, match="paused already"):
        order("pause")
    healthy = world.state().healthy_seconds
    for _ in range(3):
        world.step()
    assert world.state().healthy_seconds == healthy and world.state().weight == 0.1
    assert order("resume") == "ramping"
    order("approve")
    for _ in range(5):
        world.step(sessions=40)
    assert world.state().stage == 2
    assert order("abort") == "aborted"
    assert world.statuses()[world.candidate] == "candidate"
    who = world.rows(
        "select event_type, actor from iccm.deployment_events where actor = 'user:ada' order by id"
    )
    assert [row.event_type for row in who] == ["paused", "resumed", "approved", "aborted"]
    with pytest.raises(OperationNotAllowedError, match="no rollout is live"):
        order("pause")


def test_an_emergency_aborts_stages_1_and_2_but_not_the_bake(world: World) -> None:
    def emergency() -> bool:
        with world.engine.begin() as conn:
            return abort_for_emergency(conn, world.state().id, "production fell")

    world.open()
    world.stage(1)
    assert emergency() and world.state().state == "aborted"
    assert world.statuses()[world.candidate] == "candidate"
    [event] = world.rows("select actor, notes from iccm.deployment_events order by id desc limit 1")
    assert event.actor == "emergency retrain" and "production fell" in event.notes
    assert not emergency()  # it is over
    world.open()
    world.stage(3)
    assert not emergency() and world.state().state == "baking"


def test_a_reading_timeout_is_inconclusive_and_not_an_error(world: World) -> None:
    """Another session locks the table of requests: the tick neither hangs nor fails, and counts later."""
    world.settings = world.settings.model_copy(
        update={"rollout": world.settings.rollout.model_copy(update={"tick_timeout_seconds": 2.0})}
    )
    world.open()
    world.stage(1)
    world.ask(arm="canary")
    counted = world.state().evidence.canary_total.sessions
    world.beat()
    with world.engine.connect() as other, other.begin():
        other.execute(sa.text("lock table iccm.requests in access exclusive mode"))
        decision = controller.tick(world.engine, world.settings)
    assert decision is not None and "nothing could be observed" in decision.state.reason
    assert decision.state.state == "holding"
    world.step(sessions=0)
    assert world.state().evidence.canary_total.sessions == counted + 1


def test_gateways_are_notified_when_the_weight_changes_and_not_at_every_tick(world: World) -> None:
    world.open()
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("listen iccm_routing"))
        driver = conn.connection.driver_connection

        def notices() -> int:
            return len(list(driver.notifies(timeout=0.2)))

        world.stage(1)
        assert notices() == 1  # started
        world.step()
        assert notices() == 0
        controller.execute_command(world.engine, world.settings, "abort", actor="test")
        assert notices() == 1


def test_no_decision_is_made_on_a_damaged_row(world: World) -> None:
    from iccm_assets.errors import InputError

    world.open()
    with world.engine.begin() as conn:
        conn.execute(t.rollouts.update().values(evidence={"watermark": 5}))
    with pytest.raises(InputError, match="rollout 1"):
        controller.tick(world.engine, world.settings)

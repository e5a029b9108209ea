"""`iccm rollback`: during a rollout, in the bake, and after it; always one production version (M1)."""

from __future__ import annotations

import pytest

from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.reporting.traffic_history import versions_served_at
from iccm_assets.rollout import deployment
from iccm_assets.rollout.rollback import roll_back, roll_back_production
from iccm_assets_tests.factories.rollouts import World


def back(world: World, reason: str = "") -> str:
    return roll_back(world.engine, world.settings, actor="user:ada", reason=reason).serving


def test_a_rollback_without_a_previous_version_is_refused(world: World) -> None:
    with pytest.raises(OperationNotAllowedError, match="no previous production version"):
        back(world)
    assert world.statuses()[world.production] == "production"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_live_rollout_is_rolled_back_first(world: World, stage: int) -> None:
    world.open()
    world.stage(stage)
    assert back(world, "complaints") == world.production
    assert world.state().state == "rolled_back"
    assert world.statuses() == {world.production: "production", world.candidate: "rolled_back"}


def test_a_direct_change_is_refused_while_a_rollout_is_live(world: World) -> None:
    world.open()
    with pytest.raises(OperationNotAllowedError, match="is live"):
        roll_back_production(world.engine, actor="user:ada")


def test_after_completion_the_previous_version_is_restored_with_events_and_alert(world: World) -> None:
    world.open()
    rollout = world.until("completed")
    events, before = world.events(), world.now()
    assert back(world, "slow on large files") == world.production
    assert world.statuses() == {world.production: "production", world.candidate: "rolled_back"}
    assert world.events() == events and world.state() == rollout  # what is over stays as it was
    [row] = world.rows("select * from iccm.rollback_events")
    assert (row.rollout_id, row.reason, row.actor) == (rollout.id, "manual", "user:ada")
    assert row.new_model_path.endswith("/b") and "slow on large files" in row.notes
    [alert] = world.rows("select * from iccm.alerts where title = 'Model Rollback'")
    assert alert.severity == "warning" and "slow on large files" in alert.body
    with world.engine.connect() as conn:
        assert [version.version for version in versions_served_at(conn, before)] == [world.candidate]
        assert [version.version for version in versions_served_at(conn, world.now())] == [world.production]
    with pytest.raises(OperationNotAllowedError, match="no previous"):
        back(world)  # it does not swing back to the one that was taken back


def test_of_several_former_versions_the_last_one_is_restored(world: World) -> None:
    first, second, third = world.production, world.candidate, world.version("c")
    never_deployed = world.version("d", status="retired")
    for version in (second, third):
        world.wait(60)
        deployment.deploy(world.engine, version, actor="user:ada", force_reason="a test")
    assert back(world) == second
    assert world.statuses() == {
        first: "retired", second: "production", third: "rolled_back", never_deployed: "retired",
    }  # fmt: skip
    assert back(world) == first  # one that was rolled back does not return
    with pytest.raises(OperationNotAllowedError, match="no previous"):
        back(world)

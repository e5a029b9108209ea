"""Opening a rollout: its preconditions, its frozen policy, and one rollout at a time."""

from __future__ import annotations

import threading

import pytest

from iccm_assets.db import tables as t
from iccm_assets.errors import CorruptCheckpointError, OperationNotAllowedError
from iccm_assets.rollout import deployment, opening
from iccm_assets.rollout.opening import deploy_candidate
from iccm_assets.rollout.policy import Policy
from iccm_assets_tests.factories.rollouts import World, model


def test_a_rollout_begins_without_traffic_by_the_numbers_of_the_day(world: World) -> None:
    state = world.open()
    assert (state.weight, state.stage, state.state, state.revision) == (0.0, 1, "ramping", 0)
    assert state.policy == Policy.from_settings(world.settings.rollout, world.settings.evaluation)
    assert world.statuses() == {world.production: "production", world.candidate: "canary"}
    [event] = world.rows("select * from iccm.deployment_events where rollout_id = :id", id=state.id)
    assert (event.seq, event.event_type, event.actor, event.weight) == (1, "opened", "test", 0.0)
    assert event.from_state == "candidate" and event.evidence["verdict"] == "pass"


def test_the_verdict_is_read_again_and_a_refusal_changes_nothing(world: World) -> None:
    refused = world.version("c", verdict="fail", status="gate_failed")
    with pytest.raises(OperationNotAllowedError, match="says fail"):
        opening.open_rollout(world.engine, world.settings, refused, actor="test")
    assert world.rows("select 1 from iccm.rollouts") == []
    forced = opening.open_rollout(
        world.engine, world.settings, refused, actor="user:ada", force_reason="a drill"
    )
    assert forced.state is not None and forced.state.weight == 0.0  # the gate is skipped, the rollout is not
    [event] = world.rows("select * from iccm.deployment_events where event_type = 'opened'")
    assert event.evidence["forced"] is True and "a drill" in event.notes and event.actor == "user:ada"


def test_a_damaged_checkpoint_opens_nothing(world: World) -> None:
    (world.root / "b" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        world.open(force_reason="whatever")
    assert world.rows("select 1 from iccm.rollouts") == []
    assert world.statuses()[world.candidate] == "candidate"


def test_a_second_candidate_waits_and_is_not_promoted_at_once_either(world: World) -> None:
    state = world.open()
    other = world.version("c")
    with pytest.raises(OperationNotAllowedError, match=f"rollout {state.id} of {world.candidate} is live"):
        opening.open_rollout(world.engine, world.settings, other, actor="test")
    with pytest.raises(OperationNotAllowedError, match="is live"):
        deployment.deploy(world.engine, other, actor="test")
    assert world.statuses()[other] == "candidate"


def test_of_many_concurrent_openings_exactly_one_succeeds(world: World) -> None:
    candidates = [world.version(letter) for letter in "cdef"]
    opened, refused, start = [], [], threading.Barrier(len(candidates))

    def open_one(version: str) -> None:
        start.wait()
        try:
            opened.append(opening.open_rollout(world.engine, world.settings, version, actor="test"))
        except OperationNotAllowedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=open_one, args=(version,)) for version in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1 and len(refused) == 3 and all("is live" in message for message in refused)
    assert list(world.statuses().values()).count("canary") == 1


def test_the_retrain_that_made_the_version_is_found_and_its_emergency_recorded(world: World) -> None:
    with world.engine.begin() as conn:
        run = conn.execute(
            t.phase4_training_runs.insert()
            .values(trigger="degradation", trigger_key="k", emergency=True, candidate_version=world.candidate)
            .returning(t.phase4_training_runs.c.id)
        ).scalar_one()
    state = world.open()
    [row] = world.rows("select training_run_id from iccm.rollouts where id = :id", id=state.id)
    assert state.emergency and row.training_run_id == run


def test_without_a_production_version_the_first_is_promoted_immediately(
    engine, settings, tmp_path, monkeypatch
) -> None:
    from iccm_assets.registry import versions

    monkeypatch.setattr(deployment, "probe_model", lambda *arguments: None)

    path = model(tmp_path, "first")
    with engine.begin() as conn:
        made = versions.register_version(
            conn, digest="a" * 64, path=str(path), parent=None, status="candidate"
        )
    opened = opening.open_rollout(engine, settings, made.version, actor="test", force_reason="first")
    assert opened.state is None and opened.version.status == "production"


def test_deploying_again_returns_the_open_rollout_and_changes_nothing(world: World) -> None:
    _, first = deploy_candidate(world.engine, world.settings, world.candidate, actor="run 1")
    _, again = deploy_candidate(world.engine, world.settings, world.candidate, actor="run 2")
    assert first["rollout"] == again["rollout"]
    assert first["weight"] == 0.0 and "healthy" in first["forecast"]
    assert world.events() == ["opened"]


def test_deploying_without_a_rollout_promotes_immediately(world: World) -> None:
    version, metadata = deploy_candidate(
        world.engine, world.settings, world.candidate, actor="demo", rollout=False
    )
    assert metadata["weight"] == 1.0 and version.status == "production"
    assert world.rows("select 1 from iccm.rollouts") == []

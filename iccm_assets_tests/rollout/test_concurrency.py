"""Controllers that race and die: one row per transition, no deadlock, no stage shortened (R7, R8)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets.rollout import controller
from iccm_assets_tests.factories.rollouts import World

CONTROLLERS = 8
TICKS = 500


def check_history(world: World) -> list[str]:
    """Check that the events form one chain with each transition once; return their types."""
    rows = world.rows(
        "select * from iccm.deployment_events where rollout_id = :id order by seq", id=world.state().id
    )
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    for before, after in pairwise(rows):
        assert after.from_state == before.to_state, (before, after)
    return [row.event_type for row in rows]


@pytest.mark.slow
def test_eight_controllers_race_over_one_rollout_and_leave_one_row_per_transition(world: World) -> None:
    """500 ticks with traffic, a moving clock and a person's commands in between, until the bake ends."""
    world.open()
    world.beat()
    left, lock = [TICKS], threading.Lock()
    failures: list[BaseException] = []
    revisions: list[int] = []
    over = threading.Event()
    url = world.engine.url.render_as_string(hide_password=False)

    def race() -> None:
        engine = create_engine_for(url)
        try:
            while True:
                with lock:
                    if left[0] == 0:
                        return
                    left[0] -= 1
                decision = controller.tick(engine, world.settings)
                if decision is not None:
                    revisions.append(decision.state.revision)
        except BaseException as error:
            failures.append(error)
        finally:
            engine.dispose()

    def live() -> None:
        while not over.is_set():
            world.wait(25)
            world.beat()
            for _ in range(4):
                world.ask(arm=None, rate=0.8)
            if world.request_count == 40:
                controller.execute_command(world.engine, world.settings, "pause", actor="user:ada")
                controller.execute_command(world.engine, world.settings, "resume", actor="user:ada")

    traffic = threading.Thread(target=live)
    controllers = [threading.Thread(target=race) for _ in range(CONTROLLERS)]
    traffic.start()
    for thread in controllers:
        thread.start()
    for thread in controllers:
        thread.join()
    over.set()
    traffic.join()
    assert failures == []
    events = Counter(check_history(world))
    assert all(events[name] <= 1 for name in ("opened", "started", "advanced", "promoted", "completed")), (
        events
    )
    assert events["started"] == 1
    orders = world.rows("select event_type from iccm.deployment_events where actor = 'user:ada' order by seq")
    assert [row.event_type for row in orders] == ["paused", "resumed"]
    state = world.state()
    assert max(revisions) <= state.revision <= TICKS + 2
    assert list(world.statuses().values()).count("production") == 1
    counted = world.rows(
        """
        select count(*) as n, count(distinct session_key) as sessions from iccm.rollout_samples
        where exclusion_reason is null
        """
    )[0]
    assert counted.n == counted.sessions
    evidence = state.evidence
    assert evidence.canary_total.sessions + evidence.production_total.sessions == counted.n
    alerts = world.rows("select count(*) as n, count(distinct key) as keys from iccm.alerts")[0]
    assert alerts.n == alerts.keys


@contextmanager
def process(world: World, pause: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """Start a controller that ticks until it is killed; return after its first tick."""
    url = world.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    script = "iccm_assets_tests.factories.racing_controller"
    command = [sys.executable, "-m", script, url, "100000", str(pause)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        assert running.stdout.readline(), "the controller did not tick"
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


@pytest.mark.slow
def test_after_a_killed_controller_production_serves_and_its_successor_shortens_no_stage(
    world: World,
) -> None:
    world.open()
    world.stage(1)
    world.step()
    with process(world, pause=0.0) as running:
        for _ in range(20):
            world.ask(rate=0.8)
            world.beat()
        running.kill()  # wherever it is in its tick
        running.wait()
    before = world.state()
    assert before.lease_until is not None
    assert before.canary_weight(before.lease_until) == 0.1
    world.wait(before.policy.lease_seconds + 3600)
    assert world.state() == before and before.canary_weight(world.now()) == 0.0  # production has everything
    world.beat()
    with process(world) as running:
        assert running.stdout is not None
        revision = json.loads(running.stdout.readline())
        assert revision > before.revision
    after = world.state()
    assert 0 <= after.healthy_seconds - before.healthy_seconds < 60  # an hour passed, and did not count
    assert after.stage == 1 and after.weight == 0.1
    assert check_history(world).count("lapsed") == check_history(world).count("recovered") == 1
    total = after.evidence.canary_total.sessions + after.evidence.production_total.sessions
    [row] = world.rows("select count(*) as n from iccm.rollout_samples where exclusion_reason is null")
    assert total == row.n
    final = world.until("completed", steps=120)
    assert final.reason and check_history(world).count("promoted") == 1
    entered = world.rows(
        """
        select event_type, (evidence ->> 'healthy_seconds')::float as healthy from iccm.deployment_events
        where event_type in ('advanced', 'promoted', 'completed') order by seq
        """
    )
    assert [row.event_type for row in entered] == ["advanced", "promoted", "completed"]
    for row, needed in zip(entered, final.policy.stage_seconds, strict=True):
        assert row.healthy >= needed, row


def test_a_tick_that_dies_in_the_middle_of_its_transaction_has_changed_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iccm_assets.rollout import repository

    world.open()
    world.stage(1)
    for _ in range(5):
        world.ask(arm="canary")
    before, events = world.state(), world.events()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(repository, "append_events", dies)
        with pytest.raises(KeyboardInterrupt):
            controller.tick(world.engine, world.settings)
    assert world.state() == before and world.events() == events
    assert world.rows("select 1 from iccm.rollout_samples where revision > :r", r=before.revision) == []
    world.tick()
    assert world.state().evidence.canary_total.sessions == before.evidence.canary_total.sessions + 5


def test_the_controller_that_loses_a_race_returns_the_state_of_the_winner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another controller ticks between the reading and the writing of this one."""
    world.open()
    world.stage(1)
    world.ask(arm="canary")
    original = controller.collect_observation

    def slow(*arguments: object, **more: object) -> object:
        observation = original(*arguments, **more)
        monkeypatch.setattr(controller, "collect_observation", original)
        world.beat()
        controller.tick(world.engine, world.settings)
        return observation

    monkeypatch.setattr(controller, "collect_observation", slow)
    decision = controller.tick(world.engine, world.settings)
    assert decision is not None and decision.events == () and decision.actions == ()
    assert decision.state == world.state()
    assert world.rows("select count(*) from iccm.rollout_samples where exclusion_reason is null")[0][0] == 1


def test_a_command_waits_for_a_tick_in_progress_and_is_not_lost(world: World) -> None:
    world.open()
    world.stage(1)
    with world.engine.connect() as conn, conn.begin():
        conn.execute(sa.text("update iccm.rollouts set revision = revision + 1"))
        done: list[str] = []
        person = threading.Thread(
            target=lambda: done.append(
                controller.execute_command(
                    world.engine, world.settings, "pause", actor="user:ada"
                ).state.state
            )
        )
        person.start()
        time.sleep(0.5)
        assert done == []
    person.join()
    assert done == ["paused"] and world.state().state == "paused"

"""One retraining per cause, one at a time, and no stale attempt that publishes (T6, L6)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import set_clock
from iccm_assets.errors import InputError, OperationNotAllowedError, StaleFenceError
from iccm_assets.registry import training_runs as runs
from iccm_assets.registry.training_runs import TriggerFired
from iccm_assets.retraining import run_queue
from iccm_assets.retraining.triggers import manual_trigger
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import version


def request(engine: sa.Engine, key: str, *, emergency: bool = False) -> runs.TrainingRun:
    with engine.begin() as conn:
        run = runs.create_run(conn, manual_trigger(key, f"because of {key}", emergency))
    assert run is not None
    return run


def claim(engine: sa.Engine, settings: Settings, run_id: int, dagster_run: str = "run-a") -> int | None:
    with engine.begin() as conn:
        return runs.claim_run(conn, run_id, dagster_run, settings)


def current(engine: sa.Engine, run_id: int) -> runs.TrainingRun:
    with engine.connect() as conn:
        return runs.get_run(conn, run_id)


def queue(engine: sa.Engine, settings: Settings) -> list[int]:
    """Return the ids of the runs that wait to be started, the next one first."""
    with engine.connect() as conn:
        return [queued.id for queued in run_queue.load_queue_state(conn, settings.triggers).queued_runs]


def finish(engine: sa.Engine, run_id: int, fence: int, status: str, **facts: object) -> runs.TrainingRun:
    with engine.begin() as conn:
        return runs.finish_run(conn, run_id, fence, status, **facts)


def test_one_cause_has_one_row_even_with_two_daemons(engine: sa.Engine) -> None:
    results: list[runs.TrainingRun | None] = []
    together = threading.Barrier(6)

    def ask() -> None:
        together.wait()
        with engine.begin() as conn:
            results.append(
                runs.create_run(conn, TriggerFired("weekly", "weekly:2026-W09", "61 new examples"))
            )

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [run for run in results if run is not None]
    assert len(results) == 6 and len(rows) == 1
    assert (rows[0].status, rows[0].attempt, rows[0].notes) == ("requested", 0, "61 new examples")


def test_a_run_goes_from_request_to_its_outcome(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    fence = claim(engine, settings, run.id)
    assert fence == 1
    assert (current(engine, run.id).status, current(engine, run.id).attempt) == ("running", 1)
    with engine.begin() as conn:
        version(conn, "v1")
        runs.update_run(conn, run.id, fence, dataset_digest="d1", config={"epochs": 5})
        runs.update_run(conn, run.id, fence, candidate_version="v1")
    done = finish(engine, run.id, fence, "gate_passed", improvement=0.04, notes="improved by 0.04")
    assert (done.status, done.improvement, done.candidate_version) == ("gate_passed", 0.04, "v1")
    assert (done.dataset_digest, done.config) == ("d1", {"epochs": 5})
    assert done.notes == "because of a\nimproved by 0.04"
    with pytest.raises(OperationNotAllowedError, match="is over: gate_passed"):
        claim(engine, settings, run.id)


def test_a_second_run_waits_notes_the_reason_once_and_is_started_later(
    engine: sa.Engine, settings: Settings
) -> None:
    first, second = request(engine, "a"), request(engine, "b")
    fence = claim(engine, settings, first.id)
    assert fence is not None
    for _ in range(3):
        assert claim(engine, settings, second.id, "run-b") is None
    waiting = current(engine, second.id)
    assert (waiting.status, waiting.attempt, waiting.fence) == ("waiting", 0, 0)
    assert waiting.notes == f"because of b\nwaits: training run {first.id} is running"
    finish(engine, first.id, fence, "gate_failed")
    assert queue(engine, settings) == [second.id]
    assert claim(engine, settings, second.id, "run-b") == 1


def test_concurrent_claims_start_one_run(engine: sa.Engine, settings: Settings) -> None:
    ids = [request(engine, key).id for key in "abcd"]
    together = threading.Barrier(len(ids))
    fences: list[int | None] = []

    def claim_row(run_id: int) -> None:
        together.wait()
        fences.append(claim(engine, settings, run_id, f"run-{run_id}"))

    threads = [threading.Thread(target=claim_row, args=(run_id,)) for run_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fences, key=str) == [1, None, None, None]
    assert sorted(current(engine, run_id).status for run_id in ids) == [
        "running",
        "waiting",
        "waiting",
        "waiting",
    ]


def test_a_claim_waits_for_a_concurrent_claim(engine: sa.Engine, settings: Settings) -> None:
    first, second = request(engine, "a"), request(engine, "b")
    fences: list[int | None] = []
    other = threading.Thread(target=lambda: fences.append(claim(engine, settings, second.id, "run-b")))
    with engine.begin() as conn:
        assert runs.claim_run(conn, first.id, "run-a", settings) == 1
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
    other.join()
    assert fences == [None]
    assert current(engine, second.id).status == "waiting"


def test_a_live_rollout_makes_a_run_wait(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v2", "v1", status="canary")
        rollout = conn.execute(
            t.rollouts.insert().values(candidate="v2", production="v1").returning(t.rollouts.c.id)
        ).scalar_one()
    assert claim(engine, settings, run.id) is None
    assert (current(engine, run.id).notes or "").endswith(f"waits: rollout {rollout} is live")
    with engine.begin() as conn:
        conn.execute(t.rollouts.update().values(state="completed"))
    assert claim(engine, settings, run.id) == 1


def test_an_emergency_goes_first(engine: sa.Engine, settings: Settings) -> None:
    usual, urgent = request(engine, "usual"), request(engine, "urgent", emergency=True)
    assert queue(engine, settings) == [urgent.id, usual.id]
    assert claim(engine, settings, usual.id) is None
    assert claim(engine, settings, urgent.id, "run-u") == 1


def test_an_emergency_that_waits_goes_first_as_well(engine: sa.Engine, settings: Settings) -> None:
    first, usual = request(engine, "first"), request(engine, "usual")
    urgent = request(engine, "urgent", emergency=True)
    other = request(engine, "other", emergency=True)
    assert claim(engine, settings, urgent.id, "run-u") == 1
    assert claim(engine, settings, other.id, "run-o") is None
    assert current(engine, other.id).status == "waiting"
    finish(engine, urgent.id, 1, "gate_failed")
    assert claim(engine, settings, usual.id) is None and claim(engine, settings, first.id) is None
    assert f"the emergency of training run {other.id} goes first" in (current(engine, usual.id).notes or "")
    assert claim(engine, settings, other.id, "run-o") == 1


def test_a_run_that_was_dispatched_again_cannot_be_claimed_by_the_former_dispatch(
    engine: sa.Engine, settings: Settings
) -> None:
    run = request(engine, "a")
    with engine.begin() as conn:
        assert run_queue.claim_dispatch(conn, run.id, 0) is not None
        assert run_queue.claim_dispatch(conn, run.id, 0) is None  # another process has it
        with pytest.raises(OperationNotAllowedError, match="dispatch 0 of training run"):
            runs.claim_run(conn, run.id, "run-a", settings, dispatch=0)
        assert runs.claim_run(conn, run.id, "run-a", settings, dispatch=1) == 1


def test_a_failed_attempt_retries_the_same_row_three_times(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    for attempt in (1, 2, 3):
        fence = claim(engine, settings, run.id, f"run-{attempt}")
        assert fence == attempt
        assert finish(engine, run.id, fence, "failed", error="no space").attempt == attempt
        assert queue(engine, settings) == ([] if attempt == 3 else [run.id])
    with pytest.raises(OperationNotAllowedError, match="used its 3 attempts: no space"):
        claim(engine, settings, run.id)


def test_only_the_dagster_run_of_a_running_attempt_may_claim_it_again(
    engine: sa.Engine, settings: Settings
) -> None:
    run = request(engine, "a")
    assert claim(engine, settings, run.id, "run-a") == 1
    with pytest.raises(OperationNotAllowedError, match="already running in Dagster run run-a"):
        claim(engine, settings, run.id, "run-b")
    assert claim(engine, settings, run.id, "run-a") == 2


def test_an_old_fence_is_rejected_everywhere(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    old = claim(engine, settings, run.id, "run-a")
    new = claim(engine, settings, run.id, "run-a")
    assert old is not None and new is not None
    with engine.begin() as conn:
        assert not runs.holds_fence(conn, run.id, old)
        assert runs.holds_fence(conn, run.id, new)
        for forbidden in (
            lambda: runs.heartbeat(conn, run.id, old),
            lambda: runs.update_run(conn, run.id, old, dataset_digest="x"),
            lambda: runs.finish_run(conn, run.id, old, "gate_passed"),
        ):
            with pytest.raises(StaleFenceError, match=f"training run {run.id}, fence {old}"):
                forbidden()
        assert not runs.mark_stalled(conn, run.id, old, "silent")
        runs.heartbeat(conn, run.id, new)
    assert current(engine, run.id).status == "running"
    with engine.begin() as conn:
        assert runs.mark_stalled(conn, run.id, new, "silent")
        assert not runs.holds_fence(conn, run.id, new) and not runs.holds_fence(conn, run.id, new + 1)
        assert not runs.mark_stalled(conn, run.id, new + 1, "silent")  # it is over
        # Its fence stays void, whatever becomes of the row.
        t_runs = t.phase4_training_runs
        conn.execute(t_runs.update().where(t_runs.c.id == run.id).values(status="running"))
        assert not runs.holds_fence(conn, run.id, new)


def test_an_attempt_without_heartbeats_is_stalled_and_the_row_is_retried(
    engine: sa.Engine, settings: Settings
) -> None:
    stalled, following = request(engine, "dead"), request(engine, "next")
    old_fence = claim(engine, settings, stalled.id, "run-a")
    assert old_fence is not None
    timeout = settings.training.heartbeat_timeout_seconds
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(seconds=timeout - 30))
    assert claim(engine, settings, following.id, "run-n") is None
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(seconds=60))
    assert claim(engine, settings, following.id, "run-n") == 1
    stalled_row = current(engine, stalled.id)
    assert stalled_row.status == "failed"
    assert "no heartbeat for" in (stalled_row.error or "")
    with engine.begin() as conn, pytest.raises(StaleFenceError):
        runs.finish_run(conn, stalled.id, old_fence, "gate_passed")
    assert queue(engine, settings) == [stalled.id]


def test_a_fast_platform_clock_does_not_make_a_live_worker_look_stalled(
    engine: sa.Engine, settings: Settings
) -> None:
    living, other = request(engine, "living"), request(engine, "other")
    with engine.begin() as conn:
        set_clock(conn, rate=100_000.0)
    assert claim(engine, settings, living.id, "run-a") == 1
    time.sleep(0.1)
    assert claim(engine, settings, other.id, "run-b") is None
    assert current(engine, living.id).status == "running"


def test_heartbeats_are_sent_in_the_background(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    fence = claim(engine, settings, run.id)
    assert fence is not None
    before = current(engine, run.id).heartbeat_at
    assert before is not None

    def has_new_heartbeat() -> bool:
        after = current(engine, run.id).heartbeat_at
        return after is not None and after > before

    with runs.heartbeat_loop(engine, run.id, fence, interval_seconds=0.02):
        _until(has_new_heartbeat)
    with pytest.raises(StaleFenceError), runs.heartbeat_loop(engine, run.id, fence, interval_seconds=0.02):
        claim(engine, settings, run.id)
        _until(
            lambda: not [thread for thread in threading.enumerate() if thread.name == f"heartbeat-{run.id}"]
        )


def test_an_outcome_recorded_in_the_block_is_no_lost_fence(engine: sa.Engine, settings: Settings) -> None:
    """The heartbeat may come between the outcome and the end of the block."""
    run = request(engine, "a")
    fence = claim(engine, settings, run.id)
    assert fence is not None
    with runs.heartbeat_loop(engine, run.id, fence, interval_seconds=0.02):
        with engine.begin() as conn:
            runs.finish_run(conn, run.id, fence, "gate_passed")
        _until(
            lambda: not [thread for thread in threading.enumerate() if thread.name == f"heartbeat-{run.id}"]
        )


def test_the_first_heartbeat_is_immediate_and_several_fit_into_the_timeout(
    engine: sa.Engine, settings: Settings
) -> None:
    run = request(engine, "a")
    fence = claim(engine, settings, run.id)
    assert fence is not None
    before = current(engine, run.id).heartbeat_at
    with runs.heartbeat_loop(engine, run.id, fence, interval_seconds=3600):
        _until(lambda: current(engine, run.id).heartbeat_at != before)
    assert runs.heartbeat_interval(900) == 20
    assert runs.heartbeat_interval(10) == 2


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def test_invalid_records_are_rejected(engine: sa.Engine, settings: Settings) -> None:
    run = request(engine, "a")
    fence = claim(engine, settings, run.id)
    assert fence is not None
    with engine.begin() as conn:
        with pytest.raises(InputError, match="there is no training run 999"):
            runs.get_run(conn, 999)
        with pytest.raises(ValueError, match="not an outcome"):
            runs.finish_run(conn, run.id, fence, "running")
        with pytest.raises(ValueError, match="no status to record"):
            runs.update_run(conn, run.id, fence, status="failed")
        assert runs.get_by_trigger_key(conn, "manual:a") is not None
        assert runs.get_by_trigger_key(conn, "manual:b") is None

"""Whose turn it is to retrain: emergencies first, one at a time, nothing twice and nothing lost (T6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.registry.training_runs import RunningAttempt
from iccm_assets.retraining.scheduling import (
    ActiveRollout,
    DagsterRunState,
    QueuedRun,
    QueueState,
    StartRun,
    WaitDecision,
    choose_next_run,
    find_canceled,
    find_failed_before_claim,
    find_stalled_attempt,
    find_stuck_in_queue,
)
from iccm_assets.settings import TriggerSettings

T = TriggerSettings()
CLAIM = 900.0
RUNNING = RunningAttempt(3, 1, "run-c", 0.0)


def turn(number: int = 1, status: str = "requested", **given_: object) -> QueuedRun:
    values = {"attempt": 0, "dispatch": 0, "emergency": False, "idle_seconds": 1e6}
    return QueuedRun(id=number, status=status, **{**values, **given_})


def decide(*turns: QueuedRun, running=None, rollout=None, seen=None) -> StartRun | WaitDecision:
    return choose_next_run(QueueState(turns, running, rollout), seen or {}, T, CLAIM)


def test_a_requested_row_is_started() -> None:
    decision = decide(turn(4, "waiting", dispatch=2))
    assert (decision.id, decision.dispatch, decision.attempt, decision.abort_rollout_id) == (4, 2, 1, None)


@pytest.mark.parametrize(
    ("turns", "context", "words"),
    [
        ((), {}, "no training run is waiting"),
        ((turn(),), {"running": RUNNING}, "training run 3 is running, 1 more to follow"),
        ((turn(),), {"rollout": ActiveRollout(8, 1)}, "training run 1: rollout 8 is live, stage 1"),
        (
            (turn(emergency=True),),
            {"rollout": ActiveRollout(8, 3)},
            "an emergency: rollout 8 is live, stage 3",
        ),
        ((turn(emergency=True),), {"running": RUNNING}, "training run 3 is running"),
        ((turn(dispatch=1, dispatched_seconds=40.0),), {}, "is not there yet, 40 of 300 s"),
        (
            (turn(dispatch=1, dispatched_seconds=4000.0),),
            {"seen": {1: DagsterRunState("r", "queued", 1e6, 1)}},
            "its Dagster run r is queued",
        ),
        (
            (turn(dispatch=1, dispatched_seconds=4000.0),),
            {"seen": {1: DagsterRunState("r", "started", 60, 1)}},
            "its Dagster run r is started",
        ),
        ((turn(status="failed", attempt=1, idle_seconds=60.0),), {}, "attempt 2 follows, 60 of 300 s"),
        ((turn(status="failed", attempt=3),), {}, "no training run is waiting"),
    ],
)
def test_what_waits_says_for_what(turns: tuple[QueuedRun, ...], context: dict, words: str) -> None:
    decision = decide(*turns, **context)
    assert isinstance(decision, WaitDecision)
    assert words in decision.reason


@pytest.mark.parametrize("stage", [1, 2])
def test_an_emergency_ends_a_rollout_at_stage_1_or_2(stage: int) -> None:
    decision = decide(turn(5, emergency=True), rollout=ActiveRollout(8, stage))
    assert (decision.id, decision.abort_rollout_id) == (5, 8)


@pytest.mark.parametrize(
    ("seen", "zombie"),
    [
        ({}, None),
        ({1: DagsterRunState("r", "succeeded", 5, 2)}, None),
        ({1: DagsterRunState("r", "failed", 5, 2)}, None),
        ({1: DagsterRunState("r", "created", 301, 2)}, "r"),
        ({1: DagsterRunState("r", "started", 901, 2)}, "r"),
    ],
)
def test_a_run_that_has_come_to_nothing_is_started_again(
    seen: dict[int, DagsterRunState], zombie: str
) -> None:
    decision = decide(turn(dispatch=2, dispatched_seconds=301.0), seen=seen)
    assert isinstance(decision, StartRun)
    assert (decision.dispatch, decision.stale_run_id) == (2, zombie)


def test_a_run_dagster_has_just_made_is_no_older_than_its_dispatch_whatever_the_daemons_clock_says() -> None:
    made = DagsterRunState("r", "created", 1e7, 2)
    decision = decide(turn(dispatch=2, dispatched_seconds=1.0), seen={1: made})
    assert isinstance(decision, WaitDecision) and decision.reason.endswith("its Dagster run r is created")


def test_a_run_that_is_queued_for_over_an_hour_waits_on_and_is_told_of() -> None:
    queued = {1: DagsterRunState("r", "queued", 5.0, 2), 2: DagsterRunState("s", "started", 1e6, 1)}
    turns = [turn(1, dispatch=2, dispatched_seconds=3601.0), turn(2, dispatch=1, dispatched_seconds=1e6)]
    [one] = find_stuck_in_queue(turns, queued)
    assert (one.id, one.run_id, one.reason) == (1, "r", "queued for 60 min")
    assert isinstance(decide(turns[0], seen=queued), WaitDecision)
    assert find_stuck_in_queue([turn(1, dispatch=2, dispatched_seconds=3600.0)], queued) == []


def test_what_dagster_said_of_an_older_dispatch_says_nothing_about_the_newest() -> None:
    decision = decide(
        turn(dispatch=2, dispatched_seconds=1.0), seen={1: DagsterRunState("r", "failed", 5, 1)}
    )
    assert isinstance(decision, WaitDecision)


def test_an_emergency_goes_ahead_of_a_run_that_was_started_and_has_not_claimed_yet() -> None:
    ordinary = turn(1, dispatch=1, dispatched_seconds=10.0)
    decision = decide(turn(2, emergency=True), ordinary, seen={1: DagsterRunState("r", "queued", 5, 1)})
    assert decision.id == 2


STATES = st.sampled_from(["created", "queued", "started", "succeeded", "failed", "canceled"])
TURNS = st.lists(
    st.builds(
        QueuedRun,
        id=st.integers(1, 50),
        status=st.sampled_from(["requested", "waiting", "failed"]),
        attempt=st.integers(0, 4),
        dispatch=st.integers(0, 3),
        emergency=st.booleans(),
        idle_seconds=st.floats(0, 1000),
        dispatched_seconds=st.none() | st.floats(0, 1000),
    ),
    max_size=6,
    unique_by=lambda one: one.id,
).map(lambda found: sorted(found, key=lambda one: (not one.emergency, one.status == "failed", one.id)))


@given(
    TURNS,
    st.none() | st.just(RUNNING),
    st.none() | st.builds(ActiveRollout, st.integers(1, 9), st.integers(1, 3)),
    st.dictionaries(
        st.integers(1, 50),
        st.builds(DagsterRunState, st.just("r"), STATES, st.floats(0, 2000), st.integers(0, 3)),
    ),
)
def test_no_start_ever_breaks_the_rules(turns, running, rollout, seen) -> None:
    decision = choose_next_run(QueueState(turns, running, rollout), seen, T, CLAIM)
    if isinstance(decision, WaitDecision):
        assert decision.reason
        return
    started = next(one for one in turns if one.id == decision.id)
    assert running is None
    assert decision.attempt == started.attempt + 1
    assert started.status != "failed" or decision.attempt <= T.max_attempts
    assert not any(one.emergency for one in turns if one.status != "failed") or started.emergency
    if rollout is not None:
        assert started.emergency and rollout.stage <= 2 and decision.abort_rollout_id == rollout.id
    run = seen.get(started.id)
    if run is not None and run.dispatch == started.dispatch and started.dispatched_seconds is not None:
        assert run.state != "queued"


ALIVE = RunningAttempt(7, 3, "run-a", 10.0)


@pytest.mark.parametrize(
    ("running", "seen", "lost"),
    [
        (None, None, None),
        (ALIVE, None, None),
        (ALIVE, DagsterRunState("run-a", "started"), None),
        (ALIVE, DagsterRunState("run-a", "failed"), ("its Dagster run run-a has failed", None)),
        (ALIVE, DagsterRunState("run-a", "succeeded"), ("its Dagster run run-a has ended", None)),
        (ALIVE, DagsterRunState("run-a", "canceled"), ("its Dagster run run-a has been canceled", None)),
        (RunningAttempt(7, 3, "run-a", 901.0), None, ("no heartbeat for 901 s", None)),
        (
            RunningAttempt(7, 3, "run-a", 901.0),
            DagsterRunState("run-a", "started"),
            ("its worker died", "run-a"),
        ),
    ],
)
def test_an_attempt_is_lost_when_its_run_is_over_or_its_heart_has_stopped(running, seen, lost) -> None:
    found = find_stalled_attempt(running, seen, 900.0)
    if lost is None:
        assert found is None
    else:
        assert lost[0] in found.reason and found.stale_run_id == lost[1]
        assert (found.id, found.fence) == (7, 3)


def test_a_run_that_failed_unclaimed_uses_an_attempt_up_and_a_canceled_one_is_called_off() -> None:
    claimed_by_d = {"dagster_run_id": "d", "dispatch": 1}
    turns = [
        turn(1, dispatch=1),
        turn(2, "waiting", dispatch=1),
        turn(3, "failed", attempt=1, dagster_run_id="an older one", dispatch=2),
        turn(4, "failed", attempt=1, **claimed_by_d),
        turn(5, dispatch=1),
        turn(6, dispatch=2),
    ]
    seen = {
        1: DagsterRunState("a", "failed", dispatch=1),
        2: DagsterRunState("b", "canceled", dispatch=1),
        3: DagsterRunState("c", "failed", dispatch=2),
        4: DagsterRunState("d", "failed", dispatch=1),
        5: DagsterRunState("e", "started", dispatch=1),
        6: DagsterRunState("f", "failed", dispatch=1),
    }
    assert [(one.id, one.run_id) for one in find_failed_before_claim(turns, seen)] == [(1, "a"), (3, "c")]
    assert [(one.id, one.run_id) for one in find_canceled(turns, seen)] == [(2, "b")]

"""Which training run starts next: emergencies first, one at a time, none twice and none lost (T6)."""

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


def queued_run(number: int = 1, status: str = "requested", **changes: object) -> QueuedRun:
    values = {"attempt": 0, "dispatch": 0, "emergency": False, "idle_seconds": 1e6}
    return QueuedRun(id=number, status=status, **{**values, **changes})


def decide(*queued_runs: QueuedRun, running=None, rollout=None, dagster_runs=None) -> StartRun | WaitDecision:
    return choose_next_run(QueueState(queued_runs, running, rollout), dagster_runs or {}, T, CLAIM)


def test_a_requested_row_is_started() -> None:
    decision = decide(queued_run(4, "waiting", dispatch=2))
    assert (decision.id, decision.dispatch, decision.attempt, decision.abort_rollout_id) == (4, 2, 1, None)


@pytest.mark.parametrize(
    ("queued_runs", "context", "words"),
    [
        ((), {}, "no training run is waiting"),
        ((queued_run(),), {"running": RUNNING}, "training run 3 is running, 1 more to follow"),
        ((queued_run(),), {"rollout": ActiveRollout(8, 1)}, "training run 1: rollout 8 is live, stage 1"),
        (
            (queued_run(emergency=True),),
            {"rollout": ActiveRollout(8, 3)},
            "an emergency: rollout 8 is live, stage 3",
        ),
        ((queued_run(emergency=True),), {"running": RUNNING}, "training run 3 is running"),
        ((queued_run(dispatch=1, dispatched_seconds=40.0),), {}, "is not there yet, 40 of 300 s"),
        (
            (queued_run(dispatch=1, dispatched_seconds=4000.0),),
            {"dagster_runs": {1: DagsterRunState("r", "queued", 1e6, 1)}},
            "its Dagster run r is queued",
        ),
        (
            (queued_run(dispatch=1, dispatched_seconds=4000.0),),
            {"dagster_runs": {1: DagsterRunState("r", "started", 60, 1)}},
            "its Dagster run r is started",
        ),
        ((queued_run(status="failed", attempt=1, idle_seconds=60.0),), {}, "attempt 2 follows, 60 of 300 s"),
        ((queued_run(status="failed", attempt=3),), {}, "no training run is waiting"),
    ],
)
def test_a_waiting_run_states_its_reason(
    queued_runs: tuple[QueuedRun, ...], context: dict, words: str
) -> None:
    decision = decide(*queued_runs, **context)
    assert isinstance(decision, WaitDecision)
    assert words in decision.reason


@pytest.mark.parametrize("stage", [1, 2])
def test_an_emergency_aborts_a_rollout_at_stage_1_or_2(stage: int) -> None:
    decision = decide(queued_run(5, emergency=True), rollout=ActiveRollout(8, stage))
    assert (decision.id, decision.abort_rollout_id) == (5, 8)


@pytest.mark.parametrize(
    ("dagster_runs", "stale_run_id"),
    [
        ({}, None),
        ({1: DagsterRunState("r", "succeeded", 5, 2)}, None),
        ({1: DagsterRunState("r", "failed", 5, 2)}, None),
        ({1: DagsterRunState("r", "created", 301, 2)}, "r"),
        ({1: DagsterRunState("r", "started", 901, 2)}, "r"),
    ],
)
def test_a_row_whose_dagster_run_ended_or_never_started_is_dispatched_again(
    dagster_runs: dict[int, DagsterRunState], stale_run_id: str
) -> None:
    decision = decide(queued_run(dispatch=2, dispatched_seconds=301.0), dagster_runs=dagster_runs)
    assert isinstance(decision, StartRun)
    assert (decision.dispatch, decision.stale_run_id) == (2, stale_run_id)


def test_a_created_run_is_no_older_than_its_dispatch_despite_the_daemons_clock() -> None:
    created = DagsterRunState("r", "created", 1e7, 2)
    decision = decide(queued_run(dispatch=2, dispatched_seconds=1.0), dagster_runs={1: created})
    assert isinstance(decision, WaitDecision) and decision.reason.endswith("its Dagster run r is created")


def test_a_run_that_is_queued_for_over_an_hour_keeps_waiting_and_is_reported() -> None:
    queued = {1: DagsterRunState("r", "queued", 5.0, 2), 2: DagsterRunState("s", "started", 1e6, 1)}
    queued_runs = [
        queued_run(1, dispatch=2, dispatched_seconds=3601.0),
        queued_run(2, dispatch=1, dispatched_seconds=1e6),
    ]
    [stuck] = find_stuck_in_queue(queued_runs, queued)
    assert (stuck.id, stuck.run_id, stuck.reason) == (1, "r", "queued for 60 min")
    assert isinstance(decide(queued_runs[0], dagster_runs=queued), WaitDecision)
    assert find_stuck_in_queue([queued_run(1, dispatch=2, dispatched_seconds=3600.0)], queued) == []


def test_the_state_of_an_older_dispatch_does_not_count_for_the_newest() -> None:
    decision = decide(
        queued_run(dispatch=2, dispatched_seconds=1.0), dagster_runs={1: DagsterRunState("r", "failed", 5, 1)}
    )
    assert isinstance(decision, WaitDecision)


def test_an_emergency_overtakes_a_dispatched_run_that_has_not_claimed_its_row() -> None:
    ordinary = queued_run(1, dispatch=1, dispatched_seconds=10.0)
    decision = decide(
        queued_run(2, emergency=True), ordinary, dagster_runs={1: DagsterRunState("r", "queued", 5, 1)}
    )
    assert decision.id == 2


STATES = st.sampled_from(["created", "queued", "started", "succeeded", "failed", "canceled"])
QUEUED_RUNS = st.lists(
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
    unique_by=lambda run: run.id,
).map(lambda runs: sorted(runs, key=lambda run: (not run.emergency, run.status == "failed", run.id)))


@given(
    QUEUED_RUNS,
    st.none() | st.builds(RunningAttempt, st.integers(1, 9), st.just(1), st.just("run-c"), st.just(0.0)),
    st.none() | st.builds(ActiveRollout, st.integers(1, 9), st.integers(1, 3)),
    st.dictionaries(
        st.integers(1, 50),
        st.builds(DagsterRunState, st.just("r"), STATES, st.floats(0, 2000), st.integers(0, 3)),
    ),
)
def test_no_start_breaks_the_rules(queued_runs, running, rollout, dagster_runs) -> None:
    decision = choose_next_run(QueueState(queued_runs, running, rollout), dagster_runs, T, CLAIM)
    if isinstance(decision, WaitDecision):
        assert decision.reason
        return
    started = next(queued for queued in queued_runs if queued.id == decision.id)
    assert running is None
    assert decision.attempt == started.attempt + 1
    assert started.status != "failed" or decision.attempt <= T.max_attempts
    assert (
        not any(queued.emergency for queued in queued_runs if queued.status != "failed") or started.emergency
    )
    if rollout is not None:
        assert started.emergency and rollout.stage <= 2 and decision.abort_rollout_id == rollout.id
    run = dagster_runs.get(started.id)
    if run is not None and run.dispatch == started.dispatch and started.dispatched_seconds is not None:
        assert run.state != "queued"


ALIVE = RunningAttempt(7, 3, "run-a", 10.0)


@pytest.mark.parametrize(
    ("running", "dagster_run", "expected"),
    [
        (None, None, None),
        (ALIVE, None, None),
        (ALIVE, DagsterRunState("run-a", "started", 5.0, 1), None),
        (ALIVE, DagsterRunState("run-a", "failed", 5.0, 1), ("its Dagster run run-a has failed", None)),
        (ALIVE, DagsterRunState("run-a", "succeeded", 5.0, 1), ("its Dagster run run-a has ended", None)),
        (
            ALIVE,
            DagsterRunState("run-a", "canceled", 5.0, 1),
            ("its Dagster run run-a has been canceled", None),
        ),
        (RunningAttempt(7, 3, "run-a", 901.0), None, ("no heartbeat for 901 s", None)),
        (
            RunningAttempt(7, 3, "run-a", 901.0),
            DagsterRunState("run-a", "started", 5.0, 1),
            ("its worker died", "run-a"),
        ),
    ],
)
def test_an_attempt_is_stalled_when_its_run_has_ended_or_its_heartbeat_stopped(
    running, dagster_run, expected
) -> None:
    stalled = find_stalled_attempt(running, dagster_run, 900.0)
    if expected is None:
        assert stalled is None
    else:
        assert expected[0] in stalled.reason and stalled.stale_run_id == expected[1]
        assert (stalled.id, stalled.fence) == (7, 3)


def test_a_run_that_failed_before_its_claim_uses_up_an_attempt_and_a_canceled_one_is_skipped() -> None:
    claimed_by_d = {"dagster_run_id": "d", "dispatch": 1}
    queued_runs = [
        queued_run(1, dispatch=1),
        queued_run(2, "waiting", dispatch=1),
        queued_run(3, "failed", attempt=1, dagster_run_id="an older one", dispatch=2),
        queued_run(4, "failed", attempt=1, **claimed_by_d),
        queued_run(5, dispatch=1),
        queued_run(6, dispatch=2),
    ]
    dagster_runs = {
        1: DagsterRunState("a", "failed", 5.0, 1),
        2: DagsterRunState("b", "canceled", 5.0, 1),
        3: DagsterRunState("c", "failed", 5.0, 2),
        4: DagsterRunState("d", "failed", 5.0, 1),
        5: DagsterRunState("e", "started", 5.0, 1),
        6: DagsterRunState("f", "failed", 5.0, 1),
    }
    assert [
        (outcome.id, outcome.run_id) for outcome in find_failed_before_claim(queued_runs, dagster_runs)
    ] == [(1, "a"), (3, "c")]
    assert [(outcome.id, outcome.run_id) for outcome in find_canceled(queued_runs, dagster_runs)] == [
        (2, "b")
    ]


@pytest.mark.parametrize(
    ("queued", "run", "starts"),
    [
        (queued_run(dispatch=1, dispatched_seconds=299.0), None, False),
        (queued_run(dispatch=1, dispatched_seconds=300.0), None, True),
        (queued_run(dispatch=1, dispatched_seconds=300.0), ("created", 0.0), False),
        (queued_run(dispatch=1, dispatched_seconds=301.0), ("created", 0.0), True),
        (queued_run(dispatch=1, dispatched_seconds=1e6), ("started", CLAIM), False),
        (queued_run(dispatch=1, dispatched_seconds=1e6), ("started", CLAIM + 1), True),
        (queued_run(status="failed", attempt=1, idle_seconds=299.0), None, False),
        (queued_run(status="failed", attempt=1, idle_seconds=300.0), None, True),
        (queued_run(status="failed", attempt=T.max_attempts - 1), None, True),
        (queued_run(status="failed", attempt=T.max_attempts), None, False),
        (queued_run(idle_seconds=0.0), None, True),
    ],
)
def test_a_start_waits_exactly_as_long_as_its_limits(queued, run, starts) -> None:
    dagster_runs = {1: DagsterRunState("r", *run, dispatch=1)} if run else {}
    assert isinstance(decide(queued, dagster_runs=dagster_runs), StartRun) == starts


def test_a_heartbeat_is_late_after_its_timeout() -> None:
    assert find_stalled_attempt(RunningAttempt(7, 3, "run-a", 900.0), None, 900.0) is None
    assert find_stalled_attempt(RunningAttempt(7, 3, "run-a", 900.1), None, 900.0) is not None

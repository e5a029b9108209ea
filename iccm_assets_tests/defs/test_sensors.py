"""The sensors on a real Dagster instance and a real PostgreSQL: one run per cause, and nothing lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import StepFailureData

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, set_clock
from iccm_assets.defs import resources
from iccm_assets.defs.automation.jobs import retrain_job  # noqa: F401  (the sensors' target)
from iccm_assets.defs.automation.sensors import (
    new_data_threshold_sensor,
    quality_degradation_sensor,
    retrain_dispatch_sensor,
)
from iccm_assets.registry import training_runs
from iccm_assets.retraining import run_queue, trigger_evaluation, triggers
from iccm_assets.rollout.policy import Policy
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.platform_rows import conversation, training_run, version

AT_FOUR = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def at_four(engine: sa.Engine) -> None:
    """The platform's clock says Monday, 04:00 UTC."""
    set_time(engine, AT_FOUR)


def set_time(engine: sa.Engine, timestamp: datetime) -> None:
    with engine.begin() as conn:
        set_clock(conn, shift=timestamp - now(conn))


def pass_time(engine: sa.Engine, **length: float) -> None:
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(**length))


def tick(
    sensor: dg.SensorDefinition, platform: resources.PlatformResource, instance: dg.DagsterInstance
) -> list[dg.RunRequest] | str:
    """The run requests of a tick, or the reason it was skipped."""
    with dg.build_sensor_context(instance=instance, resources={"platform": platform}) as context:
        result = sensor.evaluate_tick(context)
    return result.skip_message or list(result.run_requests or [])


def launch(
    instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus
) -> dg.DagsterRun:
    """What the daemon makes of a run request, as far as asked."""
    run = instance.create_run_for_job(empty_job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)
    if status == dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(run)
    elif status == dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)
    return instance.get_run_by_id(run.run_id)


@dg.job
def empty_job() -> None:
    pass


def rows(engine: sa.Engine) -> list[sa.Row]:
    with engine.connect() as conn:
        return list(conn.execute(sa.select(t.phase4_training_runs).order_by(t.phase4_training_runs.c.id)))


def fill(engine: sa.Engine, examples: int) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        for number in range(1, examples + 1):
            conversation(conn, number, user=f"u{number % 40}", at=AT_FOUR - timedelta(days=1))


def measured(engine: sa.Engine, mean: float, *, name: str = "canary_set", **values: object) -> int:
    row = {"n": 240, "standard_error": 0.01, "baseline_mean": 0.85, **values}
    with engine.begin() as conn:
        return conn.execute(
            t.quality_measurements.insert()
            .values(version="v1", set=name, mean=mean, judge_version="1", **row)
            .returning(t.quality_measurements.c.id)
        ).scalar_one()


def ask(engine: sa.Engine, key: str, *, emergency: bool = False) -> int:
    with engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger(key, "asked", emergency))
    assert run is not None
    return run.id


def live_rollout(engine: sa.Engine, stage: int) -> int:
    with engine.begin() as conn:
        version(conn, "v2", "v1", status="canary" if stage < 3 else "production")
        return conn.execute(
            t.rollouts.insert()
            .values(
                candidate="v2",
                production="v1",
                stage=stage,
                state="baking" if stage == 3 else "ramping",
                weight={1: 0.1, 2: 0.5, 3: 1.0}[stage],
                policy=asdict(Policy.from_settings(get_settings().rollout, get_settings().evaluation)),
            )
            .returning(t.rollouts.c.id)
        ).scalar_one()


# T3


def test_a_hundred_examples_start_exactly_one_retrain_a_day(engine, platform, instance) -> None:
    fill(engine, 120)
    [request] = tick(new_data_threshold_sensor, platform, instance)
    [row] = rows(engine)
    assert (row.trigger, row.trigger_key, row.status) == (
        "data_threshold",
        "data_threshold:2026-03-02",
        "requested",
    )
    assert request.run_key == f"training-run-{row.id}-attempt-1-dispatch-1"
    assert request.tags["iccm/training_run_id"] == str(row.id)
    assert "already has a retraining" in tick(new_data_threshold_sensor, platform, instance)
    assert len(rows(engine)) == 1


def test_with_fewer_the_skip_says_how_many(engine, platform, instance) -> None:
    fill(engine, 41)
    assert tick(new_data_threshold_sensor, platform, instance) == "41 of 100 new examples"
    assert rows(engine) == []


def test_the_skip_says_what_the_cap_on_a_users_share_leaves(engine, platform, instance) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        for number in range(1, 121):
            user = "busy" if number > 28 else f"u{number % 7}"
            conversation(conn, number, user=user, at=AT_FOUR - timedelta(days=1))
    assert tick(new_data_threshold_sensor, platform, instance) == (
        "37 of 100 new examples; the cap of 25% (8 users) leaves 37 of 120 rows; "
        "with 8 users the cap is wide: 25% of the examples instead of 10%"
    )


def test_before_three_it_does_not_look(engine, platform, instance) -> None:
    fill(engine, 120)
    set_time(engine, AT_FOUR.replace(hour=2, minute=59))
    assert tick(new_data_threshold_sensor, platform, instance) == "02:59 UTC, runs from 03:00 on"


def ticks_at_once(sensor, platform, instance) -> list[list[dg.RunRequest] | str]:
    """What four daemons that look at the same moment are told."""
    together = threading.Barrier(4)

    def look(_: int) -> list[dg.RunRequest] | str:
        together.wait()
        return tick(sensor, platform, instance)

    with ThreadPoolExecutor(4) as daemons:
        return list(daemons.map(look, range(4)))


def test_two_daemons_that_look_at_once_start_one_run(engine, platform, instance) -> None:
    fill(engine, 120)
    outcomes = ticks_at_once(new_data_threshold_sensor, platform, instance)
    assert sum(len(outcome) for outcome in outcomes if isinstance(outcome, list)) == 1
    assert len(outcomes) == 4 and len(rows(engine)) == 1


@pytest.mark.parametrize("window", [3, 7, 30])
def test_counting_in_the_database_is_counting_the_examples(engine, window: int) -> None:
    from iccm_assets.retraining import example_queries

    settings = get_settings().selection.model_copy(update={"window_days": window})
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        for number in range(1, 61):
            user = None if number % 3 == 0 else f"u{number % 4}"
            conversation(conn, number, user=user, at=AT_FOUR - timedelta(days=number % 12))
        training_run(
            conn, 1, "v1", examples=dict.fromkeys(range(1, 9), "new"), trained_at=AT_FOUR - timedelta(days=5)
        )
        counted = example_queries.count_selectable(conn, AT_FOUR, settings)
        assert counted == example_queries.propose_selection(conn, AT_FOUR, settings).fair_share
        assert counted.size > 0


# T2


def test_a_proven_fall_starts_one_emergency_with_an_alert(engine, platform, instance) -> None:
    fill(engine, 1)
    first = measured(engine, 0.7)
    measured(engine, 0.6, name="production_holdout")
    [request] = tick(quality_degradation_sensor, platform, instance)
    assert request.tags["dagster/priority"] == "10"
    [row] = rows(engine)
    assert (row.trigger, row.trigger_key, row.emergency) == ("degradation", f"degradation:{first}", True)
    with engine.connect() as conn:
        [alert] = conn.execute(sa.select(t.alerts)).all()
    assert alert.severity == "critical" and "0.150 below its baseline 0.850" in alert.body
    measured(engine, 0.6)
    again = tick(quality_degradation_sensor, platform, instance)
    assert f"training run {row.id}, an emergency, is requested" in again
    assert len(rows(engine)) == 1


def test_ten_measurements_of_an_unchanged_world_start_nothing(engine, platform, instance) -> None:
    fill(engine, 1)
    for number in range(10):
        measured(engine, 0.85 - 0.004 * number)
        measured(engine, 0.82, name="production_holdout", n=60, standard_error=0.05)
        pass_time(engine, hours=6)
        message = tick(quality_degradation_sensor, platform, instance)
        assert "below its baseline 0.850" in message
    assert rows(engine) == []


def test_measurements_of_a_version_that_no_longer_serves_say_nothing(engine, platform, instance) -> None:
    fill(engine, 1)
    measured(engine, 0.3)
    with engine.begin() as conn:
        version(conn, "v2", "v1")
        conn.execute(sa.text("update iccm.model_versions set status = 'retired' where version = 'v1'"))
        conn.execute(sa.text("update iccm.model_versions set status = 'production' where version = 'v2'"))
    assert "has not been measured" in tick(quality_degradation_sensor, platform, instance)


# T6


def test_a_row_that_waits_is_started_when_the_way_is_free(engine, platform, instance) -> None:
    fill(engine, 120)
    first = ask(engine, "first")
    with engine.begin() as conn:
        fence = training_runs.claim_run(conn, first, "by hand")
    message = tick(new_data_threshold_sensor, platform, instance)
    assert message.startswith("fired: training run") and f"training run {first} is running" in message
    assert f"training run {first} is running, 1 more" in tick(retrain_dispatch_sensor, platform, instance)
    with engine.begin() as conn:
        training_runs.finish_run(conn, first, fence, "gate_failed")
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert request.job_name == "retrain_job"
    assert request.tags["iccm/training_run_id"] == str(rows(engine)[1].id)
    assert "is not there yet" in tick(retrain_dispatch_sensor, platform, instance)


def test_emergencies_go_first(engine, platform, instance) -> None:
    ask(engine, "ordinary")
    urgent = ask(engine, "urgent", emergency=True)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert request.tags["iccm/training_run_id"] == str(urgent)


def test_two_dispatchers_at_once_start_one_run(engine, platform, instance) -> None:
    ask(engine, "one")
    outcomes = ticks_at_once(retrain_dispatch_sensor, platform, instance)
    assert len(outcomes) == 4
    assert sum(len(outcome) for outcome in outcomes if isinstance(outcome, list)) == 1
    assert rows(engine)[0].dispatch == 1


def test_a_run_that_never_came_is_started_again_under_another_key(engine, platform, instance) -> None:
    ask(engine, "one")
    [lost] = tick(retrain_dispatch_sensor, platform, instance)
    pass_time(engine, seconds=301)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert (lost.run_key[-1], request.run_key[-1]) == ("1", "2")
    assert rows(engine)[0].attempt == 0


def test_the_run_of_an_older_dispatch_may_not_claim_the_row(engine, platform, instance) -> None:
    from iccm_assets.errors import OperationNotAllowedError

    row = ask(engine, "one")
    tick(retrain_dispatch_sensor, platform, instance)
    pass_time(engine, seconds=301)
    tick(retrain_dispatch_sensor, platform, instance)
    with engine.begin() as conn, pytest.raises(OperationNotAllowedError, match="dispatch 1 of training run"):
        training_runs.claim_run(conn, row, "late", dispatch=1)
    with engine.begin() as conn:
        assert training_runs.claim_run(conn, row, "on time", dispatch=2) == 1


def test_a_run_that_fails_before_it_trains_uses_its_three_attempts_up_and_is_alerted(
    engine, platform, instance
) -> None:
    row = ask(engine, "one")
    for attempt in range(1, 4):
        [request] = tick(retrain_dispatch_sensor, platform, instance)
        assert request.tags["iccm/attempt"] == str(attempt)
        launch(instance, request, dg.DagsterRunStatus.FAILURE)
        assert isinstance(tick(retrain_dispatch_sensor, platform, instance), str)
        assert (rows(engine)[0].status, rows(engine)[0].attempt) == ("failed", attempt)
        pass_time(engine, minutes=6)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"
    with engine.connect() as conn:
        [alert] = conn.execute(sa.select(t.alerts)).all()
    assert alert.key == f"training_run:{row}:failed" and "failed before training began" in alert.body


def test_a_run_that_gets_no_slot_for_an_hour_is_alerted_once_and_not_started_again(
    engine, platform, instance
) -> None:
    row = ask(engine, "one", emergency=True)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    # A queued run needs a code location it came from; to the platform one that only starts is the same.
    instance.create_run_for_job(empty_job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTING)
    for _ in range(2):
        pass_time(engine, minutes=61)
        assert tick(retrain_dispatch_sensor, platform, instance).endswith("is queued")
    with engine.connect() as conn:
        [alert] = conn.execute(sa.select(t.alerts)).all()
    assert (alert.key, alert.severity) == (f"training_run:{row}:queued", "warning")
    assert "queued for 61 min" in alert.body


def test_a_canceled_run_is_called_off_for_good(engine, platform, instance) -> None:
    ask(engine, "one")
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    launch(instance, request, dg.DagsterRunStatus.CANCELED)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"
    [row] = rows(engine)
    assert row.status == "skipped" and "was canceled" in row.notes


def test_an_attempt_whose_dagster_run_has_died_fails_and_is_retried(engine, platform, instance) -> None:
    row = ask(engine, "one")
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    run = launch(instance, request, dg.DagsterRunStatus.STARTED)
    with engine.begin() as conn:
        fence = training_runs.claim_run(conn, row, run.run_id, dispatch=1)
    assert "is running" in tick(retrain_dispatch_sensor, platform, instance)
    instance.report_run_failed(run)
    assert "attempt 2 follows" in tick(retrain_dispatch_sensor, platform, instance)
    [failed] = rows(engine)
    assert failed.status == "failed" and run.run_id in failed.error
    with engine.begin() as conn:
        assert not training_runs.holds_fence(conn, row, fence)
    pass_time(engine, minutes=6)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert request.tags["iccm/attempt"] == "2"


def test_a_silent_attempt_is_lost_and_its_dagster_run_stops_looking_alive(engine, platform, instance) -> None:
    row = ask(engine, "one")
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    run = launch(instance, request, dg.DagsterRunStatus.STARTED)
    with engine.begin() as conn:
        training_runs.claim_run(conn, row, run.run_id, dispatch=1)
    pass_time(engine, seconds=901)
    assert isinstance(tick(retrain_dispatch_sensor, platform, instance), str)
    assert "no heartbeat" in rows(engine)[0].error
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def passed(engine: sa.Engine, run: dg.DagsterRun) -> int:
    """A training run whose candidate has passed in this Dagster run, and nothing more."""
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v2", "v1")
        return training_run(conn, 1, "v2", dispatch=1, attempt=1, dagster_run_id=run.run_id)


def test_a_run_that_dies_after_its_verdict_holds_nothing_and_its_candidate_is_deployed_once(
    engine, platform, instance
) -> None:
    tags = {"iccm/training_run_id": "1", "iccm/dispatch": "1"}
    run = instance.create_run_for_job(retrain, tags=tags, status=dg.DagsterRunStatus.STARTED)
    passed(engine, run)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"
    assert not instance.get_run_by_id(run.run_id).is_finished
    long_ago(engine, instance, run)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert request.asset_selection == [dg.AssetKey("deployed_model_version")]
    assert request.run_config["ops"]["deployed_model_version"]["config"]["version"] == "v2"
    [again] = tick(retrain_dispatch_sensor, platform, instance)  # before the daemon has made the run
    assert again.run_key == request.run_key
    launch(instance, request, dg.DagsterRunStatus.STARTED)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"


def test_a_candidate_that_passed_while_a_rollout_was_live_is_deployed_when_that_has_ended(
    engine, platform, instance
) -> None:
    tags = {"iccm/training_run_id": "1", "iccm/dispatch": "1"}
    run = instance.create_run_for_job(retrain, tags=tags, status=dg.DagsterRunStatus.STARTED)
    passed(engine, run)
    with engine.begin() as conn:
        version(conn, "v3", "v1", status="canary")
        conn.execute(t.rollouts.insert().values(candidate="v3", production="v1"))
    deployment_fails(instance, run)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"
    long_ago(engine, instance, run)
    end_rollout(engine, "v3")
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert request.run_config["ops"]["deployed_model_version"]["config"]["version"] == "v2"
    again = instance.create_run_for_job(retrain, tags=request.tags, status=dg.DagsterRunStatus.STARTED)
    pass_time(engine, seconds=60)
    deployment_fails(instance, again)
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"


def test_a_verdict_against_a_version_that_no_longer_serves_deploys_nothing(
    engine, platform, instance
) -> None:
    tags = {"iccm/training_run_id": "1", "iccm/dispatch": "1"}
    run = instance.create_run_for_job(retrain, tags=tags, status=dg.DagsterRunStatus.STARTED)
    passed(engine, run)
    instance.report_run_failed(run)
    with engine.begin() as conn:
        version(conn, "v0", status="retired")
        conn.execute(
            t.gate_verdicts.insert().values(
                version="v2", production_version="v0", status="pass", canary_set_digest="c", orchestra="o",
                judge_version="1",
            )
        )  # fmt: skip
    assert tick(retrain_dispatch_sensor, platform, instance) == "no training run is waiting"


def deployment_fails(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """The run ends with its deployment's own answer."""
    data = StepFailureData(error=None, user_failure_data=None)
    event = dg.DagsterEvent(
        "STEP_FAILURE", run.job_name, step_key="deployed_model_version", event_specific_data=data
    )
    instance.report_dagster_event(event, run.run_id)
    instance.report_run_failed(run)


def end_rollout(engine: sa.Engine, candidate: str) -> None:
    with engine.begin() as conn:
        conn.execute(
            t.rollouts.update()
            .where(t.rollouts.c.candidate == candidate)
            .values(state="rolled_back", closed_at=now(conn))
        )


def test_an_attempt_that_was_given_up_does_not_keep_its_run(engine, platform, instance) -> None:
    """The daemon died between the two: the row is given up and its Dagster run still looks alive."""
    tags = {"iccm/training_run_id": "1", "iccm/dispatch": "1"}
    run = instance.create_run_for_job(retrain, tags=tags, status=dg.DagsterRunStatus.STARTED)
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        training_run(conn, 1, status="failed", dispatch=2, attempt=1, dagster_run_id=run.run_id)
    long_ago(engine, instance, run)
    tick(retrain_dispatch_sensor, platform, instance)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def long_ago(engine: sa.Engine, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """The row has not changed, and the Dagster run has been running, for an hour."""
    pass_time(engine, hours=1)
    storage = instance.run_storage
    with storage.connect() as conn:
        hour_ago = sa.text("update runs set start_time = :then, create_timestamp = :made where run_id = :run")
        then = datetime.now(UTC) - timedelta(hours=1)
        values = {"then": then.timestamp(), "made": then.replace(tzinfo=None), "run": run.run_id}
        conn.execute(hour_ago, values)


@dg.job(name="retrain_job")
def retrain() -> None:
    pass


def test_a_fast_clock_makes_no_living_attempt_look_dead(engine, platform, instance) -> None:
    row = ask(engine, "one")
    with engine.begin() as conn:
        training_runs.claim_run(conn, row, "somewhere")
        set_clock(conn, shift=timedelta(seconds=1000), rate=3600.0)
    assert "is running" in tick(retrain_dispatch_sensor, platform, instance)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_emergency_aborts_a_rollout_that_is_not_promoted_yet(engine, platform, instance, stage) -> None:
    fill(engine, 1)
    rollout = live_rollout(engine, stage)
    ordinary = ask(engine, "ordinary")
    assert f"rollout {rollout} is live" in tick(retrain_dispatch_sensor, platform, instance)
    measured(engine, 0.6)
    assert "it waits: rollout" in tick(quality_degradation_sensor, platform, instance)
    [request] = tick(retrain_dispatch_sensor, platform, instance)
    assert request.tags["iccm/training_run_id"] != str(ordinary)
    with engine.connect() as conn:
        [row] = conn.execute(sa.select(t.rollouts)).all()
        [event] = conn.execute(
            sa.select(t.deployment_events).where(t.deployment_events.c.rollout_id == rollout)
        ).all()
    assert (row.state, row.weight) == ("aborted", 0.0)
    assert (event.event_type, event.weight, event.actor) == ("aborted", 0.0, "emergency retrain")


def test_an_emergency_waits_for_a_candidate_in_bake(engine, platform, instance) -> None:
    fill(engine, 0)
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set status = 'retired'"))
    live_rollout(engine, 3)
    ask(engine, "urgent", emergency=True)
    assert "is live, stage 3" in tick(retrain_dispatch_sensor, platform, instance)


def test_a_row_requested_by_hand_is_not_started_a_second_time(engine, platform, instance) -> None:
    with engine.begin() as conn:
        training_runs.create_run(conn, triggers.manual_trigger("by hand"), dispatched=True)
    assert "is not there yet" in tick(retrain_dispatch_sensor, platform, instance)


def test_a_trigger_does_not_overtake_a_row_that_waits(engine, platform, instance) -> None:
    fill(engine, 120)
    waits = ask(engine, "first")
    message = tick(new_data_threshold_sensor, platform, instance)
    assert f"it waits: training run {waits} comes first" in message
    with engine.connect() as conn:
        assert trigger_evaluation.evaluate_data_threshold_trigger(
            conn, AT_FOUR, get_settings()
        ).reason.startswith("data_threshold:")
        assert len(run_queue.load_queue_state(conn, get_settings().triggers).queued_runs) == 2

"""What retrains by itself: two triggers that look at data and quality, and the one that starts what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.automation.jobs import retrain_job
from iccm_assets.defs.automation.ticks import started, tick
from iccm_assets.defs.learning.runs import (
    delivery_request,
    end_zombie,
    last_run,
    run_request,
    seen_run,
    seen_runs,
    started_retrains,
)
from iccm_assets.defs.resources import Platform

if TYPE_CHECKING:
    from iccm_assets.learning.turns import SeenRun, Turn

RUNNING = dg.DefaultSensorStatus.RUNNING


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="An emergency when production fell by more than 0.05 from its baseline, with evidence (T2).",
)
def quality_degradation_sensor(context: dg.SensorEvaluationContext, platform: Platform):
    from iccm_assets.learning import causes
    from iccm_assets.rollout.emergency import alert_degradation

    with tick(platform) as conn:
        cause = causes.degradation(conn, platform.settings)
        if isinstance(cause, causes.Fired):
            alert_degradation(conn, cause.run.id, cause.reason)
        return started(conn, platform, cause)


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Once a UTC day, at or after 03:00, when there are many selectable new examples (T3).",
)
def new_data_threshold_sensor(context: dg.SensorEvaluationContext, platform: Platform):
    from iccm_assets.learning import causes
    from iccm_assets.store.clock import now

    with tick(platform) as conn:
        return started(conn, platform, causes.data_threshold(conn, now(conn), platform.settings))


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Starts training runs that wait as soon as the way is free, retries failed attempts, and "
    "notices attempts that died (T6).",
)
def retrain_dispatch_sensor(context: dg.SensorEvaluationContext, platform: Platform):
    """The state comes from the rows and from what Dagster says of its runs, never from "I launched it"."""
    from iccm_assets.learning import dispatch, turns
    from iccm_assets.rollout.emergency import abort_for_emergency

    _reconcile(context, platform)
    _end_strays(context, platform)
    if delivery := _delivery(context, platform):
        return delivery
    settings = platform.settings
    with tick(platform) as conn:
        found = dispatch.situation(conn, settings.triggers)
    seen = _seen(context.instance, found.turns)
    busy = found.running.id if found.running else None
    patience = settings.training.heartbeat_timeout_seconds
    decision = turns.next_turn(found.turns, busy, found.rollout, seen, settings.triggers, patience)
    if isinstance(decision, turns.Wait):
        return dg.SkipReason(decision.reason)
    with tick(platform) as conn:
        taken = dispatch.take(conn, decision.id, decision.dispatch)
        if taken is None:
            return dg.SkipReason(f"{decision.reason}: started by somebody else")
        if decision.abort is not None:
            abort_for_emergency(conn, decision.abort, decision.reason)
    if decision.zombie:
        end_zombie(context.instance, decision.zombie, f"dispatch {taken.dispatch} replaces it")
    context.log.info(decision.reason)
    return run_request(taken)


def _reconcile(context: dg.SensorEvaluationContext, platform: Platform) -> None:
    """Give rows whose Dagster run is over, or whose worker is silent, the outcome they have not got."""
    from iccm_assets.learning import dispatch, turns
    from iccm_assets.rollout.emergency import alert_failed, alert_queued

    settings, instance = platform.settings, context.instance
    with tick(platform) as conn:
        found = dispatch.situation(conn, settings.triggers)
    # An attempt that ended in order said so before its Dagster run did: its fence no longer fits below.
    own = seen_run(instance, found.running.dagster_run_id) if found.running else None
    seen = _seen(instance, found.turns)
    lost = turns.lost_attempt(found.running, own, settings.training.heartbeat_timeout_seconds)
    with tick(platform) as conn:
        is_lost = lost is not None and dispatch.lose(conn, lost)
        dispatch.fail_unclaimed(conn, turns.failed_before_claim(found.turns, seen))
        dispatch.call_off(conn, turns.called_off(found.turns, seen))
        for one in turns.stuck(found.turns, seen):
            alert_queued(conn, one.id, one.run_id, one.reason)
        for run in dispatch.used_up(conn, settings.triggers):
            alert_failed(conn, run.id, run.attempt, run.error or "no reason recorded")
    if is_lost:
        context.log.warning(f"training run {lost.id}: {lost.reason}")
        if lost.zombie:
            end_zombie(instance, lost.zombie, lost.reason)


def _end_strays(context: dg.SensorEvaluationContext, platform: Platform) -> None:
    """End Dagster runs that nobody carries on and whose rows do not wait for them."""
    from iccm_assets.learning import dispatch, leftovers

    started = started_retrains(context.instance)
    if not started:
        return
    with tick(platform) as conn:
        rows = dispatch.rows(conn, list(started))
    pairs = [(run, rows[row]) for row, several in started.items() if row in rows for run in several]
    for stray in leftovers.strays(pairs, platform.settings.training.heartbeat_timeout_seconds):
        context.log.warning(f"Dagster run {stray.run_id}: {stray.reason}")
        end_zombie(context.instance, stray.run_id, stray.reason)


def _delivery(context: dg.SensorEvaluationContext, platform: Platform) -> dg.RunRequest | None:
    """The deployment of a candidate that has passed and whose run died before it had opened a rollout."""
    from iccm_assets.learning import dispatch, leftovers, training_runs

    with tick(platform) as conn:
        passed = dispatch.passed_and_not_deployed(conn)
        run = training_runs.get(conn, passed.id) if passed else None
    if passed is None:
        return None
    last = last_run(context.instance, passed.id)
    decision = leftovers.undelivered(passed, last, platform.settings.triggers.max_attempts)
    if not isinstance(decision, leftovers.Deliver):
        return None
    context.log.warning(decision.reason)
    return delivery_request(run, decision)


def _seen(instance: dg.DagsterInstance, waiting: Sequence[Turn]) -> dict[int, SeenRun]:
    return seen_runs(instance, {turn.id: turn.dispatch for turn in waiting if turn.dispatch})

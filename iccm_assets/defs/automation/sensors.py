"""Sensors: triggers by data and quality, the retrain dispatcher, the rollout controller, alerts.

Each skipped tick logs the reason with its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.automation.jobs import retrain_job
from iccm_assets.defs.automation.tick_transaction import request_run_or_skip, tick_transaction
from iccm_assets.defs.automation.training_run_tags import (
    deployment_run_request,
    fail_stalled_run,
    get_dagster_run_status,
    get_dagster_run_statuses,
    get_latest_run,
    list_started_retrains,
    run_request,
)
from iccm_assets.defs.metadata import with_markdown
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.settings import load_settings

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

    from iccm_assets.retraining.scheduling import DagsterRunState, QueuedRun

RUNNING = dg.DefaultSensorStatus.RUNNING
DEPLOYED_VERSION_KEY = dg.AssetKey("deployed_model_version")
# Between two observations of the live rollout.
OBSERVATION_INTERVAL = timedelta(minutes=5)


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Starts an emergency retrain when production quality has dropped by more than 0.05 below its "
    "baseline, with evidence.",
)
def quality_degradation_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.retraining import trigger_evaluation
    from iccm_assets.retraining.triggers import TriggerSkipped
    from iccm_assets.rollout.preemption import alert_degradation

    with tick_transaction(platform) as conn:
        decision = trigger_evaluation.evaluate_degradation_trigger(conn, platform.settings)
        if not isinstance(decision, TriggerSkipped):
            alert_degradation(conn, decision.id, decision.notes or "")
        return request_run_or_skip(conn, platform, decision)


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Once a UTC day, at or after 03:00, when there are many selectable new examples.",
)
def new_data_threshold_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    from iccm_assets.db.clock import now
    from iccm_assets.retraining import trigger_evaluation

    with tick_transaction(platform) as conn:
        decision = trigger_evaluation.evaluate_data_threshold_trigger(conn, now(conn), platform.settings)
        return request_run_or_skip(conn, platform, decision)


@dg.sensor(
    job=retrain_job,
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Starts waiting training runs when nothing blocks them, retries failed attempts, "
    "fails stalled ones.",
)
def retrain_dispatch_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    """Dispatch by the rows and by what Dagster reports of its runs; the sensor itself is stateless."""
    from iccm_assets.retraining import run_queue, scheduling
    from iccm_assets.rollout.preemption import abort_for_emergency

    _reconcile(context, platform)
    _fail_stalled_runs(context, platform)
    if request := _request_missed_deployment(context, platform):
        return request
    settings = platform.settings
    with tick_transaction(platform) as conn:
        queue = run_queue.load_queue_state(conn, settings.triggers)
    states = _dagster_states(context.instance, queue.queued_runs)
    timeout = settings.training.heartbeat_timeout_seconds
    decision = scheduling.choose_next_run(queue, states, settings.triggers, timeout)
    if isinstance(decision, scheduling.WaitDecision):
        return dg.SkipReason(decision.reason)
    with tick_transaction(platform) as conn:
        claimed = run_queue.claim_dispatch(conn, decision.id, decision.dispatch)
        if claimed is None:
            return dg.SkipReason(f"{decision.reason}: another daemon has started it")
        if decision.abort_rollout_id is not None:
            abort_for_emergency(conn, decision.abort_rollout_id, decision.reason)
    if decision.stale_run_id:
        fail_stalled_run(context.instance, decision.stale_run_id, f"dispatch {claimed.dispatch} replaces it")
    context.log.info(decision.reason)
    return run_request(claimed)


def _reconcile(context: dg.SensorEvaluationContext, platform: PlatformResource) -> None:
    """Give training runs an outcome whose Dagster run is over or whose worker has stopped its heartbeat."""
    from iccm_assets.registry import training_runs
    from iccm_assets.retraining import run_queue, scheduling
    from iccm_assets.rollout.preemption import alert_attempts_exhausted, alert_queued

    settings, instance = platform.settings, context.instance
    with tick_transaction(platform) as conn:
        queue = run_queue.load_queue_state(conn, settings.triggers)
    # An attempt that ended normally released its fence before its Dagster run ended: `mark_stalled` skips it.
    own = get_dagster_run_status(instance, queue.running.dagster_run_id) if queue.running else None
    states = _dagster_states(instance, queue.queued_runs)
    stalled = scheduling.find_stalled_attempt(queue.running, own, settings.training.heartbeat_timeout_seconds)
    with tick_transaction(platform) as conn:
        if stalled is not None and not training_runs.mark_stalled(
            conn, stalled.id, stalled.fence, stalled.reason
        ):
            stalled = None
        run_queue.mark_failed_before_claim(
            conn, scheduling.find_failed_before_claim(queue.queued_runs, states)
        )
        run_queue.mark_canceled(conn, scheduling.find_canceled(queue.queued_runs, states))
        for stuck in scheduling.find_stuck_in_queue(queue.queued_runs, states):
            alert_queued(conn, stuck.id, stuck.run_id, stuck.reason)
        for run in run_queue.find_exhausted_runs(conn, settings.triggers):
            alert_attempts_exhausted(conn, run.id, run.error or "no reason recorded")
    if stalled is not None:
        context.log.warning(f"training run {stalled.id}: {stalled.reason}")
        if stalled.stale_run_id:
            fail_stalled_run(instance, stalled.stale_run_id, stalled.reason)


def _fail_stalled_runs(context: dg.SensorEvaluationContext, platform: PlatformResource) -> None:
    """Report Dagster runs as failed that no worker executes and no training run waits for."""
    from iccm_assets.retraining import recovery, run_queue

    started = list_started_retrains(context.instance)
    if not started:
        return
    with tick_transaction(platform) as conn:
        rows = run_queue.get_rows(conn, list(started))
    pairs = [(run, rows[row]) for row, runs in started.items() if row in rows for run in runs]
    for orphan in recovery.find_orphaned_runs(pairs, platform.settings.training.heartbeat_timeout_seconds):
        context.log.warning(f"Dagster run {orphan.run_id}: {orphan.reason}")
        fail_stalled_run(context.instance, orphan.run_id, orphan.reason)


def _request_missed_deployment(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | None:
    """Request the deployment of a candidate that passed the gate, whose run died before the rollout."""
    from iccm_assets.registry import training_runs
    from iccm_assets.retraining import recovery, run_queue

    with tick_transaction(platform) as conn:
        passed = run_queue.find_undeployed_candidate(conn)
        run = training_runs.get_run(conn, passed.id) if passed else None
    if passed is None or run is None:
        return None
    latest = get_latest_run(context.instance, passed.id)
    decision = recovery.decide_missed_deployment(passed, latest, platform.settings.triggers.max_attempts)
    if not isinstance(decision, recovery.DeployDecision):
        return None
    context.log.warning(decision.reason)
    return deployment_run_request(run, decision)


def _dagster_states(instance: dg.DagsterInstance, waiting: Sequence[QueuedRun]) -> dict[int, DagsterRunState]:
    return get_dagster_run_statuses(instance, {turn.id: turn.dispatch for turn in waiting if turn.dispatch})


@dg.sensor(
    minimum_interval_seconds=load_settings().rollout.tick_seconds,
    default_status=RUNNING,
    description="Advances the live rollout: observes, decides, renews its lease. Launches no runs.",
)
def rollout_controller_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.SensorResult:
    """One tick of the controller; the cursor is the time of the last observation of a live rollout.

    `decision_report_sensor` reports its changes.
    """
    from iccm_assets.db.clock import now
    from iccm_assets.rollout import controller
    from iccm_assets.rollout.summary import observation_metadata

    decision = controller.tick(platform.engine, platform.settings)
    if decision is None:
        return dg.SensorResult(skip_reason="no rollout is live", cursor=context.cursor)
    state = decision.state
    summary = f"rollout {state.id} of {state.candidate} is {state.state}: {state.reason}"
    with platform.engine.connect() as conn:
        current = now(conn)
    observed_at = datetime.fromisoformat(json.loads(context.cursor)["at"]) if context.cursor else None
    # The platform's clock may have been set back since.
    recent = observed_at is not None and abs(current - observed_at) < OBSERVATION_INTERVAL
    if recent or not state.is_live:
        return dg.SensorResult(skip_reason=summary, cursor=context.cursor)
    observation = dg.AssetObservation(
        DEPLOYED_VERSION_KEY, description=summary, metadata=with_markdown(observation_metadata(state))
    )
    cursor = json.dumps({"at": current.isoformat()})
    return dg.SensorResult(skip_reason=summary, asset_events=[observation], cursor=cursor)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Reports verdicts, deployments and results of checks to their assets when no Dagster run has "
    "decided them, but a command, a gateway or the controller.",
)
def decision_report_sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SkipReason:
    from iccm_assets.db.locks import Lock, try_lock
    from iccm_assets.defs.automation.decision_reports import report_decisions

    with tick_transaction(platform) as conn:
        if not try_lock(conn, Lock.DAGSTER_REPORTS):
            return dg.SkipReason("a command is reporting")
        reports = report_decisions(conn, platform.settings, context.instance)
    return dg.SkipReason("; ".join(reports) or "the assets show what the database holds")


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Delivers pending alerts to the channels of ICCM_ALERT_URLS.",
)
def alert_delivery_sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SkipReason:
    from iccm_assets.alerts.dispatcher import count_pending, dispatch_alerts, has_due_alerts

    engine, settings = platform.engine, platform.settings
    if not has_due_alerts(engine, settings):
        no_channel = "" if settings.alert_urls else ", and ICCM_ALERT_URLS names no channel"
        return dg.SkipReason(f"{count_pending(engine)} alerts are pending, none is due{no_channel}")
    report = dispatch_alerts(engine, settings)
    context.log.info(report.summary())
    return dg.SkipReason(report.summary())


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Mirrors verdicts, promotions and rollbacks to the registered model of ICCM_MLFLOW_MODEL.",
)
def registry_mirror_sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SkipReason:
    from iccm_assets.errors import IccmError
    from iccm_assets.governance import registry_mirror

    engine, settings = platform.engine, platform.settings
    if not settings.mlflow_model:
        return dg.SkipReason("ICCM_MLFLOW_MODEL names no registered model")
    if not registry_mirror.has_due_decisions(engine, settings):
        return dg.SkipReason(f"{registry_mirror.count_pending_decisions(engine)} decisions wait, none is due")
    try:
        report = registry_mirror.run_mirror_process(engine, settings)
    except IccmError as error:
        context.log.warning(error.message)
        return dg.SkipReason(error.message)
    (context.log.warning if report.error else context.log.info)(report.summary())
    return dg.SkipReason(report.summary())


@dg.run_failure_sensor(
    default_status=RUNNING,
    description="Raises one alert for each failed Dagster run of this platform.",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, platform: PlatformResource) -> None:
    from iccm_assets.alerts.outbox import raise_alert

    run = context.dagster_run
    errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
    # A failed asset check is a verdict that has raised its own alert; the run ended as designed.
    by_check = bool(errors) and all("AssetCheckFailed" in (error.cls_name or "") for error in errors if error)
    with platform.engine.begin() as conn:
        raise_alert(
            conn,
            f"dagster_run_failed:{run.run_id}",
            "info" if by_check else "critical",
            f"{run.job_name} was stopped by a check" if by_check else f"{run.job_name} failed",
            f"Dagster run {run.run_id}: {_root_cause(errors) or context.failure_event.message}",
        )


def _root_cause(errors: Sequence[SerializableErrorInfo | None]) -> str:
    """The first line of the innermost cause of the first failed step."""
    for error in errors:
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None and (lines := error.message.strip().splitlines()):
            return lines[0][:500]
    return ""

"""Tags that connect a Dagster run with its row of `phase4_training_runs`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from iccm_assets.errors import IccmError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.registry.training_runs import TrainingRun
    from iccm_assets.retraining.recovery import DeployDecision, LatestRun
    from iccm_assets.retraining.scheduling import DagsterRunState, RunState

TRAINING_RUN_TAG = "iccm/training_run_id"
DISPATCH_TAG = "iccm/dispatch"
ATTEMPT_TAG = "iccm/attempt"
TRIGGER_TAG = "iccm/trigger"
DEPLOY_TAG = "iccm/deploys"

_STATES: dict[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
    dg.DagsterRunStatus.NOT_STARTED: "created",
    dg.DagsterRunStatus.STARTED: "started",
    dg.DagsterRunStatus.CANCELING: "started",
}


class RetrainConfig(dg.Config):
    """Options of a retrain launched by hand; a triggered one reads its row instead."""

    reason: str = Field("", description="Reason; stored in phase4_training_runs.notes.")
    emergency: bool = Field(
        False,
        description="Apply the emergency rules: conversations whose first response failed come first, up "
        "to 200 examples, fewer epochs, a lower bound at the quality gate; aborts a rollout at stage 1 or 2.",
    )
    base: str = Field(
        "", description="Train from this version (its name or digest) instead of the production version."
    )
    window_days: int = Field(
        0, ge=0, description="Select examples of the last so many days; 0: the window of the settings."
    )


def get_training_run(
    context: dg.AssetExecutionContext, engine: sa.Engine, config: RetrainConfig
) -> tuple[TrainingRun, int | None]:
    """The row and dispatch that the run's tags name; a run without tags gets a manual row of its own."""
    from iccm_assets.registry import training_runs, versions
    from iccm_assets.retraining import triggers

    tags = context.run.tags
    row_id, dispatch = tags.get(TRAINING_RUN_TAG), tags.get(DISPATCH_TAG)
    with engine.begin() as conn:
        if row_id:
            return training_runs.get_run(conn, int(row_id)), int(dispatch) if dispatch else None
        trigger = triggers.manual_trigger(
            context.run.root_run_id or context.run.run_id,
            config.reason or "launched in Dagster",
            config.emergency,
        )
        run = training_runs.create_run(
            conn,
            trigger,
            versions.get_version(conn, config.base).version if config.base else None,
            window_days=config.window_days or None,
            dispatched=True,
        ) or training_runs.get_by_trigger_key(conn, trigger.key)
    if run is None:
        raise IccmError(f"the training run {trigger.key} is not in the database")
    # The dispatcher finds the runs of a row by these tags, and so can a person.
    context.instance.add_run_tags(context.run.run_id, run_tags(run))
    return run, None


def run_tags(run: TrainingRun) -> dict[str, str]:
    """The tags of a Dagster run that is started for a row in its current state."""
    return {
        TRAINING_RUN_TAG: str(run.id),
        DISPATCH_TAG: str(run.dispatch),
        ATTEMPT_TAG: str(run.attempt + 1),
        TRIGGER_TAG: run.trigger,
    }


def run_request(run: TrainingRun) -> dg.RunRequest:
    """The request that starts a run. Its key names the dispatch: Dagster never starts one key twice."""
    priority = {"dagster/priority": "10"} if run.emergency else {}
    return dg.RunRequest(
        run_key=f"training-run-{run.id}-attempt-{run.attempt + 1}-dispatch-{run.dispatch}",
        job_name="retrain_job",
        tags={**run_tags(run), **priority},
    )


def deployment_run_request(run: TrainingRun, deployment: DeployDecision) -> dg.RunRequest:
    """The request that deploys a candidate whose run died before it did; one for each run that died."""
    return dg.RunRequest(
        run_key=f"training-run-{run.id}-deploy-instead-of-{deployment.replaces_run_id}",
        job_name="retrain_job",
        asset_selection=[dg.AssetKey("deployed_model_version")],
        run_config={"ops": {"deployed_model_version": {"config": {"version": deployment.candidate}}}},
        tags={**run_tags(run), ATTEMPT_TAG: str(run.attempt), DEPLOY_TAG: deployment.candidate},
    )


def get_dagster_run_status(instance: dg.DagsterInstance, run_id: str) -> DagsterRunState | None:
    """The status of one Dagster run; None when the instance does not know its id."""
    records = instance.get_run_records(dg.RunsFilter(run_ids=[run_id])) if run_id else ()
    return _status(records[0]) if records else None


def get_dagster_run_statuses(
    instance: dg.DagsterInstance, dispatches: dict[int, int]
) -> dict[int, DagsterRunState]:
    """Return, by training run id, the newest Dagster run of its newest dispatch, if there is one."""
    statuses: dict[int, DagsterRunState] = {}
    for record in _tagged_records(instance, dispatches, limit=200) if dispatches else ():  # newest first
        row_id = int(record.dagster_run.tags[TRAINING_RUN_TAG])
        if record.dagster_run.tags.get(DISPATCH_TAG) == str(dispatches[row_id]):
            statuses.setdefault(row_id, _status(record))
    return statuses


def list_started_retrains(instance: dg.DagsterInstance) -> dict[int, list[DagsterRunState]]:
    """Retrain runs that Dagster reports as started, by the id of their training run."""
    started = dg.RunsFilter(job_name="retrain_job", statuses=[dg.DagsterRunStatus.STARTED])
    runs: dict[int, list[DagsterRunState]] = {}
    for record in instance.get_run_records(started, limit=50):
        if row_id := record.dagster_run.tags.get(TRAINING_RUN_TAG):
            runs.setdefault(int(row_id), []).append(_status(record))
    return runs


def get_latest_run(instance: dg.DagsterInstance, training_run_id: int) -> LatestRun | None:
    """The newest Dagster run of a training run, and whether its deployment step reported its failure."""
    from iccm_assets.retraining.recovery import LatestRun

    records = _tagged_records(instance, [training_run_id], limit=50)
    if not records:
        return None
    failures = instance.all_logs(records[0].dagster_run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    return LatestRun(
        _status(records[0]),
        deployment_failed=any(failure.step_key == "deployed_model_version" for failure in failures),
        deployment_runs=sum(DEPLOY_TAG in record.dagster_run.tags for record in records),
    )


def fail_stalled_run(instance: dg.DagsterInstance, run_id: str, reason: str) -> None:
    """Report a run as failed whose worker is gone, so that it releases its pool slot."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, f"Failed by the platform: {reason}")


def _tagged_records(instance: dg.DagsterInstance, row_ids: Iterable[int], limit: int) -> list[dg.RunRecord]:
    tags = {TRAINING_RUN_TAG: [str(row_id) for row_id in row_ids]}
    return list(instance.get_run_records(dg.RunsFilter(tags=tags), limit=limit))


def _status(record: dg.RunRecord) -> DagsterRunState:
    from iccm_assets.retraining.scheduling import DagsterRunState

    run = record.dagster_run
    started = record.start_time or record.create_timestamp.timestamp()
    dispatch = int(run.tags.get(DISPATCH_TAG) or 0)
    age_seconds = max(0.0, time.time() - started)
    return DagsterRunState(run.run_id, _STATES.get(run.status, "queued"), age_seconds, dispatch)

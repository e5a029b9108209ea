"""How a Dagster run and its row of `phase4_training_runs` find each other: by tag."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.learning.leftovers import Deliver, LastRun
    from iccm_assets.learning.training_runs import TrainingRun
    from iccm_assets.learning.turns import RunState, SeenRun

TRAINING_RUN_TAG = "iccm/training_run_id"
DISPATCH_TAG = "iccm/dispatch"
ATTEMPT_TAG = "iccm/attempt"
TRIGGER_TAG = "iccm/trigger"
DELIVERY_TAG = "iccm/delivers"

_ENDED: dict[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
}
_UNDER_WAY: dict[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.NOT_STARTED: "created",
    dg.DagsterRunStatus.STARTED: "started",
    dg.DagsterRunStatus.CANCELING: "started",
}


class RetrainConfig(dg.Config):
    """What a retrain launched by hand may say; a triggered one brings its row instead."""

    reason: str = Field("", description="Why; stands in phase4_training_runs.notes.")
    emergency: bool = Field(
        False,
        description="Emergency rules: failed sessions first and up to 200 of them (T7), fewer epochs (L1), a "
        "lower bound at the gate (E3); a rollout at stage 1 or 2 is aborted for it (T6).",
    )
    base: str = Field(
        "", description="Train from this version (its name or digest) instead of the one in production."
    )
    window_days: int = Field(
        0, ge=0, description="Take examples of so many last days; 0: the settings' window (T7)."
    )


def training_run_of(
    context: dg.AssetExecutionContext, engine: sa.Engine, config: RetrainConfig
) -> tuple[TrainingRun, int | None]:
    """The row the run's tag names, and the dispatch it was started by; else a manual row of its own (T4)."""
    from iccm_assets.learning import training_runs, triggers, versions

    tags = context.run.tags
    tagged, dispatch = tags.get(TRAINING_RUN_TAG), tags.get(DISPATCH_TAG)
    with engine.begin() as conn:
        if tagged:
            return training_runs.get(conn, int(tagged)), int(dispatch) if dispatch else None
        fire = triggers.manual(
            context.run.root_run_id or context.run.run_id,
            config.reason or "launched in Dagster",
            config.emergency,
        )
        run = training_runs.request(
            conn,
            fire,
            versions.get(conn, config.base).version if config.base else None,
            window_days=config.window_days or None,
            dispatched=True,
        ) or training_runs.by_key(conn, fire.key)
    # The dispatcher looks for the runs of a row by these, and so may a person.
    context.instance.add_run_tags(context.run.run_id, tags_of(run))
    return run, None


def tags_of(run: TrainingRun) -> dict[str, str]:
    """The tags of the Dagster run that is started for a row as it is now."""
    return {
        TRAINING_RUN_TAG: str(run.id),
        DISPATCH_TAG: str(run.dispatch),
        ATTEMPT_TAG: str(run.attempt + 1),
        TRIGGER_TAG: run.trigger,
    }


def run_request(run: TrainingRun) -> dg.RunRequest:
    """What starts it. The key changes with every dispatch, since Dagster never starts one key twice."""
    priority = {"dagster/priority": "10"} if run.emergency else {}
    return dg.RunRequest(
        run_key=f"training-run-{run.id}-attempt-{run.attempt + 1}-dispatch-{run.dispatch}",
        job_name="retrain_job",
        tags={**tags_of(run), **priority},
    )


def seen_runs(instance: dg.DagsterInstance, dispatches: dict[int, int]) -> dict[int, SeenRun]:
    """What Dagster says of the newest run of each training run's newest dispatch, where it knows of one."""
    if not dispatches:
        return {}
    wanted = {TRAINING_RUN_TAG: [str(one) for one in dispatches]}
    records = instance.get_run_records(dg.RunsFilter(tags=wanted), limit=200)
    found: dict[int, SeenRun] = {}
    for record in records:  # newest first
        tags = record.dagster_run.tags
        row = int(tags[TRAINING_RUN_TAG])
        if tags.get(DISPATCH_TAG) == str(dispatches[row]) and row not in found:
            found[row] = _seen(record)
    return found


def started_retrains(instance: dg.DagsterInstance) -> dict[int, list[SeenRun]]:
    """The retrains that Dagster takes for running, by the row they were started for."""
    started = dg.RunsFilter(job_name="retrain_job", statuses=[dg.DagsterRunStatus.STARTED])
    found: dict[int, list[SeenRun]] = {}
    for record in instance.get_run_records(started, limit=50):
        if row := record.dagster_run.tags.get(TRAINING_RUN_TAG):
            found.setdefault(int(row), []).append(_seen(record))
    return found


def last_run(instance: dg.DagsterInstance, training_run_id: int) -> LastRun | None:
    """The newest Dagster run of a training run, and whether its deployment said why it failed."""
    from iccm_assets.learning.leftovers import LastRun

    records = instance.get_run_records(dg.RunsFilter(tags={TRAINING_RUN_TAG: str(training_run_id)}), limit=50)
    if not records:
        return None
    newest = records[0]
    failures = instance.all_logs(newest.dagster_run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    return LastRun(
        _seen(newest),
        answered=any(one.step_key == "deployed_model_version" for one in failures),
        deliveries=sum(DELIVERY_TAG in one.dagster_run.tags for one in records),
    )


def delivery_request(run: TrainingRun, deliver: Deliver) -> dg.RunRequest:
    """What deploys a candidate whose run died before it had; once for each run that died."""
    return dg.RunRequest(
        run_key=f"training-run-{run.id}-deliver-instead-of-{deliver.instead_of}",
        job_name="retrain_job",
        asset_selection=[dg.AssetKey("deployed_model_version")],
        run_config={"ops": {"deployed_model_version": {"config": {"version": deliver.candidate}}}},
        tags={**tags_of(run), ATTEMPT_TAG: str(run.attempt), DELIVERY_TAG: deliver.candidate},
    )


def seen_run(instance: dg.DagsterInstance, run_id: str) -> SeenRun | None:
    """What Dagster says of one run, or `None` when it knows of none with this id."""
    records: Sequence[dg.RunRecord] = (
        instance.get_run_records(dg.RunsFilter(run_ids=[run_id])) if run_id else []
    )
    return _seen(records[0]) if records else None


def end_zombie(instance: dg.DagsterInstance, run_id: str, why: str) -> None:
    """Let a run whose worker is gone stop looking alive, and holding its pool's slot."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, f"Ended by the platform: {why}")


def _seen(record: dg.RunRecord) -> SeenRun:
    from iccm_assets.learning.turns import SeenRun

    run = record.dagster_run
    state = _ENDED.get(run.status) or _UNDER_WAY.get(run.status, "queued")
    since = record.start_time or record.create_timestamp.timestamp()
    dispatch = int(run.tags.get(DISPATCH_TAG) or 0)
    return SeenRun(run.run_id, state, max(0.0, time.time() - since), dispatch)

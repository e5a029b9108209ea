"""Ops of the jobs that are not made of assets: live scoring and maintenance."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import WorkerClient

if TYPE_CHECKING:
    from iccm_assets.reporting.arm_metrics import ArmMetrics


@dg.op(tags={"kind": "python"}, out=dg.Out(dg.Nothing))
def score_live_responses(
    context: dg.OpExecutionContext, platform: PlatformResource, workers: dg.ResourceParam[WorkerClient]
) -> dg.Output[None]:
    """Score gateway responses that came with tests and have no score yet, rollout evidence first."""
    from iccm_assets.reporting.formatting import snake_case_keys
    from iccm_assets.scoring.live_scoring import describe_live_pass
    from iccm_assets.scoring.scoring_pass import ScoringReport
    from iccm_assets.scoring.scoring_queue import count_rows, unscored_live_responses

    started = time.monotonic()
    context.log.info(f"{count_rows(platform.engine, unscored_live_responses())} responses wait for a score")
    request = {"live_seconds": platform.settings.scoring.time_budget_seconds}
    values = workers.perform(context, platform, "iccm_assets.scoring.scoring_worker", request)
    scored = ScoringReport.from_dict(values)
    report = describe_live_pass(platform.engine, scored, time.monotonic() - started)
    for line in (report.summary(), *(arm.summary() for arm in report.arms)):
        context.log.info(line)
    if report.arms:
        # Numbers of observations become plots over time on the asset's page.
        context.log_event(dg.AssetObservation("deployed_model_version", metadata=_arm_metrics(report.arms)))
    # Said explicitly: a step that waited for a job of a cluster has no implied output.
    return dg.Output(
        None,
        metadata={
            **report.scored.counts(),
            **snake_case_keys(report.scored.unusable_suites, "suites"),
            "pending": report.remaining,
            "seconds": report.seconds,
            "arms": table_metadata([arm.to_dict() for arm in report.arms]),
        },
    )


def _arm_metrics(arms: "Sequence[ArmMetrics]") -> dict[str, Any]:
    """Metrics of both arms under names that stay the same from version to version."""
    from iccm_assets.reporting.formatting import snake_case_keys

    metrics: dict[str, Any] = {}
    for arm in sorted(arms, key=lambda arm: arm.requests):  # of two versions, the one that served more
        row = arm.to_dict()
        row.pop("arm")
        measured = {name: value for name, value in row.items() if value is not None}
        metrics |= snake_case_keys(measured, arm.arm)
    return metrics


@dg.op(tags={"kind": "python"}, out=dg.Out(dg.Nothing))
def import_captured_sessions(context: dg.OpExecutionContext, platform: PlatformResource) -> None:
    """Import the sessions that the hook of a coding agent has captured on this machine."""
    from iccm_assets.capture.claude_code.session_spool import deliver_sessions

    report = deliver_sessions(platform.engine, platform.settings)
    context.log.info(report.summary())
    for line in report.unreadable:
        context.log.error(f"captured session cannot be read: {line}")
    context.add_output_metadata(
        {**report.sessions, "dead_letters": len(report.dead_letters), "waiting": report.waiting}
    )
    # A failed run is an alert; the other sessions are stored. A reason may quote a conversation, so it is
    # not repeated here.
    if count := len(report.dead_letters):
        raise dg.Failure(f"{count} captured sessions cannot be imported; `iccm capture list` says why")


@dg.op(tags={"kind": "python"}, out=dg.Out(dg.Nothing))
def apply_retention(context: dg.OpExecutionContext, platform: PlatformResource) -> None:
    """Delete checkpoints, datasets and rows past their retention period."""
    from iccm_assets.governance.maintenance import apply_retention
    from iccm_assets.reporting.formatting import snake_case_keys

    report = apply_retention(platform.engine, platform.settings)
    for decision in report.deleted:
        context.log.info(f"deleted {decision.kind} {decision.name[:12]}: {decision.reason}")
    decisions = [
        {
            "kind": decision.kind,
            "name": decision.name[:12],
            "decision": "deleted" if decision.delete else "retained",
            "reason": decision.reason,
        }
        for decision in report.decisions
    ]
    context.add_output_metadata(
        {
            "deleted": len(report.deleted),
            "retained": len(report.decisions) - len(report.deleted),
            "freed_bytes": report.freed_bytes,
            **snake_case_keys(report.rows, "deleted_rows"),
            "stale_staging": len(report.staging),
            "retention_decisions": table_metadata(decisions),
        }
    )

"""Recovery after a killed run whose row has an outcome, or another attempt, as pure functions (T6).

``scheduling`` covers rows without an outcome. A Dagster run may continue although its row no longer needs it:
its worker was killed after the verdict, or the daemon between marking the row as failed and ending the run.
Such a run would occupy the training pool's slot until its maximum run time, and a candidate that passed the
gate would wait for a deployment that no run performs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.retraining.scheduling import ACTIVE_STATES, DagsterRunState


@dataclass(frozen=True)
class TrainingRunRow:
    """The row of a Dagster run; ``idle_seconds`` are wall-clock seconds since it last changed."""

    id: int
    status: str
    dispatch: int
    dagster_run_id: str | None
    idle_seconds: float


@dataclass(frozen=True)
class OrphanedRun:
    """A Dagster run that still looks alive although its row no longer needs it."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class UndeployedCandidate:
    """A training run whose candidate passed the gate and never had a rollout.

    ``live_rollout`` is that of another candidate, ``rollout_ended_seconds`` the wall-clock seconds since the
    last rollout ended.
    """

    id: int
    candidate: str
    live_rollout: int | None = None
    rollout_ended_seconds: float | None = None


@dataclass(frozen=True)
class LatestRun:
    """The newest Dagster run of a training run, with the outcome of its deployment step.

    ``deployment_failed``: that step raised an error. ``deployment_runs`` counts the runs started only to
    deploy.
    """

    run: DagsterRunState
    deployment_failed: bool
    deployment_runs: int


@dataclass(frozen=True)
class DeployDecision:
    """Start a Dagster run that only deploys the candidate, in place of one that died before it did."""

    id: int
    candidate: str
    replaces_run_id: str
    reason: str


def find_orphaned_runs(
    started: Sequence[tuple[DagsterRunState, TrainingRunRow]], timeout_seconds: float
) -> list[OrphanedRun]:
    """Return the started runs whose row has belonged to another run, or had its outcome, for too long."""
    orphaned = []
    for run, row in started:
        is_working = row.status == "running" and row.dagster_run_id == run.run_id
        may_claim = (
            row.status in ("requested", "waiting", "failed")
            and row.dispatch == run.dispatch
            and row.dagster_run_id != run.run_id
        )
        # Of the two clocks the shorter one counts: a run that deploys after its verdict gets its time.
        idle_seconds = min(run.seconds, row.idle_seconds)
        if not is_working and not may_claim and idle_seconds > timeout_seconds:
            reason = (
                f"training run {row.id} has been {row.status} for {idle_seconds:.0f} s and does not need this"
                f" run, {timeout_seconds:.0f} s are allowed"
            )
            orphaned.append(OrphanedRun(run.run_id, reason))
    return orphaned


def decide_missed_deployment(
    candidate: UndeployedCandidate, latest: LatestRun | None, max_attempts: int
) -> DeployDecision | str:
    """Decide whether to deploy a candidate whose run died or met a live rollout; else return the reason."""
    subject = f"training run {candidate.id} has passed and {candidate.candidate} is not deployed"
    if candidate.live_rollout is not None:
        return f"{subject}: it waits for rollout {candidate.live_rollout} to end"
    if latest is None:
        return f"{subject}: Dagster has no run of it"
    run = latest.run
    dagster_run = f"its Dagster run {run.run_id}"
    if run.state in ACTIVE_STATES:
        return f"{subject} yet: {dagster_run} is {run.state}"
    if run.state != "failed":
        return f"{subject}: {dagster_run} {'was canceled' if run.state == 'canceled' else 'has succeeded'}"
    # A deployment that failed while another rollout was live is tried again once that has ended.
    rollout_has_ended = (
        candidate.rollout_ended_seconds is not None and candidate.rollout_ended_seconds < run.seconds
    )
    if latest.deployment_failed and not rollout_has_ended:
        return f"{subject}: {dagster_run} logged the reason"
    if latest.deployment_runs >= max_attempts:
        return f"{subject}: {latest.deployment_runs} deployment runs have died"
    reason = "the rollout it waited for has ended" if latest.deployment_failed else f"{dagster_run} died"
    return DeployDecision(candidate.id, candidate.candidate, run.run_id, f"{subject}: {reason}")

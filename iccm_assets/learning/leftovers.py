"""Recovery after a killed run whose row has an outcome, or another attempt, as pure functions (T6).

``turns`` covers rows without an outcome. A Dagster run may outlive its row's need for it: its worker was
killed after the verdict, or the daemon between marking the row as failed and ending the run. Such a run would
occupy the training pool's slot until its maximum run time, and a candidate that passed the gate would wait
for a deployment that no run carries out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.learning.turns import UNDER_WAY, SeenRun


@dataclass(frozen=True)
class Row:
    """The row of a Dagster run; ``idle_seconds`` are wall-clock seconds since it last changed."""

    id: int
    status: str
    dispatch: int
    dagster_run_id: str | None
    idle_seconds: float


@dataclass(frozen=True)
class Stray:
    """A Dagster run that still looks alive and that its row no longer needs."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Passed:
    """A training run whose candidate passed the gate and never had a rollout.

    ``waits_for`` is another candidate's live rollout, ``freed_seconds`` the wall-clock seconds since the last
    rollout ended.
    """

    id: int
    candidate: str
    waits_for: int | None = None
    freed_seconds: float | None = None


@dataclass(frozen=True)
class LastRun:
    """The newest Dagster run of a training run; ``answered`` if its deployment step failed with an error.

    ``deliveries`` is the number of runs that were started only to deploy.
    """

    run: SeenRun
    answered: bool
    deliveries: int


@dataclass(frozen=True)
class Deliver:
    """Start a Dagster run that only deploys the candidate, in place of one that died before it did."""

    id: int
    candidate: str
    instead_of: str
    reason: str


def strays(started: Sequence[tuple[SeenRun, Row]], timeout_seconds: float) -> list[Stray]:
    """Return the started runs whose row has belonged to another run, or had its outcome, for too long."""
    orphaned = []
    for run, row in started:
        works = row.status == "running" and row.dagster_run_id == run.run_id
        may_claim = (
            row.status in ("requested", "waiting", "failed")
            and row.dispatch == run.dispatch
            and row.dagster_run_id != run.run_id
        )
        # Of the two clocks the shorter one counts: a run that deploys after its verdict gets its time.
        silent = min(run.seconds, row.idle_seconds)
        if not works and not may_claim and silent > timeout_seconds:
            reason = (
                f"training run {row.id} has been {row.status} for {silent:.0f} s and does not need this run,"
                f" {timeout_seconds:.0f} s are allowed"
            )
            orphaned.append(Stray(run.run_id, reason))
    return orphaned


def undelivered(passed: Passed, last: LastRun | None, max_attempts: int) -> Deliver | str:
    """Decide whether to deploy a candidate whose run died or met a live rollout; else return the reason."""
    subject = f"training run {passed.id} has passed and {passed.candidate} is not deployed"
    if passed.waits_for is not None:
        return f"{subject}: it waits for rollout {passed.waits_for} to end"
    if last is None:
        return f"{subject}: Dagster has no run of it"
    run = last.run
    dagster_run = f"its Dagster run {run.run_id}"
    if run.state in UNDER_WAY:
        return f"{subject} yet: {dagster_run} is {run.state}"
    if run.state != "failed":
        return f"{subject}: {dagster_run} {'was canceled' if run.state == 'canceled' else 'has succeeded'}"
    # A deployment that failed while another rollout was live is tried again once that has ended.
    rollout_has_ended = passed.freed_seconds is not None and passed.freed_seconds < run.seconds
    if last.answered and not rollout_has_ended:
        return f"{subject}: {dagster_run} logged the reason"
    if last.deliveries >= max_attempts:
        return f"{subject}: {last.deliveries} deployment runs have died"
    reason = "the rollout it waited for has ended" if last.answered else f"{dagster_run} died"
    return Deliver(passed.id, passed.candidate, run.run_id, f"{subject}: {reason}")

"""What a killed run leaves behind once its row has an outcome, or another attempt: two pure decisions (T6).

``turns`` looks after rows without an outcome. A Dagster run may outlive its row's interest in it: its worker
was killed after the verdict, or the daemon after it had given the row up and before it had ended the run.
Such a run would hold the training pool's slot until its maximum run time, and a candidate that has passed
would wait for a deployment that nobody carries out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.learning.turns import UNDER_WAY, SeenRun


@dataclass(frozen=True)
class Row:
    """The row a Dagster run was started for; ``idle_seconds`` real ones since it last changed."""

    id: int
    status: str
    dispatch: int
    dagster_run_id: str | None
    idle_seconds: float


@dataclass(frozen=True)
class Stray:
    """A Dagster run that still looks alive and that its row does not wait for any more."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Passed:
    """A training run whose candidate has passed the gate, and of which no rollout was ever opened.

    ``waits_for`` is another candidate's live rollout, ``freed_seconds`` real ones since the last ended.
    """

    id: int
    candidate: str
    waits_for: int | None = None
    freed_seconds: float | None = None


@dataclass(frozen=True)
class LastRun:
    """The newest Dagster run of a training run; ``answered`` when its deployment itself failed, in words.

    ``deliveries`` counts the runs that were started only to deploy.
    """

    run: SeenRun
    answered: bool
    deliveries: int


@dataclass(frozen=True)
class Deliver:
    """Start a Dagster run that only deploys the candidate, in place of one that died before it had."""

    id: int
    candidate: str
    instead_of: str
    reason: str


def strays(started: Sequence[tuple[SeenRun, Row]], timeout_seconds: float) -> list[Stray]:
    """The started runs whose row has been in other hands, or has had its outcome, for too long."""
    found = []
    for run, row in started:
        works = row.status == "running" and row.dagster_run_id == run.run_id
        may_claim = (
            row.status in ("requested", "waiting", "failed")
            and row.dispatch == run.dispatch
            and row.dagster_run_id != run.run_id
        )
        silent = min(run.seconds, row.idle_seconds)
        if works or may_claim or silent <= timeout_seconds:
            continue
        found.append(
            Stray(
                run.run_id,
                f"training run {row.id} is {row.status} since {silent:.0f} s and does not wait for this run,"
                f" {timeout_seconds:.0f} s are allowed",
            )
        )
    return found


def undelivered(passed: Passed, last: LastRun | None, max_attempts: int) -> Deliver | str:
    """Deploy what passed and was never deployed, because its run died or a rollout was live; or why not."""
    what = f"training run {passed.id} has passed and {passed.candidate} is not deployed"
    if passed.waits_for is not None:
        return f"{what}: it waits for rollout {passed.waits_for} to end"
    if last is None:
        return f"{what}: Dagster knows no run of it"
    run = last.run
    if run.state in UNDER_WAY:
        return f"{what} yet: its Dagster run {run.run_id} is {run.state}"
    if run.state != "failed":
        ended = {"canceled": "was canceled", "succeeded": "has succeeded"}
        return f"{what}: its Dagster run {run.run_id} {ended[run.state]}"
    was_in_the_way = passed.freed_seconds is not None and passed.freed_seconds < run.seconds
    if last.answered and not was_in_the_way:
        return f"{what}: its Dagster run {run.run_id} says why"
    if last.deliveries >= max_attempts:
        return f"{what}: {last.deliveries} runs have died over it"
    why = "the rollout it waited for has ended" if last.answered else f"its Dagster run {run.run_id} died"
    return Deliver(passed.id, passed.candidate, run.run_id, f"{what}: {why}")

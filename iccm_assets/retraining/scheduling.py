"""Decide which training run starts next, and which have died; pure functions (T6).

The decisions use what is recorded: the rows of ``phase4_training_runs``, the live rollout, and the state of
the Dagster runs started for the rows. A run request proves nothing, so a run that Dagster never reports is
requested again; the row's ``dispatch`` counts the requests, and only the newest one may claim the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from iccm_assets.registry.training_runs import RunningAttempt, blocking_reason, stalled_reason
from iccm_assets.settings import TriggerSettings

RunState = Literal["created", "queued", "started", "succeeded", "failed", "canceled"]
ACTIVE_STATES = ("created", "queued", "started")
# From the bake stage on, the candidate serves as production: its health decides, not an emergency (R3, R4).
LAST_ABORTABLE_STAGE = 2
# An emergency has to start within an hour of its evidence; a run queued for longer needs a person (T6).
MAX_QUEUED_SECONDS = 3600.0
_ENDED = {"canceled": "been canceled", "succeeded": "ended", "failed": "failed"}


@dataclass(frozen=True)
class QueuedRun:
    """A training run without an outcome, or a failed attempt that may be retried.

    ``idle_seconds`` since the row last changed, in platform time; ``dispatched_seconds`` since the last
    request for a Dagster run, in wall-clock time, ``None`` if there was none. ``dagster_run_id`` is the
    last Dagster run that made an attempt.
    """

    id: int
    status: str
    attempt: int
    dispatch: int
    emergency: bool
    idle_seconds: float
    dispatched_seconds: float | None = None
    dagster_run_id: str | None = None


@dataclass(frozen=True)
class DagsterRunState:
    """The state of the newest Dagster run started for a training run, and its dispatch.

    ``seconds`` are wall-clock seconds in this state.
    """

    run_id: str
    state: RunState
    seconds: float
    dispatch: int


@dataclass(frozen=True)
class ActiveRollout:
    """The live rollout."""

    id: int
    stage: int


@dataclass(frozen=True)
class QueueState:
    """The recorded state: the queue in order, the running attempt and the live rollout."""

    queued_runs: Sequence[QueuedRun]
    running: RunningAttempt | None = None
    rollout: ActiveRollout | None = None


@dataclass(frozen=True)
class StartRun:
    """Start a Dagster run for the row, unless its ``dispatch`` has changed meanwhile.

    ``abort_rollout_id`` is the rollout to abort first (for an emergency), ``stale_run_id`` the Dagster run to
    end, which this one replaces.
    """

    id: int
    dispatch: int
    attempt: int
    reason: str
    abort_rollout_id: int | None = None
    stale_run_id: str | None = None


@dataclass(frozen=True)
class WaitDecision:
    """Start nothing now."""

    reason: str


@dataclass(frozen=True)
class StalledAttempt:
    """An attempt that died; ``stale_run_id`` is its Dagster run if that still looks alive."""

    id: int
    fence: int
    reason: str
    stale_run_id: str | None = None


@dataclass(frozen=True)
class RunOutcome:
    """The end of a row's newest Dagster run, which the row does not record yet."""

    id: int
    dispatch: int
    run_id: str
    reason: str


def find_stalled_attempt(
    running: RunningAttempt | None, dagster_run: DagsterRunState | None, timeout_seconds: float
) -> StalledAttempt | None:
    """Decide whether the running attempt has died: its Dagster run is over, or its heartbeat stopped.

    ``dagster_run`` is the attempt's own; without one only the heartbeat counts.
    """
    if running is None:
        return None
    if dagster_run is not None and dagster_run.state not in ACTIVE_STATES:
        return StalledAttempt(
            running.id, running.fence, f"its Dagster run {dagster_run.run_id} has {_ENDED[dagster_run.state]}"
        )
    if reason := stalled_reason(running, timeout_seconds):
        return StalledAttempt(running.id, running.fence, reason, dagster_run.run_id if dagster_run else None)
    return None


def find_failed_before_claim(
    queued_runs: Sequence[QueuedRun], dagster_runs: Mapping[int, DagsterRunState]
) -> list[RunOutcome]:
    """Return the rows whose newest Dagster run failed before it had claimed them: a failed attempt.

    Otherwise a run that fails in its first step would be started again forever.
    """
    reason = "its Dagster run {run} failed before training began"
    rows = _find_runs_in_state(queued_runs, dagster_runs, "failed", reason)
    claimed = {(queued.id, queued.dagster_run_id) for queued in queued_runs}
    return [row for row in rows if (row.id, row.run_id) not in claimed]


def find_canceled(
    queued_runs: Sequence[QueuedRun], dagster_runs: Mapping[int, DagsterRunState]
) -> list[RunOutcome]:
    """Return the rows whose newest Dagster run a person canceled: they are not started again."""
    return _find_runs_in_state(
        queued_runs, dagster_runs, "canceled", "canceled: its Dagster run {run} was canceled"
    )


def find_stuck_in_queue(
    queued_runs: Sequence[QueuedRun], dagster_runs: Mapping[int, DagsterRunState]
) -> list[RunOutcome]:
    """Return the rows whose Dagster run is queued for so long that a person should look at the queue.

    They keep waiting: Dagster starts a queued run as soon as a slot is free, and every run has a maximum run
    time.
    """
    return [
        outcome
        for queued in queued_runs
        if queued.dispatched_seconds is not None and queued.dispatched_seconds > MAX_QUEUED_SECONDS
        for outcome in _find_runs_in_state(
            [queued], dagster_runs, "queued", f"queued for {queued.dispatched_seconds / 60:.0f} min"
        )
    ]


def choose_next_run(
    state: QueueState,
    dagster_runs: Mapping[int, DagsterRunState],
    triggers: TriggerSettings,
    claim_timeout_seconds: float,
) -> StartRun | WaitDecision:
    """Decide which training run starts now: emergencies first, then by age, failed attempts last.

    The queue comes in that order. One training run at a time, none during a rollout; an emergency aborts a
    rollout at stage 1 or 2. A Dagster run that started and did not claim its row within
    ``claim_timeout_seconds`` counts as dead and is replaced.
    """
    if state.running:
        running = blocking_reason(False, state.running.id, None, None)
        pending = sum(queued.status in ("requested", "waiting") for queued in state.queued_runs)
        return WaitDecision(f"{running}, {pending} more to follow" if pending else f"{running}")
    due = _find_first_due(state.queued_runs, triggers)
    if due is None:
        return WaitDecision("no training run is waiting")
    subject = f"training run {due.id}" + (", an emergency" if due.emergency else "")
    run = _get_newest_run(due, dagster_runs)
    rollout = state.rollout
    if reason := (
        _pending_run_reason(due, run, triggers, claim_timeout_seconds)
        or _retry_pause_reason(due, triggers)
        or _rollout_reason(due, rollout)
    ):
        return WaitDecision(f"{subject}: {reason}")
    return StartRun(
        due.id,
        due.dispatch,
        due.attempt + 1,
        f"{subject}, attempt {due.attempt + 1} of {triggers.max_attempts}",
        abort_rollout_id=rollout.id if rollout else None,
        stale_run_id=run.run_id if run and run.state in ACTIVE_STATES else None,
    )


def _find_first_due(queued_runs: Sequence[QueuedRun], triggers: TriggerSettings) -> QueuedRun | None:
    due = (run for run in queued_runs if run.status != "failed" or run.attempt < triggers.max_attempts)
    return next(due, None)


def _retry_pause_reason(queued: QueuedRun, triggers: TriggerSettings) -> str | None:
    """Return how much of the pause after a failed attempt has passed; ``None`` once it is over."""
    pause = 60 * triggers.retry_minutes
    if queued.status != "failed" or queued.idle_seconds >= pause:
        return None
    return f"attempt {queued.attempt + 1} follows, {queued.idle_seconds:.0f} of {pause:.0f} s since it failed"


def _rollout_reason(queued: QueuedRun, rollout: ActiveRollout | None) -> str | None:
    """Return the live rollout that the row waits for; ``None`` if there is none or the row may abort it."""
    if rollout is None or (queued.emergency and rollout.stage <= LAST_ABORTABLE_STAGE):
        return None
    return f"{blocking_reason(queued.emergency, None, rollout.id, None)}, stage {rollout.stage}"


def _pending_run_reason(
    queued: QueuedRun, run: DagsterRunState | None, triggers: TriggerSettings, claim_timeout_seconds: float
) -> str | None:
    """Return why the row's newest Dagster run may still do its work; ``None`` if it will not."""
    if queued.dispatched_seconds is None:
        return None
    if run is None:
        if queued.dispatched_seconds >= triggers.dispatch_timeout_seconds:
            return None
        return (
            f"its Dagster run is not there yet, {queued.dispatched_seconds:.0f}"
            f" of {triggers.dispatch_timeout_seconds} s"
        )
    if run.state not in ACTIVE_STATES:
        return None
    # A daemon dates the runs it creates by its own clock, which may differ from this process's: such a run is
    # as old as its dispatch, by the platform clock (S4). A queued run is never given up.
    expired = {
        "created": queued.dispatched_seconds > triggers.dispatch_timeout_seconds,
        "started": run.seconds > claim_timeout_seconds,
    }
    return None if expired.get(run.state) else f"its Dagster run {run.run_id} is {run.state}"


def _get_newest_run(queued: QueuedRun, dagster_runs: Mapping[int, DagsterRunState]) -> DagsterRunState | None:
    run = dagster_runs.get(queued.id)
    # A run of an older dispatch says nothing: the row was dispatched again after Dagster was queried.
    return run if run and run.dispatch == queued.dispatch else None


def _find_runs_in_state(
    queued_runs: Sequence[QueuedRun],
    dagster_runs: Mapping[int, DagsterRunState],
    state: RunState,
    reason: str,
) -> list[RunOutcome]:
    """Return the rows whose newest dispatch has a Dagster run in this state."""
    return [
        RunOutcome(queued.id, queued.dispatch, run.run_id, reason.format(run=run.run_id))
        for queued in queued_runs
        if (run := _get_newest_run(queued, dagster_runs)) and run.state == state
    ]

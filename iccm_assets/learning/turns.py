"""Whose turn it is to retrain, and which training runs have died: two pure decisions (T6).

Both are made from what is recorded: the rows of ``phase4_training_runs``, the live rollout, and what Dagster
says of the runs started for them. That a run was asked for proves nothing, so a run that nobody has heard of
is asked for again; the row's ``dispatch`` counts these, and only the newest may claim the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from iccm_assets.settings import Triggers

RunState = Literal["created", "queued", "started", "succeeded", "failed", "canceled"]
UNDER_WAY = ("created", "queued", "started")
# In bake the candidate is in production already: its health decides, not an emergency (R3, R4).
LAST_ABORTABLE_STAGE = 2
# An emergency starts within an hour of its evidence (T6): a run that is queued for longer needs a person.
QUEUED_SECONDS = 3600.0


@dataclass(frozen=True)
class Turn:
    """A training run that has no outcome yet, or a failed attempt that may be followed by another.

    ``idle_seconds`` since the row last changed, on the platform's clock; ``dispatched_seconds`` since a
    Dagster run was last asked for, in real seconds, ``None`` when never. ``dagster_run_id`` is the last one
    that has made an attempt.
    """

    id: int
    status: str
    attempt: int
    dispatch: int
    emergency: bool
    idle_seconds: float = 0.0
    dispatched_seconds: float | None = None
    dagster_run_id: str | None = None


@dataclass(frozen=True)
class Attempt:
    """The training run with status ``running``; ``silent_seconds`` real ones since its last heartbeat."""

    id: int
    fence: int
    dagster_run_id: str
    silent_seconds: float


@dataclass(frozen=True)
class SeenRun:
    """What Dagster says of the newest run started for a training run, and by which dispatch.

    ``seconds`` are real ones in this state.
    """

    run_id: str
    state: RunState
    seconds: float = 0.0
    dispatch: int = 0


@dataclass(frozen=True)
class LiveRollout:
    """The rollout under way."""

    id: int
    stage: int


@dataclass(frozen=True)
class Start:
    """Start a Dagster run for the row, unless its ``dispatch`` has changed meanwhile.

    ``abort`` is the rollout that has to end before it (an emergency at stage 1 or 2), ``zombie`` the Dagster
    run this one replaces, since it has come to nothing.
    """

    id: int
    dispatch: int
    attempt: int
    reason: str
    abort: int | None = None
    zombie: str | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing is started now."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """An attempt that has ended without saying so; ``zombie`` is the Dagster run that still looks alive."""

    id: int
    fence: int
    reason: str
    zombie: str | None = None


@dataclass(frozen=True)
class Settled:
    """A row that does not say what has become of its newest Dagster run."""

    id: int
    dispatch: int
    run_id: str
    reason: str


def lost_attempt(running: Attempt | None, seen: SeenRun | None, timeout_seconds: float) -> Lost | None:
    """Whether the running attempt has died: its Dagster run is over, or it has been silent for too long.

    ``seen`` is what Dagster says of the attempt's own run, ``None`` when it knows of no such run: then only
    the heartbeat speaks.
    """
    if running is None:
        return None
    if seen is not None and seen.state not in UNDER_WAY:
        return Lost(running.id, running.fence, f"its Dagster run {seen.run_id} has {_words(seen)}")
    if running.silent_seconds > timeout_seconds:
        silent = f"no heartbeat for {running.silent_seconds:.0f} s, {timeout_seconds:.0f} s are allowed"
        return Lost(running.id, running.fence, f"its worker died: {silent}", seen.run_id if seen else None)
    return None


def failed_before_claim(turns: Sequence[Turn], seen: Mapping[int, SeenRun]) -> list[Settled]:
    """Rows whose newest Dagster run failed before it had claimed them: an attempt that failed.

    Without this a run that fails in its first step would be started again for ever.
    """
    return [
        Settled(
            turn.id, turn.dispatch, run.run_id, f"its Dagster run {run.run_id} failed before training began"
        )
        for turn, run in _with_run(turns, seen, "failed")
        if run.run_id != turn.dagster_run_id
    ]


def called_off(turns: Sequence[Turn], seen: Mapping[int, SeenRun]) -> list[Settled]:
    """Rows whose newest Dagster run a person canceled: nobody starts them again."""
    return [
        Settled(turn.id, turn.dispatch, run.run_id, f"called off: its Dagster run {run.run_id} was canceled")
        for turn, run in _with_run(turns, seen, "canceled")
    ]


def stuck(turns: Sequence[Turn], seen: Mapping[int, SeenRun]) -> list[Settled]:
    """Rows whose Dagster run is queued for so long that somebody should look what takes the instance's slots.

    They go on waiting: a queued run is started by Dagster as soon as a slot is free, and every run has a
    maximum run time.
    """
    return [
        Settled(
            turn.id, turn.dispatch, run.run_id, f"queued for {(turn.dispatched_seconds or 0.0) / 60:.0f} min"
        )
        for turn, run in _with_run(turns, seen, "queued")
        if (turn.dispatched_seconds or 0.0) > QUEUED_SECONDS
    ]


def next_turn(
    turns: Sequence[Turn],
    running: int | None,
    rollout: LiveRollout | None,
    seen: Mapping[int, SeenRun],
    triggers: Triggers,
    claim_within_seconds: float,
) -> Start | Wait:
    """Which training run is started now: emergencies first, then by age, failed attempts last.

    ``turns`` come in that order. One retrain at a time, none beside a rollout; an emergency ends a rollout
    at stage 1 or 2. A Dagster run that has started and not claimed its row within ``claim_within_seconds`` is
    taken for dead and replaced.
    """
    if running is not None:
        return Wait(f"training run {running} is running{_behind(turns)}")
    due = next((one for one in turns if one.status != "failed" or one.attempt < triggers.max_attempts), None)
    if due is None:
        return Wait("no training run waits")
    what = f"training run {due.id}" + (", an emergency" if due.emergency else "")
    run = seen.get(due.id)
    if run is not None and run.dispatch != due.dispatch:
        run = None  # somebody has dispatched the row since Dagster was asked
    if why := _under_way(due, run, triggers, claim_within_seconds):
        return Wait(f"{what}: {why}")
    pause = 60 * triggers.retry_minutes
    if due.status == "failed" and due.idle_seconds < pause:
        left = f"{due.idle_seconds:.0f} of {pause:.0f} s since it failed"
        return Wait(f"{what}: attempt {due.attempt + 1} follows, {left}")
    aborts = rollout is not None and due.emergency and rollout.stage <= LAST_ABORTABLE_STAGE
    if rollout is not None and not aborts:
        return Wait(f"{what} waits: rollout {rollout.id} is live, stage {rollout.stage}")
    return Start(
        due.id,
        due.dispatch,
        due.attempt + 1,
        f"{what}, attempt {due.attempt + 1} of {triggers.max_attempts}",
        abort=rollout.id if rollout is not None else None,
        zombie=run.run_id if run is not None and run.state in UNDER_WAY else None,
    )


def _under_way(
    turn: Turn, run: SeenRun | None, triggers: Triggers, claim_within_seconds: float
) -> str | None:
    """Why the row's newest Dagster run is still expected to do its work, or ``None``."""
    if turn.dispatched_seconds is None:
        return None
    if run is None:
        if turn.dispatched_seconds >= triggers.dispatch_timeout_seconds:
            return None
        allowed = f"of {triggers.dispatch_timeout_seconds} s"
        return f"its Dagster run is not there yet, {turn.dispatched_seconds:.0f} {allowed}"
    if run.state not in UNDER_WAY:
        return None
    # A daemon dates the runs it creates by its own clock, which may not be this process's: such a run is as
    # old as its dispatch, on the one clock of the platform (S4).
    ages = {"created": turn.dispatched_seconds, "started": run.seconds}
    limits = {"created": float(triggers.dispatch_timeout_seconds), "started": claim_within_seconds}
    if ages.get(run.state, 0.0) > limits.get(run.state, 0.0):
        return None
    return f"its Dagster run {run.run_id} is {run.state}"


def _behind(turns: Sequence[Turn]) -> str:
    waiting = sum(turn.status in ("requested", "waiting") for turn in turns)
    return f", {waiting} more to follow" if waiting else ""


def _with_run(
    turns: Sequence[Turn], seen: Mapping[int, SeenRun], state: RunState
) -> list[tuple[Turn, SeenRun]]:
    """The rows whose newest dispatch's Dagster run is in this state."""
    pairs = [(turn, seen[turn.id]) for turn in turns if turn.id in seen]
    return [(turn, run) for turn, run in pairs if run.state == state and run.dispatch == turn.dispatch]


def _words(run: SeenRun) -> str:
    return {"canceled": "been canceled", "succeeded": "ended"}.get(run.state, run.state)

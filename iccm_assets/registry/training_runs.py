"""One retraining as a row of ``phase4_training_runs``, from request to outcome (T6).

    requested ──┬──> running ──> gate_passed | gate_failed | inconclusive | skipped | failed
                └─> waiting ─┘ ^                                                       │
                               └────────── attempt + 1, at most 3 ─────────────────────┘

Every change is a compare-and-set in the caller's transaction. The unique ``trigger_key`` makes one row per
cause; an advisory lock and a partial unique index let one row run at a time; the ``fence`` is a fencing token
that grows with every claim, so the holder of an older one can neither finish the row nor publish (L6).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, TextClause, text

from iccm_assets.db.clock import CLOCK_SQL
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.db.tables import phase4_training_runs as runs
from iccm_assets.errors import OperationNotAllowedError, RecordNotFoundError, StaleFenceError
from iccm_assets.settings import Settings, get_settings

Trigger = Literal["weekly", "degradation", "data_threshold", "manual"]
VERDICT_STATUS = {"pass": "gate_passed", "fail": "gate_failed", "inconclusive": "inconclusive"}
MAX_HEARTBEAT_INTERVAL_SECONDS = 20.0
OUTCOMES = ("gate_passed", "gate_failed", "inconclusive", "skipped", "failed")
_RECORDABLE = {
    "attempt",
    "training_timestamp",
    "base_version",
    "candidate_version",
    "dataset_digest",
    "config",
    "improvement",
    "verdict",
    "evidence",
    "error",
}


@dataclass(frozen=True)
class TriggerFired:
    """A retraining is due. ``key`` is the same for the same cause, and different for any other."""

    trigger: Trigger
    key: str
    reason: str
    emergency: bool = False


@dataclass(frozen=True)
class TrainingRun:
    """A row of ``phase4_training_runs``."""

    id: int
    trigger: str
    trigger_key: str
    attempt: int
    fence: int
    heartbeat_at: datetime | None
    emergency: bool
    status: str
    timestamp: datetime
    base_version: str | None
    candidate_version: str | None
    dataset_digest: str | None
    config: dict[str, Any]
    improvement: float | None
    notes: str | None
    error: str | None
    dagster_run_id: str | None
    requested_base: str | None = None
    dispatch: int = 0
    requested_window_days: int | None = None

    @property
    def finished(self) -> bool:
        """Whether this attempt has an outcome."""
        return self.status in OUTCOMES


@dataclass(frozen=True)
class RunningAttempt:
    """The training run with status ``running``.

    ``silent_seconds`` are wall-clock seconds since its last heartbeat.
    """

    id: int
    fence: int
    dagster_run_id: str
    silent_seconds: float


_COLUMNS = ", ".join(f'"{field.name}"' for field in fields(TrainingRun))
_CREATE = text(
    f"""
    insert into iccm.phase4_training_runs (trigger, trigger_key, emergency, notes, attempt, requested_base,
                                           requested_window_days, dispatch, dispatched_at)
    values (:trigger, :key, :emergency, :notes, 0, :base, :window_days, :dispatch,
            case when :dispatch > 0 then iccm.now() end)
    on conflict (trigger_key) do nothing
    returning {_COLUMNS}
    """
)
_GET = text(f"select {_COLUMNS} from iccm.phase4_training_runs where id = :id")


_BY_KEY = text(f"select {_COLUMNS} from iccm.phase4_training_runs where trigger_key = :key")
# A fast platform clock must not make a live worker look stalled: its silence counts in wall-clock seconds.
_RUNNING = text(
    f"""
    select id, fence, coalesce(dagster_run_id, '') as dagster_run_id,
           (extract(epoch from clock.now - coalesce(heartbeat_at, updated_at))
            / greatest(1.0, clock.rate))::double precision as silent_seconds
    from iccm.phase4_training_runs cross join {CLOCK_SQL} where status = 'running'
    """
)
_MARK_STALLED = text(
    """
    update iccm.phase4_training_runs
    set status = 'failed', fence = fence + 1, error = :reason, updated_at = iccm.now()
    where id = :id and fence = :fence and status = 'running'
    """
)


_BLOCKERS = text(
    f"""
    select (select id from iccm.phase4_training_runs
            where status = 'running' and id <> :id) as running,
           (select id from iccm.rollouts where state in {LIVE_STATES}) as live_rollout,
           (select min(id) from iccm.phase4_training_runs
            where emergency and status in ('requested', 'waiting') and id <> :id) as emergency_ahead
    """
)
_WAIT = text(
    r"""
    update iccm.phase4_training_runs
    set status = 'waiting', updated_at = iccm.now(),
        notes = case when notes like '%' || :reason then notes else concat_ws(E'\n', notes, :reason) end
    where id = :id and status in ('requested', 'waiting')
    """
)
_CLAIM = text(
    """
    update iccm.phase4_training_runs
    set status = 'running', attempt = attempt + 1, fence = fence + 1, dagster_run_id = :dagster_run_id,
        heartbeat_at = iccm.now(), updated_at = iccm.now(), error = null
    where id = :id
    returning fence
    """
)
_HEARTBEAT = text(
    """
    update iccm.phase4_training_runs set heartbeat_at = iccm.now()
    where id = :id and fence = :fence and status = 'running'
    """
)
_HOLDS_FENCE = text(
    "select from iccm.phase4_training_runs where id = :id and fence = :fence and status = 'running'"
)


def create_run(
    conn: Connection,
    fired: TriggerFired,
    base: str | None = None,
    *,
    window_days: int | None = None,
    dispatched: bool = False,
) -> TrainingRun | None:
    """Write the row of a trigger that fired; return ``None`` if its cause already has one.

    ``base`` is the version to train from; by default the one in production when the run starts.
    ``window_days`` replaces the selection window of the settings. ``dispatched`` means that the caller starts
    the run itself, so that no daemon starts a Dagster run for the row.
    """
    return _fetch(
        conn,
        _CREATE,
        trigger=fired.trigger,
        key=fired.key,
        emergency=fired.emergency,
        notes=fired.reason,
        base=base,
        window_days=window_days,
        dispatch=int(dispatched),
    )


def get_run(conn: Connection, run_id: int) -> TrainingRun:
    """Return the row; raises ``InputError`` if it does not exist."""
    run = _fetch(conn, _GET, id=run_id)
    if run is None:
        raise RecordNotFoundError(f"there is no training run {run_id}")
    return run


def count_own_answers(conn: Connection, run_id: int) -> int:
    """Return how many answers of the model itself a run trains on (L12)."""
    query = "select count(*) from iccm.training_run_examples where training_run_id = :run and role = 'self'"
    count: int = conn.execute(text(query), {"run": run_id}).scalar_one()
    return count


def get_by_trigger_key(conn: Connection, key: str) -> TrainingRun | None:
    """Return the row of a trigger key; ``None`` if there is none."""
    return _fetch(conn, _BY_KEY, key=key)


def get_running_attempt(conn: Connection) -> RunningAttempt | None:
    """Return the attempt that is running; the partial unique index allows one."""
    row = conn.execute(_RUNNING).mappings().one_or_none()
    return None if row is None else RunningAttempt(**row)


def stalled_reason(attempt: RunningAttempt, timeout_seconds: float) -> str | None:
    """Return why an attempt counts as stalled; ``None`` while its heartbeat is recent enough."""
    if attempt.silent_seconds <= timeout_seconds:
        return None
    return (
        f"its worker died: no heartbeat for {attempt.silent_seconds:.0f} s,"
        f" {timeout_seconds:.0f} s are allowed"
    )


def blocking_reason(
    emergency: bool, running: int | None, live_rollout: int | None, emergency_ahead: int | None
) -> str | None:
    """Return why a training run may not start yet; ``None`` if it may (T6).

    ``running`` and ``live_rollout`` are the ids of the running training run and the live rollout,
    ``emergency_ahead`` that of an emergency which has not started; only another emergency may overtake it.
    """
    if running is not None:
        return f"training run {running} is running"
    if live_rollout is not None:
        return f"rollout {live_rollout} is live"
    if emergency_ahead is not None and not emergency:
        return f"the emergency of training run {emergency_ahead} goes first"
    return None


def mark_stalled(conn: Connection, run_id: int, fence: int, reason: str) -> bool:
    """Mark an attempt as failed; its worker can then neither finish nor publish. False if it is over."""
    return conn.execute(_MARK_STALLED, {"id": run_id, "fence": fence, "reason": reason}).rowcount == 1


def claim_run(
    conn: Connection,
    run_id: int,
    dagster_run_id: str,
    settings: Settings | None = None,
    dispatch: int | None = None,
) -> int | None:
    """Claim the row for one attempt and return its fence; ``None`` if it has to wait (T6).

    A waiting row has the reason in its notes; the dispatch sensor starts it later. A stalled attempt is
    marked as failed first. Raises ``OperationNotAllowedError`` if the row has its outcome, another Dagster
    run works on it, no attempt remains, or it was dispatched again since ``dispatch``.
    """
    settings = settings or get_settings()
    acquire_lock(conn, Lock.TRAINING_RUNS)
    attempt = get_running_attempt(conn)
    if attempt and (reason := stalled_reason(attempt, settings.training.heartbeat_timeout_seconds)):
        mark_stalled(conn, attempt.id, attempt.fence, reason)
    run = get_run(conn, run_id)
    _check_claimable(run, dagster_run_id, settings.triggers.max_attempts)
    if dispatch is not None and dispatch != run.dispatch:
        raise OperationNotAllowedError(
            f"dispatch {dispatch} of training run {run.id} was replaced by {run.dispatch}"
        )
    if reason := blocking_reason(run.emergency, **conn.execute(_BLOCKERS, {"id": run_id}).mappings().one()):
        conn.execute(_WAIT, {"id": run_id, "reason": f"waits: {reason}"})
        return None
    fence: int = conn.execute(_CLAIM, {"id": run_id, "dagster_run_id": dagster_run_id}).scalar_one()
    return fence


def heartbeat(conn: Connection, run_id: int, fence: int) -> None:
    """Record that the attempt is alive; raises ``StaleFenceError`` if it is no longer the current one."""
    if conn.execute(_HEARTBEAT, {"id": run_id, "fence": fence}).rowcount != 1:
        raise StaleFenceError(f"training run {run_id}, fence {fence}")


def heartbeat_interval(timeout_seconds: float) -> float:
    """Return the heartbeat interval: several heartbeats fit into the silence that counts as stalled."""
    return min(MAX_HEARTBEAT_INTERVAL_SECONDS, timeout_seconds / 5)


@contextmanager
def heartbeat_loop(
    engine: Engine, run_id: int, fence: int, interval_seconds: float = MAX_HEARTBEAT_INTERVAL_SECONDS
) -> Iterator[None]:
    """Send heartbeats in the background while the block runs; raise a lost fence or database at its end.

    The first heartbeat is immediate: between two steps of a run none are sent.
    """
    stop = threading.Event()
    failures: list[Exception] = []

    def send_heartbeats() -> None:
        interval = 0.0
        while not stop.wait(interval):
            interval = interval_seconds
            try:
                with engine.begin() as conn:
                    heartbeat(conn, run_id, fence)
                failures.clear()
            except StaleFenceError as error:
                with engine.connect() as conn:
                    run = get_run(conn, run_id)
                if (
                    run.fence != fence or not run.finished
                ):  # otherwise the block has just recorded the outcome
                    failures[:] = [error]
                return
            except Exception as error:  # the attempt survives a short outage of the database
                failures[:] = [error]

    thread = threading.Thread(target=send_heartbeats, name=f"heartbeat-{run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def holds_fence(conn: Connection, run_id: int, fence: int) -> bool:
    """Return whether this attempt still holds the fence, and may publish."""
    return conn.execute(_HOLDS_FENCE, {"id": run_id, "fence": fence}).one_or_none() is not None


def update_run(conn: Connection, run_id: int, fence: int, **values: Any) -> None:
    """Set columns of a running attempt (``training_timestamp``, ``dataset_digest``, …) as they become known.

    Raises ``StaleFenceError`` if the attempt is no longer the current one.
    """
    if unknown := sorted(values.keys() - _RECORDABLE):
        raise ValueError(f"a training run has no {', '.join(unknown)} to record")
    _update(conn, run_id, fence, values)


def finish_run(
    conn: Connection, run_id: int, fence: int, status: str, *, notes: str = "", **values: Any
) -> TrainingRun:
    """Record the attempt's outcome, with notes; raises ``StaleFenceError`` like ``update_run``."""
    if status not in OUTCOMES:
        raise ValueError(f"{status!r} is not an outcome of a training run")
    update_run(conn, run_id, fence, **values)
    joined = "\n".join(part for part in (get_run(conn, run_id).notes, notes) if part)
    _update(conn, run_id, fence, {"status": status, "notes": joined or None})
    return get_run(conn, run_id)


def _fetch(conn: Connection, statement: TextClause, **values: Any) -> TrainingRun | None:
    row = conn.execute(statement, values).mappings().one_or_none()
    return None if row is None else TrainingRun(**row)


def _check_claimable(run: TrainingRun, dagster_run_id: str, max_attempts: int) -> None:
    if run.status == "running" and run.dagster_run_id != dagster_run_id:
        raise OperationNotAllowedError(
            f"training run {run.id} is already running in Dagster run {run.dagster_run_id}"
        )
    if run.finished and run.status != "failed":
        raise OperationNotAllowedError(f"training run {run.id} is over: {run.status}")
    if run.attempt >= max_attempts:
        raise OperationNotAllowedError(
            f"training run {run.id} has used its {max_attempts} attempts: {run.error or run.notes}"
        )


def _update(conn: Connection, run_id: int, fence: int, values: dict[str, Any]) -> None:
    current = (runs.c.id == run_id) & (runs.c.fence == fence) & (runs.c.status == "running")
    statement = runs.update().where(current).values(**values, updated_at=text("iccm.now()"))
    if conn.execute(statement).rowcount != 1:
        raise StaleFenceError(f"training run {run_id}, fence {fence}")

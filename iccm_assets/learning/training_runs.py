"""One retraining as a row of ``phase4_training_runs``, from request to outcome (T6).

    requested ──┬──> running ──> gate_passed | gate_failed | inconclusive | skipped | failed
                └─> waiting ─┘ ^                                                       │
                               └────────── attempt + 1, at most 3 ─────────────────────┘

Every change is a compare-and-set in the caller's transaction. The unique ``trigger_key`` makes one row per
cause; an advisory lock and a partial unique index let one row run at a time; the ``fence`` grows with every
claim, so whoever holds an older one can neither finish the row nor publish (L6).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, text

from iccm_assets.errors import InputError, NotAllowed, StaleFence
from iccm_assets.learning.triggers import Fire, must_wait
from iccm_assets.settings import Settings, get_settings
from iccm_assets.store.locks import Lock, acquire_lock
from iccm_assets.store.tables import LIVE_STATES
from iccm_assets.store.tables import phase4_training_runs as runs

VERDICT_STATUS = {"pass": "gate_passed", "fail": "gate_failed", "inconclusive": "inconclusive"}
MOST_SECONDS_BETWEEN_BEATS = 20.0
OUTCOMES = ("gate_passed", "gate_failed", "inconclusive", "skipped", "failed")
_FACTS = {
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
    training_timestamp: datetime | None
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
    dispatched_at: datetime | None = None
    requested_window_days: int | None = None

    @property
    def finished(self) -> bool:
        """Whether this attempt has an outcome."""
        return self.status in OUTCOMES


_COLUMNS = ", ".join(f'"{field.name}"' for field in fields(TrainingRun))

_REQUEST = text(
    f"""
    INSERT INTO iccm.phase4_training_runs (trigger, trigger_key, emergency, notes, attempt, requested_base,
                                           requested_window_days, dispatch, dispatched_at)
    VALUES (:trigger, :key, :emergency, :notes, 0, :base, :window_days, :dispatch,
            CASE WHEN :dispatch > 0 THEN iccm.now() END)
    ON CONFLICT (trigger_key) DO NOTHING
    RETURNING {_COLUMNS}
    """
)
_GET = text(f"SELECT {_COLUMNS} FROM iccm.phase4_training_runs WHERE id = :id")
_BY_KEY = text(f"SELECT {_COLUMNS} FROM iccm.phase4_training_runs WHERE trigger_key = :key")

# A faster platform clock must not make a living worker look dead: its silence is measured in its own time.
_REAP = text(
    """
    UPDATE iccm.phase4_training_runs
    SET status = 'failed', fence = fence + 1, updated_at = iccm.now(),
        error = 'its worker died: no heartbeat since ' || coalesce(heartbeat_at::text, 'it was claimed')
    WHERE status = 'running'
      AND iccm.now() - coalesce(heartbeat_at, updated_at) > make_interval(secs => :timeout)
          * greatest(1, (SELECT (value ->> 'rate')::double precision FROM iccm.platform WHERE key = 'clock'))
    """
)
_UNDER_WAY = text(
    f"""
    SELECT (SELECT id FROM iccm.phase4_training_runs
            WHERE status = 'running' AND id <> :id) AS running,
           (SELECT id FROM iccm.rollouts
            WHERE state IN {LIVE_STATES}) AS live_rollout,
           (SELECT min(id) FROM iccm.phase4_training_runs
            WHERE emergency AND status IN ('requested', 'waiting') AND id <> :id) AS emergency_ahead
    """
)
_WAIT = text(
    f"""
    UPDATE iccm.phase4_training_runs
    SET status = 'waiting', updated_at = iccm.now(),
        notes = CASE WHEN notes LIKE '%' || :reason THEN notes ELSE concat_ws(E'\n', notes, :reason) END
    WHERE id = :id AND status IN ('requested', 'waiting')
    RETURNING {_COLUMNS}
    """
)
_CLAIM = text(
    """
    UPDATE iccm.phase4_training_runs
    SET status = 'running', attempt = attempt + 1, fence = fence + 1, dagster_run_id = :dagster_run_id,
        heartbeat_at = iccm.now(), updated_at = iccm.now(), error = NULL
    WHERE id = :id
    RETURNING fence
    """
)
_HEARTBEAT = text(
    """
    UPDATE iccm.phase4_training_runs SET heartbeat_at = iccm.now()
    WHERE id = :id AND fence = :fence AND status = 'running'
    """
)
_CURRENT = text(
    "SELECT FROM iccm.phase4_training_runs WHERE id = :id AND fence = :fence AND status = 'running'"
)
_NEXT = text(
    f"""
    SELECT {_COLUMNS} FROM iccm.phase4_training_runs
    WHERE status IN ('requested', 'waiting') OR (status = 'failed' AND attempt < :max_attempts)
    ORDER BY emergency DESC, status = 'failed', "timestamp", id
    LIMIT 1
    """
)


def request(
    conn: Connection,
    fire: Fire,
    base: str | None = None,
    *,
    window_days: int | None = None,
    dispatched: bool = False,
) -> TrainingRun | None:
    """Write the row of a trigger that fired, or return ``None`` when its cause already has one.

    ``base`` names the version to train from; without it that is the one in production when the run starts.
    ``window_days`` is how far back examples are taken, instead of the settings' window. ``dispatched`` says
    that the caller carries the row out itself: nobody else starts a Dagster run for it meanwhile.
    """
    values = {"trigger": fire.trigger, "key": fire.key, "emergency": fire.emergency, "notes": fire.reason}
    values |= {"base": base, "window_days": window_days, "dispatch": int(dispatched)}
    row = conn.execute(_REQUEST, values).mappings().one_or_none()
    return None if row is None else _run(row)


def get(conn: Connection, run_id: int) -> TrainingRun:
    """The row; ``InputError`` when there is none."""
    row = conn.execute(_GET, {"id": run_id}).mappings().one_or_none()
    if row is None:
        raise InputError(f"there is no training run {run_id}")
    return _run(row)


def by_key(conn: Connection, key: str) -> TrainingRun | None:
    """The row of a trigger key, if its cause was ever requested."""
    row = conn.execute(_BY_KEY, {"key": key}).mappings().one_or_none()
    return None if row is None else _run(row)


def next_to_start(conn: Connection, settings: Settings | None = None) -> TrainingRun | None:
    """The row whose turn it is: emergencies first, then by age, failed attempts that may be retried last."""
    settings = settings or get_settings()
    row = conn.execute(_NEXT, {"max_attempts": settings.triggers.max_attempts}).mappings().one_or_none()
    return None if row is None else _run(row)


def claim(
    conn: Connection,
    run_id: int,
    dagster_run_id: str,
    settings: Settings | None = None,
    dispatch: int | None = None,
) -> int | None:
    """Take the row for one attempt and return its fence, or ``None`` when it has to wait (T6).

    A row that waits says why in its notes and is not lost: ``next_to_start`` finds it. An attempt whose
    worker fell silent counts as failed. Raises ``NotAllowed`` when the row already has its outcome, is being
    worked on by somebody else, has no attempt left, or has been dispatched again since ``dispatch``.
    """
    settings = settings or get_settings()
    acquire_lock(conn, Lock.TRAINING_RUNS)
    conn.execute(_REAP, {"timeout": settings.training.heartbeat_timeout_seconds})
    run = get(conn, run_id)
    _check_claimable(run, dagster_run_id, settings.triggers.max_attempts)
    if dispatch is not None and dispatch != run.dispatch:
        raise NotAllowed(f"dispatch {dispatch} of training run {run.id} was replaced by {run.dispatch}")
    under_way = conn.execute(_UNDER_WAY, {"id": run_id}).mappings().one()
    reason = must_wait(run.emergency, **under_way)
    if reason is not None:
        conn.execute(_WAIT, {"id": run_id, "reason": f"waits: {reason}"})
        return None
    fence: int = conn.execute(_CLAIM, {"id": run_id, "dagster_run_id": dagster_run_id}).scalar_one()
    return fence


def lock(conn: Connection) -> None:
    """Until the transaction ends nobody else requests, dispatches or claims a training run."""
    acquire_lock(conn, Lock.TRAINING_RUNS)


def heartbeat(conn: Connection, run_id: int, fence: int) -> None:
    """Say that the attempt lives; ``StaleFence`` when it is no longer the current one."""
    if conn.execute(_HEARTBEAT, {"id": run_id, "fence": fence}).rowcount != 1:
        raise StaleFence(f"training run {run_id}, fence {fence}")


def seconds_between_beats(timeout_seconds: float) -> float:
    """How often a living attempt says so: several times in the silence that makes it look dead."""
    return min(MOST_SECONDS_BETWEEN_BEATS, timeout_seconds / 5)


@contextmanager
def kept_alive(
    engine: Engine, run_id: int, fence: int, every_seconds: float = MOST_SECONDS_BETWEEN_BEATS
) -> Iterator[None]:
    """Beat in the background while the block works; a lost fence or database is raised when it ends.

    The first beat is at once: between two steps of a run nobody beats.
    """
    stop = threading.Event()
    trouble: list[Exception] = []

    def beat() -> None:
        pause = 0.0
        while not stop.wait(pause):
            pause = every_seconds
            try:
                with engine.begin() as conn:
                    heartbeat(conn, run_id, fence)
                trouble.clear()
            except StaleFence as error:
                if not _finished(engine, run_id, fence):  # else the block has just given it its outcome
                    trouble[:] = [error]
                return
            except Exception as error:  # a database that comes back is no reason to lose the attempt
                trouble[:] = [error]

    thread = threading.Thread(target=beat, name=f"heartbeat-{run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if trouble:
        raise trouble[0]


def _finished(engine: Engine, run_id: int, fence: int) -> bool:
    """Whether the attempt of this fence has its outcome."""
    with engine.connect() as conn:
        run = get(conn, run_id)
    return run.fence == fence and run.finished


def still_current(conn: Connection, run_id: int, fence: int) -> bool:
    """Whether this attempt may still publish."""
    return conn.execute(_CURRENT, {"id": run_id, "fence": fence}).one_or_none() is not None


def record(conn: Connection, run_id: int, fence: int, **facts: Any) -> None:
    """Set columns of a running attempt (``training_timestamp``, ``dataset_digest``, …) as they become known.

    Raises ``StaleFence`` when the attempt is no longer the current one.
    """
    _update(conn, run_id, fence, _checked(facts))


def finish(
    conn: Connection, run_id: int, fence: int, status: str, *, notes: str = "", **facts: Any
) -> TrainingRun:
    """Give the attempt its outcome; ``notes`` are added to the row's. Raises ``StaleFence`` as ``record``."""
    if status not in OUTCOMES:
        raise ValueError(f"{status!r} is not an outcome of a training run")
    before = get(conn, run_id)
    joined = "\n".join(part for part in (before.notes, notes) if part)
    _update(conn, run_id, fence, {**_checked(facts), "status": status, "notes": joined or None})
    return get(conn, run_id)


def _check_claimable(run: TrainingRun, dagster_run_id: str, max_attempts: int) -> None:
    if run.status == "running" and run.dagster_run_id != dagster_run_id:
        raise NotAllowed(f"training run {run.id} is being worked on by Dagster run {run.dagster_run_id}")
    if run.finished and run.status != "failed":
        raise NotAllowed(f"training run {run.id} is over: {run.status}")
    if run.attempt >= max_attempts:
        raise NotAllowed(
            f"training run {run.id} has used its {max_attempts} attempts: {run.error or run.notes}"
        )


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(facts) - _FACTS)
    if unknown:
        raise ValueError(f"a training run has no {', '.join(unknown)} to record")
    return facts


def _update(conn: Connection, run_id: int, fence: int, values: dict[str, Any]) -> None:
    current = (runs.c.id == run_id) & (runs.c.fence == fence) & (runs.c.status == "running")
    statement = runs.update().where(current).values(**values, updated_at=text("iccm.now()"))
    if conn.execute(statement).rowcount != 1:
        raise StaleFence(f"training run {run_id}, fence {fence}")


def _run(row: RowMapping) -> TrainingRun:
    return TrainingRun(**row)

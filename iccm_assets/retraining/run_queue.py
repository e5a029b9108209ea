"""The queue of training runs in the database: read it, and record dispatches and dead runs (T6).

The process that increments a row's ``dispatch`` starts its Dagster run, so two daemons that decide the same
start one run. If the daemon dies in between, Dagster never reports the run and the row is dispatched again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, TextClause, text

from iccm_assets.db.clock import CLOCK_SQL
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.registry import training_runs
from iccm_assets.registry.training_runs import TrainingRun, blocking_reason
from iccm_assets.retraining.recovery import TrainingRunRow, UndeployedCandidate
from iccm_assets.retraining.scheduling import ActiveRollout, QueuedRun, QueueState, RunOutcome
from iccm_assets.settings import TriggerSettings

_QUEUED_RUNS = text(
    f"""
    select id, status, attempt, dispatch, emergency, dagster_run_id,
           extract(epoch from clock.now - updated_at)::double precision as idle_seconds,
           (extract(epoch from clock.now - dispatched_at) / greatest(1.0, clock.rate))::double precision
               as dispatched_seconds
    from iccm.phase4_training_runs cross join {CLOCK_SQL}
    where status in ('requested', 'waiting') or (status = 'failed' and attempt < :max_attempts)
    order by emergency desc, status = 'failed', "timestamp", id
    limit 50
    """
)
_LIVE_ROLLOUT = text(f"select id, stage from iccm.rollouts where state in {LIVE_STATES}")
_CLAIM_DISPATCH = text(
    """
    update iccm.phase4_training_runs
    set dispatch = dispatch + 1, dispatched_at = iccm.now()
    where id = :id and dispatch = :dispatch and status in ('requested', 'waiting', 'failed')
    """
)
_MARK_FAILED = text(
    """
    update iccm.phase4_training_runs
    set status = 'failed', attempt = attempt + 1, dagster_run_id = :run_id, error = :reason,
        updated_at = iccm.now()
    where id = :id and dispatch = :dispatch and status in ('requested', 'waiting', 'failed')
      and dagster_run_id is distinct from :run_id
    """
)
_MARK_CANCELED = text(
    r"""
    update iccm.phase4_training_runs
    set status = 'skipped', notes = concat_ws(E'\n', notes, cast(:reason as text)), updated_at = iccm.now()
    where id = :id and dispatch = :dispatch and status in ('requested', 'waiting', 'failed')
    """
)
_EXHAUSTED_RUNS = text(
    """
    select id from iccm.phase4_training_runs r
    where status = 'failed' and attempt >= :max_attempts and updated_at > iccm.now() - interval '30 days'
      and not exists (select from iccm.alerts a where a.key = 'training_run:' || r.id || '\\:failed')
    """
)
_ROWS = text(
    f"""
    select id, status, dispatch, dagster_run_id,
           (extract(epoch from clock.now - updated_at) / greatest(1.0, clock.rate))::double precision
               as idle_seconds
    from iccm.phase4_training_runs cross join {CLOCK_SQL} where id = any(:ids)
    """
)
# A verdict against a version that is no longer in production does not allow a deployment.
_UNDEPLOYED = text(
    f"""
    select r.id, r.candidate_version as candidate, other.live_rollout,
           (extract(epoch from clock.now - other.ended_at) / greatest(1.0, clock.rate))::double precision
               as rollout_ended_seconds
    from iccm.phase4_training_runs r join iccm.model_versions v on v.version = r.candidate_version
    cross join {CLOCK_SQL}
    cross join lateral (
        select max(o.id) filter (where o.state in {LIVE_STATES}) as live_rollout, max(o.closed_at) as ended_at
        from iccm.rollouts o) other
    where r.status = 'gate_passed' and v.status = 'candidate'
      and greatest(r.updated_at, other.ended_at) > clock.now - interval '7 days'
      and not exists (select from iccm.rollouts o where o.candidate = v.version)
      and not exists (
          select from iccm.model_versions p
          where p.status = 'production' and p.version <> (
              select g.production_version from iccm.gate_verdicts g
              where g.version = v.version order by g.id desc limit 1))
    order by r.id desc limit 1
    """
)


def load_queue_state(conn: Connection, triggers: TriggerSettings) -> QueueState:
    """Read the recorded state; a few rows, even if the history is long."""
    queued = conn.execute(_QUEUED_RUNS, {"max_attempts": triggers.max_attempts}).mappings()
    rollout = conn.execute(_LIVE_ROLLOUT).mappings().one_or_none()
    return QueueState(
        tuple(QueuedRun(**row) for row in queued),
        training_runs.get_running_attempt(conn),
        None if rollout is None else ActiveRollout(**rollout),
    )


def claim_dispatch(conn: Connection, run_id: int, dispatch: int) -> TrainingRun | None:
    """Claim the start of the row's next Dagster run; ``None`` if another process has claimed it."""
    if conn.execute(_CLAIM_DISPATCH, {"id": run_id, "dispatch": dispatch}).rowcount != 1:
        return None
    return training_runs.get_run(conn, run_id)


def claim_dispatch_if_free(
    conn: Connection, run: TrainingRun, triggers: TriggerSettings
) -> TrainingRun | str:
    """Claim the start of a row that was just requested; else return why it waits.

    Only the simple case: the dispatch sensor aborts rollouts and clears dead attempts.
    """
    acquire_lock(conn, Lock.TRAINING_RUNS)
    queue = load_queue_state(conn, triggers)
    running_id = queue.running.id if queue.running else None
    rollout_id = queue.rollout.id if queue.rollout else None
    if reason := blocking_reason(run.emergency, running_id, rollout_id, None):
        return reason
    for queued in queue.queued_runs:
        if queued.id != run.id and queued.status != "failed":
            return f"training run {queued.id} comes first"
    return claim_dispatch(conn, run.id, run.dispatch) or "another process has started it"


def mark_failed_before_claim(conn: Connection, outcomes: Sequence[RunOutcome]) -> None:
    """Record attempts that failed before they had claimed their rows, once each."""
    _record_outcomes(conn, _MARK_FAILED, outcomes)


def mark_canceled(conn: Connection, outcomes: Sequence[RunOutcome]) -> None:
    """Record the outcome ``skipped`` for rows whose Dagster run a person canceled."""
    _record_outcomes(conn, _MARK_CANCELED, outcomes)


def get_rows(conn: Connection, ids: Sequence[int]) -> dict[int, TrainingRunRow]:
    """Return the rows of these ids, with what decides whether they still need their Dagster runs."""
    return {row["id"]: TrainingRunRow(**row) for row in conn.execute(_ROWS, {"ids": list(ids)}).mappings()}


def find_undeployed_candidate(conn: Connection) -> UndeployedCandidate | None:
    """Return the newest training run of a week that passed the gate and whose candidate had no rollout."""
    row = conn.execute(_UNDEPLOYED).mappings().one_or_none()
    return None if row is None else UndeployedCandidate(**row)


def find_exhausted_runs(conn: Connection, triggers: TriggerSettings) -> list[TrainingRun]:
    """Return the training runs without attempts left that have no alert yet (A2)."""
    ids = conn.execute(_EXHAUSTED_RUNS, {"max_attempts": triggers.max_attempts}).scalars().all()
    return [training_runs.get_run(conn, run_id) for run_id in ids]


def _record_outcomes(conn: Connection, statement: TextClause, outcomes: Sequence[RunOutcome]) -> None:
    for outcome in outcomes:
        conn.execute(statement, vars(outcome))

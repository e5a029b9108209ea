"""The rows behind ``turns``: what waits, who starts it, and attempts that are over without saying so (T6).

Whoever raises a row's ``dispatch`` starts its Dagster run, so two daemons that decide the same start one. A
daemon that dies in between is no loss: nobody hears of the run, and the row is dispatched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from iccm_assets.learning import training_runs
from iccm_assets.learning.leftovers import Passed, Row
from iccm_assets.learning.training_runs import TrainingRun
from iccm_assets.learning.triggers import must_wait
from iccm_assets.learning.turns import Attempt, LiveRollout, Lost, Settled, Turn
from iccm_assets.settings import Triggers
from iccm_assets.store.tables import LIVE_STATES

# A faster platform clock must not make a living worker look dead: silence is measured in its own time.
_RATE = """
    greatest(1.0, coalesce((SELECT (value ->> 'rate')::double precision
                            FROM iccm.platform WHERE key = 'clock'), 1.0))
"""
_TURNS = text(
    f"""
    SELECT id, status, attempt, dispatch, emergency, dagster_run_id,
           extract(epoch FROM iccm.now() - updated_at)::double precision AS idle_seconds,
           (extract(epoch FROM iccm.now() - dispatched_at) / {_RATE})::double precision AS dispatched_seconds
    FROM iccm.phase4_training_runs
    WHERE status IN ('requested', 'waiting') OR (status = 'failed' AND attempt < :max_attempts)
    ORDER BY emergency DESC, status = 'failed', "timestamp", id
    LIMIT 50
    """
)
_RUNNING = text(
    f"""
    SELECT id, fence, coalesce(dagster_run_id, '') AS dagster_run_id,
           (extract(epoch FROM iccm.now() - coalesce(heartbeat_at, updated_at)) / {_RATE})::double precision
               AS silent_seconds
    FROM iccm.phase4_training_runs WHERE status = 'running'
    """
)
_ROLLOUT = text(f"SELECT id, stage FROM iccm.rollouts WHERE state IN {LIVE_STATES}")
_TAKE = text(
    """
    UPDATE iccm.phase4_training_runs
    SET dispatch = dispatch + 1, dispatched_at = iccm.now()
    WHERE id = :id AND dispatch = :dispatch AND status IN ('requested', 'waiting', 'failed')
    """
)
_LOSE = text(
    """
    UPDATE iccm.phase4_training_runs
    SET status = 'failed', fence = fence + 1, error = :reason, updated_at = iccm.now()
    WHERE id = :id AND fence = :fence AND status = 'running'
    """
)
_FAIL = text(
    """
    UPDATE iccm.phase4_training_runs
    SET status = 'failed', attempt = attempt + 1, dagster_run_id = :run_id, error = :reason,
        updated_at = iccm.now()
    WHERE id = :id AND dispatch = :dispatch AND status IN ('requested', 'waiting', 'failed')
      AND dagster_run_id IS DISTINCT FROM :run_id
    """
)
_CALL_OFF = text(
    """
    UPDATE iccm.phase4_training_runs
    SET status = 'skipped', notes = concat_ws(E'\n', notes, CAST(:reason AS text)), updated_at = iccm.now()
    WHERE id = :id AND dispatch = :dispatch AND status IN ('requested', 'waiting', 'failed')
    """
)
_USED_UP = text(
    """
    SELECT id FROM iccm.phase4_training_runs r
    WHERE status = 'failed' AND attempt >= :max_attempts AND updated_at > iccm.now() - interval '30 days'
      AND NOT EXISTS (SELECT FROM iccm.alerts a WHERE a.key = 'training_run:' || r.id || '\\:failed')
    """
)
_ROWS = text(
    f"""
    SELECT id, status, dispatch, dagster_run_id,
           (extract(epoch FROM iccm.now() - updated_at) / {_RATE})::double precision AS idle_seconds
    FROM iccm.phase4_training_runs WHERE id = ANY(:ids)
    """
)
# A verdict against a version that no longer serves allows no deployment.
_PASSED = text(
    f"""
    SELECT r.id, r.candidate_version AS candidate, way.live AS waits_for,
           (extract(epoch FROM iccm.now() - way.freed_at) / {_RATE})::double precision AS freed_seconds
    FROM iccm.phase4_training_runs r JOIN iccm.model_versions v ON v.version = r.candidate_version
    CROSS JOIN LATERAL (
        SELECT max(o.id) FILTER (WHERE o.state IN {LIVE_STATES}) AS live,
               max(o.closed_at) AS freed_at
        FROM iccm.rollouts o) way
    WHERE r.status = 'gate_passed' AND v.status = 'candidate'
      AND greatest(r.updated_at, way.freed_at) > iccm.now() - interval '7 days'
      AND NOT EXISTS (SELECT FROM iccm.rollouts o WHERE o.candidate = v.version)
      AND NOT EXISTS (
          SELECT FROM iccm.model_versions p
          WHERE p.status = 'production' AND p.version <> (
              SELECT g.production_version FROM iccm.gate_verdicts g
              WHERE g.version = v.version ORDER BY g.id DESC LIMIT 1))
    ORDER BY r.id DESC LIMIT 1
    """
)


@dataclass(frozen=True)
class Situation:
    """What is recorded now: who is at it, who waits in which order, and the live rollout."""

    turns: tuple[Turn, ...]
    running: Attempt | None
    rollout: LiveRollout | None


def situation(conn: Connection, triggers: Triggers) -> Situation:
    """Read it; a few rows whatever the history."""
    turns = conn.execute(_TURNS, {"max_attempts": triggers.max_attempts}).mappings()
    running = conn.execute(_RUNNING).mappings().one_or_none()
    rollout = conn.execute(_ROLLOUT).mappings().one_or_none()
    return Situation(
        tuple(Turn(**row) for row in turns),
        None if running is None else Attempt(**running),
        None if rollout is None else LiveRollout(**rollout),
    )


def take(conn: Connection, run_id: int, dispatch: int) -> TrainingRun | None:
    """Become the one who starts the row's next Dagster run; ``None`` when somebody else is."""
    if conn.execute(_TAKE, {"id": run_id, "dispatch": dispatch}).rowcount != 1:
        return None
    return training_runs.get(conn, run_id)


def take_if_free(conn: Connection, run: TrainingRun, triggers: Triggers) -> TrainingRun | str:
    """Start a row that was just requested at once when nothing is in its way; else why it waits.

    Only the simple case: what needs a rollout aborted or a dead attempt cleared is left to the dispatcher.
    """
    training_runs.lock(conn)
    now = situation(conn, triggers)
    ahead = [turn.id for turn in now.turns if turn.id != run.id and turn.status != "failed"]
    busy = now.running.id if now.running else None
    waits = must_wait(run.emergency, busy, now.rollout.id if now.rollout else None, None)
    if waits is None and ahead:
        waits = f"training run {ahead[0]} comes first"
    if waits is not None:
        return waits
    return take(conn, run.id, run.dispatch) or "it was started by somebody else"


def lose(conn: Connection, lost: Lost) -> bool:
    """Record that an attempt has died; whoever still works on it can neither finish nor publish."""
    return conn.execute(_LOSE, {"id": lost.id, "fence": lost.fence, "reason": lost.reason}).rowcount == 1


def fail_unclaimed(conn: Connection, settled: Sequence[Settled]) -> None:
    """Record attempts that ended before they had claimed their rows, once each."""
    for one in settled:
        conn.execute(_FAIL, vars(one))


def call_off(conn: Connection, settled: Sequence[Settled]) -> None:
    """Give rows that a person called off their outcome, ``skipped``."""
    for one in settled:
        conn.execute(_CALL_OFF, vars(one))


def rows(conn: Connection, ids: Sequence[int]) -> dict[int, Row]:
    """The rows of these ids, as far as a Dagster run's use for them depends on them."""
    return {row["id"]: Row(**row) for row in conn.execute(_ROWS, {"ids": list(ids)}).mappings()}


def passed_and_not_deployed(conn: Connection) -> Passed | None:
    """The newest training run of a week that has passed and whose candidate never had a rollout."""
    found = conn.execute(_PASSED).mappings().one_or_none()
    return None if found is None else Passed(**found)


def used_up(conn: Connection, triggers: Triggers) -> list[TrainingRun]:
    """Training runs that have failed for good and were not alerted yet (A2)."""
    ids = conn.execute(_USED_UP, {"max_attempts": triggers.max_attempts}).scalars().all()
    return [training_runs.get(conn, one) for one in ids]

"""A trigger's look: what it reads, and the row it writes when it fires (T1-T3). Nothing is started here.

Each takes a connection inside a transaction and returns what came of it, with numbers; the row's unique key
makes one retraining of one cause, whatever the number of daemons that look.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from iccm_assets.learning import proposal, training_runs, triggers
from iccm_assets.learning.training_runs import TrainingRun
from iccm_assets.learning.triggers import Fire, Measurement, Skip
from iccm_assets.settings import Settings
from iccm_assets.store.tables import LIVE_STATES


@dataclass(frozen=True)
class Fired:
    """The row that was written for a cause, and why."""

    run: TrainingRun
    reason: str


def weekly(conn: Connection, at: datetime, settings: Settings) -> Fired | Skip:
    """T1 at a moment."""
    counted = proposal.selectable(conn, at, settings.selection)
    return _written(conn, triggers.weekly(at, counted, settings.triggers))


def data_threshold(conn: Connection, at: datetime, settings: Settings) -> Fired | Skip:
    """T3 at a moment; once the day has its retraining nothing is counted any more."""
    if too_early := triggers.data_threshold_too_early(at):
        return too_early
    known = training_runs.by_key(conn, triggers.data_threshold_key(at))
    if known is not None:
        return _known(known)
    counted = proposal.selectable(conn, at, settings.selection)
    return _written(conn, triggers.data_threshold(at, counted, settings.triggers))


def degradation(conn: Connection, settings: Settings) -> Fired | Skip:
    """T2 on the newest measurements of the version in production."""
    training_runs.lock(conn)
    newest = [_measurement(row) for row in conn.execute(_NEWEST)]
    decision = triggers.emergency_due(newest, _answer(conn, settings), settings.triggers)
    return _written(conn, decision)


def _written(conn: Connection, decision: Fire | Skip) -> Fired | Skip:
    if isinstance(decision, Skip):
        return decision
    row = training_runs.request(conn, decision)
    if row is None:
        known = training_runs.by_key(conn, decision.key)
        return _known(known) if known else Skip(f"{decision.key} has its retraining already")
    return Fired(row, decision.reason)


def _known(run: TrainingRun) -> Skip:
    return Skip(f"{run.trigger_key} has its retraining already: training run {run.id}, {run.status}")


# Of the version in production, since it was deployed: the newest measurement of each set.
_NEWEST = text(
    """
    SELECT DISTINCT ON (q.set) q.id, q.version, q.set, q.n, q.mean, q.standard_error, q.baseline_mean,
           q.measured_at, q.evidence
    FROM iccm.quality_measurements q
    JOIN iccm.model_versions m ON m.version = q.version AND m.status = 'production'
    WHERE m.deployed_at IS NULL OR q.measured_at >= m.deployed_at
    ORDER BY q.set, q.measured_at DESC, q.id DESC
    """
)
_LAST_EMERGENCY = text(
    """
    SELECT id, status, updated_at,
           status IN ('requested', 'waiting', 'running') OR (status = 'failed' AND attempt < :max_attempts)
               AS under_way
    FROM iccm.phase4_training_runs
    WHERE trigger = 'degradation' ORDER BY id DESC LIMIT 1
    """
)
_EMERGENCY_ROLLOUT = text(
    f"""
    SELECT id FROM iccm.rollouts
    WHERE emergency AND state IN {LIVE_STATES}
    """
)


def _measurement(row: object) -> Measurement:
    evidence = row.evidence or {}  # type: ignore[attr-defined]
    values = {name: getattr(row, name) for name in ("id", "version", "set", "n", "mean", "standard_error")}
    return Measurement(
        **values,
        baseline_mean=row.baseline_mean,  # type: ignore[attr-defined]
        measured_at=row.measured_at,  # type: ignore[attr-defined]
        confidence=evidence.get("confidence"),
    )


def _answer(conn: Connection, settings: Settings) -> triggers.Answer:
    """What is being done, or was done last, about a fall of production."""
    last = conn.execute(_LAST_EMERGENCY, {"max_attempts": settings.triggers.max_attempts}).one_or_none()
    rollout = conn.execute(_EMERGENCY_ROLLOUT).scalar_one_or_none()
    if last is None:
        return triggers.Answer(rollout=rollout)
    return triggers.Answer(last.id, last.status, None if last.under_way else last.updated_at, rollout)

"""Evaluate a trigger against the database, and write the row of a trigger that fires (T1-T3).

Each function takes a connection inside a transaction and returns the new row, with its reason in the notes,
or the reason for none. No run is started here. The row's unique key allows one retraining per cause, even if
several daemons evaluate the trigger.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.registry import training_runs
from iccm_assets.registry.training_runs import TrainingRun, TriggerFired
from iccm_assets.retraining import example_queries, triggers
from iccm_assets.retraining.triggers import QualityMeasurement, TriggerSkipped
from iccm_assets.settings import Settings

# The newest measurement of each set of the production version since its deployment.
_LATEST_MEASUREMENTS = text(
    """
    select distinct on (q.set) q.id, q.version, q.set, q.n, q.mean, q.standard_error, q.baseline_mean,
           q.measured_at, (q.evidence ->> 'confidence')::double precision as confidence
    from iccm.quality_measurements q
    join iccm.model_versions m on m.version = q.version and m.status = 'production'
    where m.deployed_at is null or q.measured_at >= m.deployed_at
    order by q.set, q.measured_at desc, q.id desc
    """
)
_EMERGENCY_STATUS = text(
    f"""
    select last.id as run, coalesce(last.status, '') as status,
           case when not (last.status in ('requested', 'waiting', 'running')
                          or (last.status = 'failed' and last.attempt < :max_attempts))
                then last.updated_at end as ended_at,
           (select id from iccm.rollouts where emergency and state in {LIVE_STATES}) as rollout
    from (select 1) as unit
    left join (select * from iccm.phase4_training_runs
               where trigger = 'degradation' order by id desc limit 1) as last on true
    """
)


def evaluate_weekly_trigger(
    conn: Connection, now: datetime, settings: Settings
) -> TrainingRun | TriggerSkipped:
    """Evaluate the weekly trigger (T1)."""
    selectable = example_queries.count_selectable(conn, now, settings.selection)
    decision = triggers.decide_weekly(now, selectable.size, settings.triggers, selectable.note)
    return _create_run(conn, decision)


def evaluate_data_threshold_trigger(
    conn: Connection, now: datetime, settings: Settings
) -> TrainingRun | TriggerSkipped:
    """Evaluate the daily data trigger; it counts nothing once the day has its retraining (T3)."""
    if too_early := triggers.data_threshold_too_early(now):
        return too_early
    if existing := training_runs.get_by_trigger_key(conn, triggers.data_threshold_key(now)):
        return _already_requested(existing)
    selectable = example_queries.count_selectable(conn, now, settings.selection)
    decision = triggers.decide_data_threshold(now, selectable.size, settings.triggers, selectable.note)
    return _create_run(conn, decision)


def evaluate_degradation_trigger(conn: Connection, settings: Settings) -> TrainingRun | TriggerSkipped:
    """Evaluate the degradation trigger on the newest measurements of the production version (T2)."""
    acquire_lock(conn, Lock.TRAINING_RUNS)
    measurements = [QualityMeasurement(**row) for row in conn.execute(_LATEST_MEASUREMENTS).mappings()]
    status = (
        conn.execute(_EMERGENCY_STATUS, {"max_attempts": settings.triggers.max_attempts}).mappings().one()
    )
    return _create_run(
        conn,
        triggers.should_start_emergency(measurements, triggers.EmergencyStatus(**status), settings.triggers),
    )


def _create_run(conn: Connection, decision: TriggerFired | TriggerSkipped) -> TrainingRun | TriggerSkipped:
    if isinstance(decision, TriggerSkipped):
        return decision
    if run := training_runs.create_run(conn, decision):
        return run
    existing = training_runs.get_by_trigger_key(conn, decision.key)
    return (
        _already_requested(existing)
        if existing
        else TriggerSkipped(f"{decision.key} already has a retraining")
    )


def _already_requested(run: TrainingRun) -> TriggerSkipped:
    return TriggerSkipped(f"{run.trigger_key} already has a retraining: training run {run.id}, {run.status}")

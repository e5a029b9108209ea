"""Rows of `rollouts` as states, and a decision as rows: one transaction, by compare-and-set.

Locks are always taken in this order: `lock_deployment` where versions change their status, the row of the
rollout, the versions. So transactions cannot deadlock (R8).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now as platform_now
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.notify import notify_routing
from iccm_assets.errors import RecordNotFoundError
from iccm_assets.registry import versions
from iccm_assets.registry.registry_events import record_deployment_event
from iccm_assets.rollout.actions import (
    Abort,
    Action,
    Alert,
    Decision,
    DeploymentEvent,
    Promote,
    RollBack,
)
from iccm_assets.rollout.observer import ObservationBatch
from iccm_assets.rollout.state import State


def get_live_rollout(conn: sa.Connection, *, lock: bool = False) -> State | None:
    """Return the live rollout; None when there is none. ``lock`` locks its row.

    ``InputError`` when the row is damaged: nothing is decided on it.
    """
    query = sa.select(t.rollouts).where(t.rollouts.c.state.in_(t.LIVE_STATES))
    return _load(conn, query.with_for_update() if lock else query)


def get_rollout(conn: sa.Connection, rollout_id: int) -> State:
    """Return the rollout of this number; ``RecordNotFoundError`` when there is none."""
    # A larger number does not fit in bigint: the driver would raise instead of finding nothing.
    valid = abs(rollout_id) < 2**63
    state = _load(conn, sa.select(t.rollouts).where(t.rollouts.c.id == rollout_id)) if valid else None
    if state is None:
        raise RecordNotFoundError(f"there is no rollout {rollout_id}")
    return state


def get_latest_rollout(conn: sa.Connection) -> State | None:
    """Return the rollout opened last, live or not."""
    return _load(conn, sa.select(t.rollouts).order_by(t.rollouts.c.id.desc()).limit(1))


def _load(conn: sa.Connection, query: sa.Select[Any]) -> State | None:
    row = conn.execute(query).one_or_none()
    return None if row is None else State.from_row(row._asdict())


def lock_deployment(conn: sa.Connection) -> None:
    """Lock the versions' statuses until the transaction ends."""
    acquire_lock(conn, Lock.DEPLOYMENT)


def changes_versions(decision: Decision) -> bool:
    """Whether a decision changes the status of versions, and so needs `lock_deployment` first."""
    return any(isinstance(action, Promote | RollBack | Abort) for action in decision.actions)


def persist_decision(
    conn: sa.Connection, before: State, decision: Decision, reading: ObservationBatch | None = None
) -> bool:
    """Persist a decision: state, counted rows, events, alerts, versions, notice.

    False, and nothing is written, when the row is no longer the one that was read.
    """
    after = decision.state
    if not _replace_state(conn, before, after):
        return False
    if reading is not None:
        reading.store(conn, after.id, after.revision)
    append_events(conn, after.id, decision.events)
    for action in decision.actions:
        _act(conn, decision, action)
    if decision.events or (before.weight, before.state) != (after.weight, after.state):
        notify_routing(conn)
    return True


def _replace_state(conn: sa.Connection, before: State, after: State) -> bool:
    r = t.rollouts
    update = r.update().where(
        r.c.id == before.id, r.c.revision == before.revision, r.c.state.in_(t.LIVE_STATES)
    )
    columns = {name: value for name, value in after.to_row().items() if name != "id"}
    return conn.execute(update.values(**columns, updated_at=sa.func.iccm.now())).rowcount == 1


def append_events(conn: sa.Connection, rollout_id: int, events: tuple[DeploymentEvent, ...]) -> None:
    """Append to the rollout's history; the caller has locked its row."""
    e = t.deployment_events.c
    last = conn.execute(sa.select(sa.func.max(e.seq)).where(e.rollout_id == rollout_id)).scalar_one()
    for seq, event in enumerate(events, (last or 0) + 1):
        insert_event(conn, event, rollout_id=rollout_id, seq=seq)


def insert_event(conn: sa.Connection, event: DeploymentEvent, **columns: int) -> int:
    """Insert one row of `deployment_events`, of a rollout or (without ``columns``) of none; return its id."""
    e = t.deployment_events
    inserted = conn.execute(e.insert().values(**vars(event), **columns).returning(e.c.id)).scalar_one()
    record_deployment_event(conn, inserted)
    return int(inserted)


def count_samples(conn: sa.Connection, rollout_id: int) -> dict[str, int]:
    """Count the scored responses by exclusion reason; `counted` are those that are their session's score."""
    s = t.rollout_samples.c
    name = sa.func.coalesce(s.exclusion_reason, "counted")
    rows = conn.execute(
        sa.select(name, sa.func.count()).where(s.rollout_id == rollout_id).group_by(name).order_by(name)
    )
    return {row[0]: row[1] for row in rows}


def list_events(conn: sa.Connection, rollout_id: int) -> list[dict[str, Any]]:
    """Return the rollout's events in their order."""
    e = t.deployment_events.c
    columns = (e.seq, e.timestamp, e.event_type, e.version, e.weight, e.notes, e.actor)
    rows = conn.execute(sa.select(*columns).where(e.rollout_id == rollout_id).order_by(e.seq))
    return [dict(row) for row in rows.mappings()]


def swap_production(
    conn: sa.Connection, version: str, previous_status: str, deployed_at: datetime | None
) -> str | None:
    """Demote the version in production, then promote this one; return the previous one.

    Two statements, since one update passes or fails the unique index by the order of the rows. Without a
    ``deployed_at`` the time of its first deployment stays.
    """
    mv = t.model_versions
    previous = conn.execute(
        mv.update().where(mv.c.status == "production").values(status=previous_status).returning(mv.c.version)
    ).scalar_one_or_none()
    set_status(conn, version, "production", deployed_at=deployed_at or mv.c.deployed_at)
    return previous


def set_status(conn: sa.Connection, version: str, status: str, **columns: Any) -> None:
    """Set a version's status and other columns of its row."""
    mv = t.model_versions
    conn.execute(mv.update().where(mv.c.version == version).values(status=status, **columns))


def insert_rollback_event(conn: sa.Connection, *, from_version: str, to_version: str, **columns: Any) -> None:
    """Insert a row of `rollback_events`: the versions, and ``columns`` with the reason and its numbers."""
    mv = t.model_versions.c
    path = sa.select(mv.path).where(mv.version == from_version).scalar_subquery()
    values = {"from_version": from_version, "to_version": to_version, "new_model_path": path, **columns}
    conn.execute(t.rollback_events.insert().values(values))


def _act(conn: sa.Connection, decision: Decision, action: Action) -> None:
    state = decision.state
    match action:
        case Alert():
            raise_alert(conn, action.key, action.severity, action.title, action.body)
        case Promote():
            swap_production(conn, state.candidate, "retired", platform_now(conn))
        case RollBack():
            _roll_back(conn, decision, action)
        case Abort():
            _archive(conn, decision, "candidate")


def _roll_back(conn: sa.Connection, decision: Decision, action: RollBack) -> None:
    state, event = decision.state, decision.events[-1]
    if action.restore:
        swap_production(conn, state.production, "rolled_back", None)
    insert_rollback_event(
        conn,
        from_version=state.candidate,
        to_version=state.production,
        rollout_id=state.id,
        reason=action.reason,
        metrics=event.evidence,
        notes=event.notes,
        actor=event.actor,
    )
    _archive(conn, decision, "rolled_back")


def _archive(conn: sa.Connection, decision: Decision, status: str) -> None:
    """Give the candidate its final status, and its own metrics the outcome and the last event's numbers."""
    state, event = decision.state, decision.events[-1]
    outcome = {
        "id": state.id,
        "state": state.state,
        "reason": event.notes,
        "actor": event.actor,
        "closed_at": event.timestamp.isoformat(),
        "evidence": event.evidence,
    }
    versions.merge_metrics(conn, state.candidate, rollout=outcome)
    set_status(conn, state.candidate, status)

"""Rows of `rollouts` as states, and a decision as rows: one transaction, by compare-and-set (R8).

Locks are always taken in this order: `lock_deployment` where versions change their status, the row of the
rollout, the versions. So nobody waits for anybody in a circle.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.errors import NotAllowed
from iccm_assets.rollout.outcome import Abandon, Action, Alert, Decision, Event, Promote, RollBack
from iccm_assets.rollout.state import State
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now as platform_now
from iccm_assets.store.notify import notify_routing

DEPLOYMENT_LOCK = sa.text("select pg_advisory_xact_lock(hashtext('iccm.deployment'))")


def live(conn: sa.Connection, *, lock: bool = False) -> State | None:
    """The live rollout, its row locked if asked; None when there is none.

    ``InputError`` when the row is damaged: nothing is decided on it.
    """
    query = sa.select(t.rollouts).where(t.rollouts.c.state.in_(t.LIVE_STATES))
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else State.from_row(dict(row._mapping))


def get(conn: sa.Connection, rollout_id: int) -> State:
    """The rollout of this number; ``NotAllowed`` when there is none."""
    row = conn.execute(sa.select(t.rollouts).where(t.rollouts.c.id == rollout_id)).one_or_none()
    if row is None:
        raise NotAllowed(f"there is no rollout {rollout_id}")
    return State.from_row(dict(row._mapping))


def newest(conn: sa.Connection) -> State | None:
    """The rollout opened last, live or not."""
    row = conn.execute(sa.select(t.rollouts).order_by(t.rollouts.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else State.from_row(dict(row._mapping))


def lock_deployment(conn: sa.Connection) -> None:
    """Alone with the versions' statuses until the transaction ends."""
    conn.execute(DEPLOYMENT_LOCK)


def moves_versions(decision: Decision) -> bool:
    """Whether a decision changes which version is what, and so needs `lock_deployment` first."""
    return any(isinstance(one, Promote | RollBack | Abandon) for one in decision.actions)


def replace_state(conn: sa.Connection, before: State, after: State) -> bool:
    """Write the state where the row still is the one that was read; False when somebody else was first."""
    r = t.rollouts
    columns = {name: value for name, value in after.to_row().items() if name != "id"}
    done = conn.execute(
        r.update()
        .where(r.c.id == before.id, r.c.revision == before.revision, r.c.state.in_(t.LIVE_STATES))
        .values(**columns, updated_at=sa.func.iccm.now())
    )
    return done.rowcount == 1


def apply(conn: sa.Connection, before: State, decision: Decision) -> None:
    """Everything that goes with a decision whose state was just written: events, alerts, versions, notice."""
    after = decision.state
    append_events(conn, after.id, decision.events)
    for action in decision.actions:
        _act(conn, before, decision, action)
    if decision.events or (before.weight, before.state) != (after.weight, after.state):
        notify_routing(conn)


def append_events(conn: sa.Connection, rollout_id: int, events: tuple[Event, ...]) -> None:
    """Append to the rollout's history; its row is locked by who writes."""
    e = t.deployment_events
    last = conn.execute(sa.select(sa.func.max(e.c.seq)).where(e.c.rollout_id == rollout_id)).scalar_one()
    for seq, one in enumerate(events, (last or 0) + 1):
        values = {**vars(one), "timestamp": one.at, "rollout_id": rollout_id, "seq": seq}
        del values["at"]
        conn.execute(e.insert().values(values))


def answers(conn: sa.Connection, rollout_id: int) -> dict[str, int]:
    """How many scored answers were counted as their session's, and how many left out, by reason (R11)."""
    s = t.rollout_samples.c
    name = sa.func.coalesce(s.left_out, "counted")
    rows = conn.execute(
        sa.select(name, sa.func.count()).where(s.rollout_id == rollout_id).group_by(name).order_by(name)
    )
    return {row[0]: row[1] for row in rows}


def history(conn: sa.Connection, rollout_id: int) -> list[dict[str, Any]]:
    """The rollout's events in their order."""
    e = t.deployment_events.c
    columns = (e.seq, e.timestamp, e.event_type, e.version, e.weight, e.notes, e.actor)
    rows = conn.execute(sa.select(*columns).where(e.rollout_id == rollout_id).order_by(e.seq))
    return [dict(row._mapping) for row in rows]


def swap_production(
    conn: sa.Connection, version: str, former_becomes: str, at: datetime | None
) -> str | None:
    """Demote whichever version is in production, then promote this one; returns the former one (M1).

    Two statements, since one UPDATE passes or fails the unique index by the order of the rows. ``at`` is
    when the version came into production; None leaves what was recorded when it first did.
    """
    mv = t.model_versions
    former = conn.execute(
        mv.update().where(mv.c.status == "production").values(status=former_becomes).returning(mv.c.version)
    ).scalar_one_or_none()
    values: dict[str, Any] = {"status": "production"} | ({} if at is None else {"deployed_at": at})
    conn.execute(mv.update().where(mv.c.version == version).values(values))
    return former


def book_rollback(
    conn: sa.Connection,
    *,
    rollout_id: int | None,
    away: str,
    to: str,
    reason: str,
    metrics: dict[str, Any],
    notes: str,
    actor: str,
) -> None:
    """The row of `rollback_events`: what was taken back, in favour of what, and on which numbers (R8)."""
    mv = t.model_versions.c
    path = sa.select(mv.path).where(mv.version == away).scalar_subquery()
    values: dict[str, Any] = {
        "from_version": away,
        "to_version": to,
        "reason": reason,
        "new_model_path": path,
    }
    values |= {"rollout_id": rollout_id, "metrics": metrics, "notes": notes, "actor": actor}
    conn.execute(t.rollback_events.insert().values(values))


def archive(conn: sa.Connection, version: str, evidence: dict[str, Any]) -> None:
    """What a rollout came to, among the version's own metrics (R8)."""
    mv = t.model_versions
    conn.execute(
        mv.update()
        .where(mv.c.version == version)
        .values(
            metrics=mv.c.metrics.op("||")(
                sa.func.jsonb_build_object("rollout", sa.literal(evidence, mv.c.metrics.type))
            )
        )
    )


def _act(conn: sa.Connection, before: State, decision: Decision, action: Action) -> None:
    state = decision.state
    if isinstance(action, Alert):
        raise_alert(conn, action.key, action.severity, action.title, action.body)
    elif isinstance(action, Promote):
        swap_production(conn, state.candidate, "retired", platform_now(conn))
    elif isinstance(action, RollBack):
        _roll_back(conn, decision, action)
    elif isinstance(action, Abandon):
        _set_status(conn, state.candidate, "candidate")
        archive(conn, state.candidate, told(decision))


def _roll_back(conn: sa.Connection, decision: Decision, action: RollBack) -> None:
    state, event = decision.state, decision.events[-1]
    if action.restore:
        swap_production(conn, state.production, "rolled_back", None)
    else:
        _set_status(conn, state.candidate, "rolled_back")
    book_rollback(
        conn,
        rollout_id=state.id,
        away=state.candidate,
        to=state.production,
        reason=action.reason,
        metrics=event.evidence,
        notes=event.notes,
        actor=event.actor,
    )
    archive(conn, state.candidate, told(decision))


def told(decision: Decision) -> dict[str, Any]:
    """How a rollout ended, with its last event's numbers."""
    state, event = decision.state, decision.events[-1]
    ending = {"id": state.id, "state": state.state, "reason": event.notes, "actor": event.actor}
    return {**ending, "closed_at": event.at.isoformat(), "evidence": event.evidence}


def _set_status(conn: sa.Connection, version: str, status: str) -> None:
    mv = t.model_versions
    conn.execute(mv.update().where(mv.c.version == version).values(status=status))

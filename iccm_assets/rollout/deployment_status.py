"""The state of the deployment in plain values: what serves, the newest change of traffic, and its rollout."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.registry import versions
from iccm_assets.rollout import repository
from iccm_assets.rollout.summary import observation_metadata

TIMELINE_EVENTS = 30
# Two states that agree in these values are the same state.
STATE_KEYS = ("production_version", "version", "state", "stage", "weight", "changed_at")


def load_deployment_status(conn: sa.Connection) -> dict[str, Any]:
    """Return the state of the deployment; empty while nothing has been deployed.

    ``version`` is the one that the newest change is about and ``weight`` its share of the traffic;
    ``production_version`` serves the rest. ``state`` is that of its rollout, or ``production`` after a change
    without one, and ``unreadable`` if the row of the rollout is damaged. ``timeline`` lists the last events,
    newest first.
    """
    events = _load_events(conn)
    if not events:
        return {}
    newest, production = events[0], versions.get_production_version(conn)
    values: dict[str, Any] = {
        "production_version": production.version if production else "none",
        "version": newest.version,
        "state": "production",
        "weight": newest.weight,
        "reason": newest.notes or "",
        **_load_rollout(conn, newest.rollout_id),
        "event": newest.event_type,
        "actor": newest.actor,
        "changed_at": newest.timestamp.isoformat(timespec="milliseconds"),
        "timeline": [_timeline_row(event) for event in events],
    }
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }


def _load_rollout(conn: sa.Connection, rollout_id: int | None) -> dict[str, Any]:
    """Return the values of the live rollout, else of that of the newest event, if it has one."""
    try:
        state = repository.get_live_rollout(conn)
        if state is None and rollout_id is not None:
            state = repository.get_rollout(conn, rollout_id)
    except InputError as error:
        return {"state": "unreadable", "reason": str(error)}
    return observation_metadata(state) if state else {}


def describe_deployment(status: dict[str, Any]) -> str:
    """Describe the state in one line."""
    rollout = (
        f"rollout {status['rollout']} of {status['version']} is {status['state']}, "
        if "rollout" in status
        else ""
    )
    return f"{status['production_version']} is in production; {rollout}{status['event']} by {status['actor']}"


def _load_events(conn: sa.Connection) -> list[sa.Row[Any]]:
    e = t.deployment_events.c
    columns = (e.rollout_id, e.timestamp, e.event_type, e.version, e.weight, e.notes, e.actor)
    return list(conn.execute(sa.select(*columns).order_by(e.id.desc()).limit(TIMELINE_EVENTS)))


def _timeline_row(event: sa.Row[Any]) -> dict[str, Any]:
    return {
        "time": f"{event.timestamp:%Y-%m-%d %H:%M:%S}",
        "event": event.event_type,
        "version": event.version or "",
        "weight": "" if event.weight is None else f"{event.weight:.0%}",
        "actor": event.actor,
        "reason": event.notes or "",
    }

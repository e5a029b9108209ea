"""The rollout controller: reads a rollout, decides, and writes the decision in one transaction.

It keeps nothing in memory. Any number of controllers may tick at a time: the compare-and-set on the row's
revision succeeds for one of them, and the others return the state that it wrote. `iccm.now()` is the clock
(R7-R9).
"""

from __future__ import annotations

import logging

import sqlalchemy as sa

from iccm_assets.db.clock import now as platform_now
from iccm_assets.errors import DatabaseError, OperationNotAllowedError, first_line
from iccm_assets.rollout import repository
from iccm_assets.rollout.actions import Decision
from iccm_assets.rollout.commands import apply_command
from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import validation_errors
from iccm_assets.rollout.observer import ObservationBatch, collect_observation
from iccm_assets.rollout.state import State
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

# Of a tick's time, the part for reading; the rest is for writing the decision.
READING_SHARE = 0.6
_TIMEOUTS = sa.text(
    """
    select set_config(name, :ms, true) from pg_settings
    where name in ('statement_timeout', 'lock_timeout', 'transaction_timeout')
    """
)


def tick(engine: sa.Engine, settings: Settings) -> Decision | None:
    """Observe and decide once; None when no rollout is live.

    If another controller wrote first, the decision has the state that it wrote. Raises
    ``InputError`` when the row is damaged, and the driver's error when the database does not respond in
    time: nothing has changed then, and without further ticks the lease expires.
    """
    with engine.connect() as conn, conn.begin() as transaction:
        _set_deadline(conn, settings)
        before = repository.get_live_rollout(conn)
        if before is None:
            return None
        reading = _collect(conn, before, settings)
        _set_deadline(conn, settings)
        now = platform_now(conn)
        decision = decide(before, reading.observation if reading else None, now)
        if repository.changes_versions(decision):
            repository.lock_deployment(conn)
        if reading is not None and validation_errors(reading.observation, before.watermark, now):
            reading = None
        if repository.persist_decision(conn, before, decision, reading):
            return decision
        transaction.rollback()
    with engine.connect() as conn:
        state = repository.get_rollout(conn, before.id)
    return Decision(state, state.reason)


def execute_command(
    engine: sa.Engine, settings: Settings, verb: str, *, actor: str, note: str = ""
) -> Decision:
    """Execute a person's command on the live rollout: pause, resume, approve, abort or rollback.

    Waits for a tick in progress instead of racing it. Raises ``OperationNotAllowedError`` when nothing is
    live, or the command is not possible now; nothing has changed then.
    """
    with engine.begin() as conn:
        _set_deadline(conn, settings)
        repository.lock_deployment(conn)
        state = repository.get_live_rollout(conn, lock=True)
        if state is None:
            raise OperationNotAllowedError("no rollout is live")
        decision = apply_command(state, verb, actor, platform_now(conn), note)
        if not repository.persist_decision(conn, state, decision):
            raise OperationNotAllowedError(f"rollout {state.id} changed although its row was locked")
        return decision


def _set_deadline(conn: sa.Connection, settings: Settings) -> None:
    """Limit every statement and lock to a tick's time (and, from PostgreSQL 17, the transaction)."""
    conn.execute(_TIMEOUTS, {"ms": str(int(1000 * settings.rollout.tick_timeout_seconds))})


def _collect(conn: sa.Connection, state: State, settings: Settings) -> ObservationBatch | None:
    """Observe; None when that takes too long: the tick is then inconclusive, not failed."""
    seconds = READING_SHARE * settings.rollout.tick_timeout_seconds
    try:
        with conn.begin_nested():
            return collect_observation(conn, state, settings, platform_now(conn), seconds=seconds)
    except (DatabaseError, sa.exc.DBAPIError) as error:
        if isinstance(error, sa.exc.DBAPIError) and not _is_timeout(error):
            raise
        log.warning("cannot observe rollout %d: %s", state.id, first_line(error))
        return None


def _is_timeout(error: sa.exc.DBAPIError) -> bool:
    """Whether a statement ran out of time or lost a lock; any other error is a fault."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return not error.connection_invalidated and (state in ("57014", "55P03") or state.startswith("40"))

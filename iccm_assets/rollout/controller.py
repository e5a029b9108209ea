"""The rollout controller: reads a rollout, decides, and writes the decision in one transaction (R7-R9).

It holds nothing in memory. Any number of controllers may tick at a time: the revision of the row lets one
of them through, and the others return what it left. `iccm.now()` is the clock.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa

from iccm_assets.errors import DatabaseError, NotAllowed
from iccm_assets.rollout import records
from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import faults
from iccm_assets.rollout.observing import Reading, observe
from iccm_assets.rollout.orders import command
from iccm_assets.rollout.outcome import Decision
from iccm_assets.rollout.state import State
from iccm_assets.settings import Settings
from iccm_assets.store.clock import now as platform_now

log = logging.getLogger("iccm.rollout")

# Of a tick's time, what reading may take; the rest is for writing the decision.
READING_SHARE = 0.6
_TIMEOUTS = sa.text(
    """
    select set_config(name, :ms, true) from pg_settings
    where name in ('statement_timeout', 'lock_timeout', 'transaction_timeout')
    """
)


def tick(engine: sa.Engine, settings: Settings) -> Decision | None:
    """Observe and decide once; None when no rollout is live.

    A race that another controller won is no error: the decision says what that one left. Raises
    ``InputError`` when the row is damaged, and the driver's error when the database does not answer in
    time: nothing was changed then, and without further ticks the lease runs out.
    """
    with engine.connect() as conn, conn.begin() as transaction:
        _hurry(conn, settings)
        before = records.live(conn)
        if before is None:
            return None
        reading = _look(conn, before, settings)
        _hurry(conn, settings)
        now = platform_now(conn)
        decision = decide(before, None if reading is None else reading.observation, now)
        if records.moves_versions(decision):
            records.lock_deployment(conn)
        if records.replace_state(conn, before, decision.state):
            if reading is not None and not faults(reading.observation, before.cursor, now):
                reading.store(conn, before.id, decision.state.revision)
            records.apply(conn, before, decision)
            return decision
        transaction.rollback()
    return _left(engine, before)


def order(engine: sa.Engine, settings: Settings, verb: str, *, actor: str, note: str = "") -> Decision:
    """What a person orders of the live rollout: pause, resume, approve, abort or rollback (R9).

    Waits for a tick in progress instead of racing it. ``NotAllowed`` when nothing is live, or the order
    makes no sense now; nothing was changed then.
    """
    with engine.begin() as conn:
        _hurry(conn, settings)
        records.lock_deployment(conn)
        state = records.live(conn, lock=True)
        if state is None:
            raise NotAllowed("no rollout is live")
        decision = command(state, verb, actor, platform_now(conn), note)
        if not records.replace_state(conn, state, decision.state):
            raise NotAllowed(f"rollout {state.id} changed although its row was locked")
        records.apply(conn, state, decision)
        return decision


def _hurry(conn: sa.Connection, settings: Settings) -> None:
    """No statement and no lock may take longer than a tick (nor, from PostgreSQL 17, the transaction)."""
    conn.execute(_TIMEOUTS, {"ms": str(int(1000 * settings.rollout.tick_timeout_seconds))})


def _look(conn: sa.Connection, state: State, settings: Settings) -> Reading | None:
    """The observation, or None when it could not be read in time: a doubt, not an error (R6)."""
    seconds = READING_SHARE * settings.rollout.tick_timeout_seconds
    try:
        with conn.begin_nested():
            return observe(conn, state, settings, platform_now(conn), seconds=seconds)
    except (DatabaseError, sa.exc.DBAPIError) as error:
        if isinstance(error, sa.exc.DBAPIError) and not _took_too_long(error):
            raise
        log.warning("rollout %d could not be observed: %s", state.id, str(error).splitlines()[0])
        return None


def _took_too_long(error: sa.exc.DBAPIError) -> bool:
    """A statement that ran out of time or out of luck with locks; all else is a fault to be seen."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return not error.connection_invalidated and (state in ("57014", "55P03") or state.startswith("40"))


def _left(engine: sa.Engine, before: State) -> Decision:
    """What the controller that was quicker made of the rollout."""
    with engine.connect() as conn:
        state = records.get(conn, before.id)
    return Decision(state, state.reason)

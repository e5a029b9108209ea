"""Flush spool segments to PostgreSQL on a thread: its own, and those of dead processes (G5)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from iccm_assets.errors import DatabaseError, IccmError, SessionOwnershipError, first_line
from iccm_assets.gateway.dead_letters import append_dead_letter, dead_letters_path
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.persistence import Record, store_records
from iccm_assets.gateway.spool import Spool, orphaned_segments, read_segment
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

RECOVERY_INTERVAL_SECONDS = 5.0
RETRY_DELAY_SECONDS = 1.0
# SQLSTATE classes: connection, transaction state, rollback, resources, object state, operator, system.
_TRANSIENT_CLASSES = frozenset({"08", "25", "40", "53", "55", "57", "58"})
_SCHEMA_MISSING = frozenset({"42P01", "3F000"})


class SpoolWorker(threading.Thread):
    """Flush the spool in the background, and count what was stored and what was rejected.

    ``on_refused`` gets the sessions of which a record was refused, because they have another owner.
    """

    def __init__(
        self,
        spool: Spool,
        engine: Callable[[], Engine],
        settings: Settings,
        metrics: Metrics,
        on_refused: Callable[[Sequence[str]], None] = lambda sessions: None,
    ) -> None:
        super().__init__(name="spool-worker", daemon=True)
        self._on_refused = on_refused
        self._spool, self._engine, self._settings, self._metrics = spool, engine, settings, metrics
        self._stopping = threading.Event()
        self._next_recovery = 0.0
        self._failing = False

    def stop(self, seconds: float) -> bool:
        """Flush what remains, for at most this long; return whether the spool is empty."""
        self._stopping.set()
        self.join(timeout=seconds)
        return not self.is_alive() and self._spool.pending_bytes == 0

    def run(self) -> None:
        """Flush periodically until `stop`, and once more then."""
        while not self._stopping.wait(self._settings.gateway.spool_flush_interval_ms / 1000):
            if not self._flush():
                self._stopping.wait(RETRY_DELAY_SECONDS)
        self._flush()

    def _flush(self) -> bool:
        """Flush all segments; return whether that succeeded. What failed remains in the spool."""
        try:
            for segment in self._spool.closed_segments():
                self._flush_segment(segment)
                self._spool.delete_segment(segment)
            if time.monotonic() >= self._next_recovery:
                self._recover_orphans()
                self._next_recovery = time.monotonic() + RECOVERY_INTERVAL_SECONDS
        except Exception as error:
            if not isinstance(error, (SQLAlchemyError, DatabaseError, OSError)):
                log.exception("spool flush failed, will retry")
            elif not self._failing:
                log.warning("spool flush failed, will retry: %s", first_line(error))
            self._failing = True
            return False
        if self._failing:
            log.warning("spool flush succeeds again")
        self._failing = False
        return True

    def _recover_orphans(self) -> None:
        for directory, segments in orphaned_segments(self._spool.root, self._spool.directory):
            for segment in segments:
                self._flush_segment(segment)
                segment.unlink(missing_ok=True)
            if segments:
                log.warning("recovered segments of dead process %s", directory.name)

    def _flush_segment(self, segment: Path) -> None:
        records = read_segment(segment)
        while batch := list(islice(records, self._settings.gateway.spool_batch)):
            self._store(batch, segment)

    def _store(self, batch: Sequence[Record], segment: Path) -> None:
        try:
            with self._engine().begin() as conn:
                result = store_records(conn, batch, self._settings)
                for record in result.refused:
                    self._dead_letter(record, segment, SessionOwnershipError())
        except (DBAPIError, IccmError, KeyError, TypeError, ValueError) as error:
            if _is_transient(error):
                raise
            if len(batch) == 1:
                self._dead_letter(batch[0], segment, error)
                return
            for record in batch:  # one by one: a record that PostgreSQL rejects holds up no other
                self._store([record], segment)
            return
        self._metrics.stored_records.inc(result.stored)
        if result.refused:
            self._on_refused([record["row"]["session_id"] for record in result.refused])

    def _dead_letter(self, record: Record, segment: Path, error: Exception) -> None:
        """Keep a record that cannot be stored, with the reason."""
        self._metrics.dead_letters.inc()
        reason = first_line(error)
        log.error(
            "record from %s not stored, moved to %s: %s",
            segment.name,
            dead_letters_path(self._spool.root),
            reason,
        )
        append_dead_letter(self._spool.root, {**record, "reason": reason})


def _is_transient(error: Exception) -> bool:
    """Check whether the same records may be stored later: the server was the reason, not the record."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, DatabaseError)
    state = getattr(error.orig, "sqlstate", None)  # None when the server did not respond
    return state is None or state[:2] in _TRANSIENT_CLASSES or state in _SCHEMA_MISSING

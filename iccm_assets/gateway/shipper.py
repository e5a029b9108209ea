"""The thread that takes segments from the spool to PostgreSQL, its own and those of dead processes (G5)."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.errors import DatabaseError, IccmError
from iccm_assets.gateway.delivery import Record, deliver
from iccm_assets.gateway.spool import Spool, orphans, read_segment
from iccm_assets.settings import Settings

log = logging.getLogger("iccm.gateway")

ADOPT_SECONDS = 5.0
PAUSE_AFTER_ERROR = 1.0


class Shipper:
    """Delivers in the background; ``delivered`` and ``refused`` count records."""

    def __init__(self, spool: Spool, engine: Callable[[], sa.Engine], settings: Settings) -> None:
        self.delivered = 0
        self.refused = 0
        self._spool, self._engine, self._settings = spool, engine, settings
        self._over = threading.Event()
        self._adopt_at = 0.0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="gateway-shipper", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Deliver what is left, as long as that works; whether all of it is delivered."""
        self._over.set()
        self._thread.join(timeout=seconds)
        return not self._thread.is_alive() and self._spool.size == 0

    def _run(self) -> None:
        while not self._over.wait(self._settings.gateway.spool_pause_ms / 1000):
            if not self._cycle():
                self._over.wait(PAUSE_AFTER_ERROR)
        self._cycle()

    def _cycle(self) -> bool:
        """Deliver what there is; whether that worked. What did not is still in the spool."""
        try:
            for segment in self._spool.closed_segments():
                self._ship(segment)
                self._spool.delivered(segment)
            if time.monotonic() >= self._adopt_at:
                self._adopt()
                self._adopt_at = time.monotonic() + ADOPT_SECONDS
        except (sa.exc.SQLAlchemyError, DatabaseError, OSError) as error:
            if not self._failing:
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                log.warning("answers wait in the spool, delivering them failed: %s", first)
            self._failing = True
            return False
        except Exception:
            log.exception("answers wait in the spool, delivering them failed")
            return False
        if self._failing:
            log.warning("answers are delivered again")
        self._failing = False
        return True

    def _adopt(self) -> None:
        for directory, segments in orphans(self._spool.root, self._spool.directory):
            for segment in segments:
                self._ship(segment)
                segment.unlink(missing_ok=True)
            if segments:
                log.warning("delivered what %s had not, which is dead", directory.name)

    def _ship(self, segment: Path) -> None:
        records = read_segment(segment)
        while batch := list(islice(records, self._settings.gateway.spool_batch)):
            self._store(batch, segment)

    def _store(self, batch: Sequence[Record], segment: Path) -> None:
        try:
            with self._engine().begin() as conn:
                dropped = deliver(conn, batch, self._settings)
        except (sa.exc.DBAPIError, IccmError, KeyError, TypeError, ValueError) as error:
            if _passing(error):
                raise
            if len(batch) == 1:
                self._set_aside(batch[0], segment, error)
                return
            for one in batch:  # the one the database does not bear holds nobody else up
                self._store([one], segment)
            return
        self.delivered += len(batch) - dropped

    def _set_aside(self, record: Record, segment: Path, error: Exception) -> None:
        self.refused += 1
        kept = self._spool.root / "refused.jsonl"
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        log.error("a record of %s is refused and kept in %s: %s", segment.name, kept, first)
        with kept.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _passing(error: Exception) -> bool:
    """Whether the same records may be stored another time: the server, not the record, was the reason."""
    if isinstance(error, DatabaseError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    # Connection, resources, operator intervention, serialization and locks; no state: no answer.
    return (
        state is None
        or state[:2] in {"08", "53", "57", "58", "40", "55", "25"}
        or state in {"42P01", "3F000"}
    )

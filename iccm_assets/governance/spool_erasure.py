"""Erase from the spool of this machine: dead letters, and segments that no gateway has stored yet. (V2)"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.conversations import erased_session_key
from iccm_assets.gateway.dead_letters import delete_dead_letters
from iccm_assets.gateway.persistence import get_writer
from iccm_assets.gateway.spool import SEGMENT_SUFFIX, orphaned_segments, rewrite_segment
from iccm_assets.governance.erasure import DataSubject

# A running gateway stores its segments, and drops those of erased sessions, within a second.
FLUSH_TIMEOUT_SECONDS = 10.0


def erase_from_spool(engine: sa.Engine, spool: Path, subject: DataSubject | None) -> list[str]:
    """Delete the records of erased sessions, and of the subject; return what is out of reach.

    Segments of a dead process are rewritten; those of a running gateway are awaited until it has stored them.
    """
    is_erased = _make_predicate(engine, subject)
    delete_dead_letters(spool, is_erased)
    rewritten = set()
    for _, segments in orphaned_segments(spool, spool / "none of these"):
        for segment in segments:
            rewrite_segment(segment, lambda record: not is_erased(record))
            rewritten.add(segment)
    out_of_reach = []
    if not _wait_for_flush(spool, rewritten):
        out_of_reach.append(f"records in {spool} that a running gateway has not stored yet")
    if damaged := sorted(spool.glob(f"*/*{SEGMENT_SUFFIX}.damaged")):
        out_of_reach.append(f"corrupt spool segments, which cannot be searched ({damaged[0]}, …)")
    return out_of_reach


def _make_predicate(engine: sa.Engine, subject: DataSubject | None) -> Callable[[Mapping[str, Any]], bool]:
    with engine.connect() as conn:
        query = sa.text("select session_id from iccm.conversations where erased_at is not null")
        erased = set(conn.execute(query).scalars())
    users = set(subject.user_ids) if subject is not None else set()
    session = subject.value if subject is not None and subject.kind == "session" else None

    def is_erased(record: Mapping[str, Any]) -> bool:
        name = record["row"]["session_id"]
        return get_writer(record).user_id in users or name == session or erased_session_key(name) in erased

    return is_erased


def _wait_for_flush(spool: Path, rewritten: Set[Path]) -> bool:
    """Wait for the other segments that hold records now to be stored; return whether they were."""
    segments = [path for path in spool.glob(f"*/*{SEGMENT_SUFFIX}") if path.stat().st_size]
    segments = [path for path in segments if path not in rewritten]
    deadline = time.monotonic() + FLUSH_TIMEOUT_SECONDS
    while any(path.exists() for path in segments):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True

"""What a retraining started now would learn from: the pool rows ``selection`` chooses among."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from iccm_assets.learning.selection import PoolRow, Selection, largest_selection, select, window
from iccm_assets.settings import Selection as SelectionSettings

_BASE = "CASE WHEN CAST(:base AS text) IS NULL THEN m.status = 'production' ELSE m.version = :base END"
_LINE = f"""
    line (version, parent_version) AS (
        SELECT m.version, m.parent_version FROM iccm.model_versions m WHERE {_BASE}
        UNION
        SELECT m.version, m.parent_version
        FROM iccm.model_versions m JOIN line ON m.version = line.parent_version
    )
"""

# A refused or rolled-back candidate is not in production's line, so what it learned from stays selectable.
# Pinned rows stay in the pool when they no longer qualify: only what the filter keeps today is selectable.
_NEW_ROWS = """
    FROM iccm.phase4_training_data t
    JOIN iccm.conversations c ON c.id = t.conversation_id
    WHERE t.day >= :first_day AND c.erased_at IS NULL
      AND EXISTS (SELECT FROM iccm.filtered_conversations f
                  WHERE f.conversation_id = t.conversation_id AND f.day >= :first_day)
      AND NOT EXISTS (
          SELECT FROM iccm.training_run_examples e
          JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
          JOIN line ON line.version = r.candidate_version
          WHERE e.conversation_id = t.conversation_id AND e.role IN ('new', 'validation'))
"""
_ROWS = text(
    f"""
    WITH RECURSIVE {_LINE}
    SELECT t.conversation_id, c.session_id, c.user_id, c."timestamp", t.quality_score, t.failed_first
    {_NEW_ROWS}
    ORDER BY t.conversation_id
    """
)

# One row per owner, not per example: a sensor asks every minute. An owner is named as in ``PoolRow.owner``.
_COUNTS = text(
    f"""
    WITH RECURSIVE {_LINE}
    SELECT count(*)
    {_NEW_ROWS} AND c."timestamp" BETWEEN :start AND :end
    GROUP BY CASE WHEN c.user_id <> '' THEN 'user:' || c.user_id ELSE 'session:' || c.session_id END
    """
)

_LAST_TRAINING = text(
    f"""
    SELECT max(r.training_timestamp)
    FROM iccm.phase4_training_runs r
    JOIN iccm.model_versions m ON m.version = r.candidate_version
    WHERE {_BASE}
    """
)


@dataclass(frozen=True)
class NewRows:
    """Pool rows the base has not learned from, and when the base was trained (``None``: not here)."""

    rows: tuple[PoolRow, ...]
    last_training_at: datetime | None


def fetch(conn: Connection, now: datetime, settings: SelectionSettings, base: str | None = None) -> NewRows:
    """The qualifying pool rows of the widest window that no ancestor of the base has learned from.

    The base is the production model unless another version is named. The last training is that of the base:
    a refused candidate used nothing up, so it does not shorten the window either.
    """
    first_day = (now - timedelta(days=settings.max_window_days)).date()
    rows = conn.execute(_ROWS, {"first_day": first_day, "base": base})
    last = conn.execute(_LAST_TRAINING, {"base": base}).scalar()
    return NewRows(tuple(PoolRow(*row) for row in rows), last)


def selectable(conn: Connection, now: datetime, settings: SelectionSettings) -> int:
    """What T1 and T3 count: ``propose(…).selectable``, without reading the examples."""
    span = window(now, conn.execute(_LAST_TRAINING, {"base": None}).scalar(), settings)
    first_day = (now - timedelta(days=settings.max_window_days)).date()
    values = {"first_day": first_day, "base": None, "start": span.start, "end": span.end}
    counts = conn.execute(_COUNTS, values).scalars().all()
    return largest_selection(counts, sum(counts), settings)[0]


def propose(
    conn: Connection,
    now: datetime,
    settings: SelectionSettings,
    emergency: bool = False,
    base: str | None = None,
) -> Selection:
    """T7 on the pool as it is at ``now``, for production or for the version named as base."""
    found = fetch(conn, now, settings, base)
    return select(found.rows, now, found.last_training_at, settings, emergency)

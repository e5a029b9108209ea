"""What a retraining started now would learn from: the pool rows ``selection`` chooses among."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from iccm_assets.learning.selection import PoolRow, Selection, select
from iccm_assets.settings import Selection as SelectionSettings
from iccm_assets.store.lineage import PRODUCTION_LINE

# A refused or rolled-back candidate is not in production's line, so what it learned from stays selectable.
# Pinned rows stay in the pool when they no longer qualify: only what the filter keeps today is selectable.
_ROWS = text(
    f"""
    WITH RECURSIVE {PRODUCTION_LINE}
    SELECT t.conversation_id, c.session_id, c.user_id, c."timestamp", t.quality_score, t.failed_first
    FROM iccm.phase4_training_data t
    JOIN iccm.conversations c ON c.id = t.conversation_id
    WHERE t.day >= :first_day AND c.erased_at IS NULL
      AND EXISTS (SELECT FROM iccm.filtered_conversations f WHERE f.conversation_id = t.conversation_id)
      AND NOT EXISTS (
          SELECT FROM iccm.training_run_examples e
          JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
          JOIN line ON line.version = r.candidate_version
          WHERE e.conversation_id = t.conversation_id AND e.role IN ('new', 'validation'))
    ORDER BY t.conversation_id
    """
)

_LAST_TRAINING = text(
    """
    SELECT max(r.training_timestamp)
    FROM iccm.phase4_training_runs r
    JOIN iccm.model_versions m ON m.version = r.candidate_version
    WHERE m.status = 'production'
    """
)


@dataclass(frozen=True)
class NewRows:
    """Pool rows production has not learned from, and when production was trained (``None``: not here)."""

    rows: tuple[PoolRow, ...]
    last_training_at: datetime | None


def fetch(conn: Connection, now: datetime, settings: SelectionSettings) -> NewRows:
    """The qualifying pool rows of the widest window that no ancestor of production has learned from.

    The last training is that of the production model: a refused candidate used nothing up, so it does not
    shorten the window either.
    """
    first_day = (now - timedelta(days=settings.max_window_days)).date()
    rows = conn.execute(_ROWS, {"first_day": first_day})
    return NewRows(tuple(PoolRow(*row) for row in rows), conn.execute(_LAST_TRAINING).scalar())


def propose(
    conn: Connection, now: datetime, settings: SelectionSettings, emergency: bool = False
) -> Selection:
    """T7 on the pool as it is at ``now``."""
    found = fetch(conn, now, settings)
    return select(found.rows, now, found.last_training_at, settings, emergency)

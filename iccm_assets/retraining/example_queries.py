"""Read the pool rows that a retraining could train on now; ``example_selection`` selects among them (T7)."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from sqlalchemy import Connection, text

from iccm_assets.retraining.example_selection import (
    ExampleSelection,
    FairShare,
    PoolRow,
    TimeWindow,
    max_fair_selection,
    select_examples,
    selection_window,
)
from iccm_assets.settings import SelectionSettings

_BASE = "case when cast(:base as text) is null then m.status = 'production' else m.version = :base end"
_ANCESTRY = f"""
    ancestry (version, parent_version) as (
        select m.version, m.parent_version from iccm.model_versions m where {_BASE}
        union
        select m.version, m.parent_version
        from iccm.model_versions m join ancestry on m.version = ancestry.parent_version
    )
"""

# A rejected or rolled-back candidate is not an ancestor of production, so its examples stay selectable.
# Pinned rows stay in the pool when they no longer qualify: only what the filter keeps today is selectable.
_NEW_ROWS = """
    from iccm.phase4_training_data t
    join iccm.conversations c on c.id = t.conversation_id
    where t.day >= :first_day and c.erased_at is null
      and exists (select from iccm.filtered_conversations f
                  where f.conversation_id = t.conversation_id and f.day >= :first_day)
      and not exists (
          select from iccm.training_run_examples e
          join iccm.phase4_training_runs r on r.id = e.training_run_id
          join ancestry on ancestry.version = r.candidate_version
          where e.conversation_id = t.conversation_id and e.role in ('new', 'validation'))
"""
_ROWS = text(
    f"""
    with recursive {_ANCESTRY}
    select t.conversation_id, c.session_id, c.user_id, c."timestamp", t.quality_score, t.failed_first,
        c.token_name
    {_NEW_ROWS}
    order by t.conversation_id
    """
)

# One row per owner, not per example: a sensor runs it every minute. An owner is the same as
# ``PoolRow.owner``.
COUNT_SELECTABLE_SQL = text(
    f"""
    with recursive {_ANCESTRY}
    select count(*)
    {_NEW_ROWS} and c."timestamp" between :start and :end
    group by case when c.user_id <> '' then 'user:' || c.user_id
        when c.token_name <> '' then 'token:' || c.token_name end
    """
)

# What the filter found wrong with a text, not with its source or suite: the model may find a better one.
_TEXT_REJECTIONS = ("low_test_pass_rate", "high_implementation_variance", "no_requirements")
# A duplicate, a conversation that policy keeps out, and one that was learned from give no sources either.
_RECENT_SOURCES = text(
    f"""
    with recursive {_ANCESTRY}
    select c.id from iccm.conversations c
    where c."timestamp" between :start and :end and c.erased_at is null
      and (exists (select from iccm.filtered_conversations f where f.conversation_id = c.id)
        or exists (select from iccm.phase4_rejections p where p.conversation_id = c.id
                   and p.stage = 'filter' and p.reason = any(:reasons)))
      and not exists (select from iccm.phase4_rejections p
                      where p.conversation_id = c.id and p.stage in ('policy', 'dedup'))
      and not exists (select from iccm.feedback d where d.session_id = c.session_id and d.rating < 0)
      and not exists (
          select from iccm.training_run_examples e
          join iccm.phase4_training_runs r on r.id = e.training_run_id
          join ancestry on ancestry.version = r.candidate_version
          where e.conversation_id = c.id and e.role in ('new', 'validation', 'self'))
    order by c."timestamp" desc, c.id desc
    limit :limit
    """
)

_LAST_TRAINING = text(
    f"""
    select max(r.training_timestamp)
    from iccm.phase4_training_runs r
    join iccm.model_versions m on m.version = r.candidate_version
    where {_BASE}
    """
)


def fetch_candidates(
    conn: Connection, now: datetime, settings: SelectionSettings, base: str | None = None
) -> list[PoolRow]:
    """Read the qualifying pool rows of the widest window that no ancestor of the base was trained on.

    The base is the production model unless ``base`` is another version.
    """
    rows = conn.execute(_ROWS, {"first_day": _first_day(now, settings), "base": base})
    return [PoolRow(*row) for row in rows]


def count_selectable(conn: Connection, now: datetime, settings: SelectionSettings) -> FairShare:
    """Return ``propose_selection(…).fair_share`` without reading the examples (T1, T3)."""
    window = selection_window(now, _last_training(conn, None), settings)
    values = {"first_day": _first_day(now, settings), "base": None, "start": window.start, "end": window.end}
    return max_fair_selection(conn.execute(COUNT_SELECTABLE_SQL, values).scalars(), None, settings)


def propose_selection(
    conn: Connection,
    now: datetime,
    settings: SelectionSettings,
    emergency: bool = False,
    base: str | None = None,
) -> ExampleSelection:
    """Select the examples of a retraining at ``now``, from production or from ``base`` (T7)."""
    rows = fetch_candidates(conn, now, settings, base)
    return select_examples(rows, now, _last_training(conn, base), settings, emergency)


def find_recent_sources(conn: Connection, window: TimeWindow, base: str | None, limit: int) -> list[int]:
    """Return the conversations of the window whose sources a model may answer itself, newest first (L12)."""
    values = {"base": base, "start": window.start, "end": window.end, "limit": limit}
    return list(conn.execute(_RECENT_SOURCES, {**values, "reasons": list(_TEXT_REJECTIONS)}).scalars())


def _first_day(now: datetime, settings: SelectionSettings) -> date:
    return (now - timedelta(days=settings.max_window_days)).date()


def _last_training(conn: Connection, base: str | None) -> datetime | None:
    # That of the base: a rejected candidate used no examples up, so it does not shorten the window either.
    return conn.execute(_LAST_TRAINING, {"base": base}).scalar()

"""``filtered_conversations``: what of a day's conversations may teach the model (F1-F4).

``filter_day`` replaces one UTC day's rows in one transaction. What it reads follows the day's rows, not
the size of the tables: an index range of ``conversations`` and look-ups by session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.curation.decision import Candidate, Keep, Reject, decide, reject_leak
from iccm_assets.curation.embeddings import TextEmbedder, content_sha256, embed_texts
from iccm_assets.curation.leaks import Text, find_leaks, load_index
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Curation, Settings
from iccm_assets.store import tables as t
from iccm_assets.store.locks import Lock, acquire_lock

# A row written in a transaction that committed after the filter had read: its moment lies before.
_COMMIT_SLACK = timedelta(minutes=5)


@dataclass(frozen=True)
class FilterReport:
    """One day's funnel: conversations in, kept, and rejected by reason."""

    day: date
    conversations: int
    kept: int
    rejected: dict[str, int] = field(default_factory=dict)


def filter_day(
    engine: sa.Engine, day: date, settings: Settings, embedder: TextEmbedder | None = None
) -> FilterReport:
    """Decide every conversation of one UTC day anew and store the outcome; running it again is no change.

    Raises ``InputError`` when the canary set cannot be read: without it nothing may pass (F4).
    """
    index = load_index(settings.canary_set)
    embedder = embedder or Embedder.load(settings)
    # Ahead of the transaction, which then only looks vectors up.
    embed_texts(engine, _probable_texts(engine, day, settings.curation), embedder)
    with engine.begin() as conn:
        acquire_lock(conn, Lock.FILTERED_DAY, day)
        read_at = conn.execute(sa.text("select iccm.now()")).scalar_one()
        decisions = [decide(one, settings.curation) for one in _candidates(conn, day)]
        kept = [one for one in decisions if isinstance(one, Keep)]
        rejected = [one for one in decisions if isinstance(one, Reject)]
        texts = [Text(one.source_code, one.requirements) for one in kept]
        leaks = find_leaks(engine, texts, index, embedder, settings.curation.duplicate_similarity)
        rejected += [reject_leak(one, leak) for one, leak in zip(kept, leaks, strict=True) if leak]
        kept = [one for one, leak in zip(kept, leaks, strict=True) if leak is None]
        _replace_day(conn, day, read_at, kept, rejected)
    reasons = Counter(one.reason for one in rejected)
    return FilterReport(day, len(decisions), len(kept), dict(sorted(reasons.items())))


def changed_days(conn: sa.Connection, first: date, last: date) -> list[date]:
    """The days from ``first`` to ``last`` whose inputs changed since they were filtered (P6).

    Days that have conversations and were never filtered belong to them, and so do days that a
    conversation has left for another.
    """
    rows = conn.execute(
        sa.text(
            """
            with inputs as (
                select (c."timestamp" at time zone 'UTC')::date as day, greatest(
                    c.updated_at,
                    c.erased_at,
                    (select max(r.scored_at) from iccm.requirements r where r.session_id = c.session_id),
                    (select max(f.created_at) from iccm.feedback f where f.session_id = c.session_id)
                ) as changed_at
                from iccm.conversations c
                where c."timestamp" >= :start and c."timestamp" < :end
            ), moved as (
                select f.day from iccm.filtered_conversations f
                join iccm.conversations c on c.id = f.conversation_id
                where f.day between :first and :last
                    and f.day is distinct from (c."timestamp" at time zone 'UTC')::date
            )
            select distinct i.day from inputs i
            left join iccm.filtered_days d on d.day = i.day
            where d.day is null or i.changed_at > d.filtered_at - cast(:slack as interval)
            union
            select day from moved
            order by 1
            """
        ),
        {
            "start": _start(first),
            "end": _start(last + timedelta(days=1)),
            "first": first,
            "last": last,
            "slack": _COMMIT_SLACK,
        },
    )
    return [row.day for row in rows]


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _window(day: date) -> dict[str, datetime]:
    return {"start": _start(day), "end": _start(day + timedelta(days=1))}


def _probable_texts(engine: sa.Engine, day: date, curation: Curation) -> list[str]:
    """Accepted texts of the day that will pass on their scores alone."""
    with engine.connect() as conn:
        rows = conn.execute(
            sa.text(
                """
                select a.text from iccm.conversations c
                join iccm.requirements a on a.session_id = c.session_id and a.kind = 'accepted'
                where c."timestamp" >= :start and c."timestamp" < :end and c.erased_at is null
                    and a.test_pass_rate > :rate and a.implementation_variance < :variance
                """
            ),
            {
                **_window(day),
                "rate": curation.min_test_pass_rate,
                "variance": curation.max_implementation_variance,
            },
        )
        return list(rows.scalars())


_CANDIDATES = sa.text(
    """
    select c.id, c.session_id, c.user_id, c.content, c.metadata, c.erased_at is not null as erased,
        exists (
            select from iccm.feedback f where f.session_id = c.session_id and f.rating < 0
        ) as negative_feedback,
        a.text, a.test_suite is not null as has_test_suite, a.scored_at is not null as scored,
        a.test_pass_rate, a.implementation_variance,
        m.text as first_answer, m.test_pass_rate as first_test_pass_rate
    from iccm.conversations c
    left join iccm.requirements a on a.session_id = c.session_id and a.kind = 'accepted'
    left join lateral (
        select r.text, r.test_pass_rate from iccm.requirements r
        where r.session_id = c.session_id and r.kind = 'model'
        order by r.created_at, r.id limit 1
    ) m on true
    where c."timestamp" >= :start and c."timestamp" < :end
    order by c.id
    """
)


def _candidates(conn: sa.Connection, day: date) -> Iterator[Candidate]:
    """The day's conversations, a few hundred in memory at a time."""
    for row in conn.execute(_CANDIDATES, _window(day), execution_options={"yield_per": 200}):
        yield Candidate(
            conversation_id=row.id,
            session_id=row.session_id,
            user_id=row.user_id,
            content=row.content,
            metadata=row.metadata,
            erased=row.erased,
            negative_feedback=row.negative_feedback,
            requirements=row.text,
            has_test_suite=bool(row.has_test_suite),
            scored=bool(row.scored),
            test_pass_rate=row.test_pass_rate,
            implementation_variance=row.implementation_variance,
            first_answer=row.first_answer,
            first_test_pass_rate=row.first_test_pass_rate,
        )


def _replace_day(
    conn: sa.Connection, day: date, read_at: datetime, kept: Sequence[Keep], rejected: Sequence[Reject]
) -> None:
    """Delete the window, insert the window. A conversation whose day has changed leaves its old one."""
    ids = [one.conversation_id for one in kept] + [one.conversation_id for one in rejected]
    for table, more in (
        (t.filtered_conversations, ""),
        (t.phase4_rejections, "and stage in ('filter', 'policy')"),
    ):
        conn.execute(
            sa.text(f"delete from {table.fullname} where (day = :day or conversation_id = any(:ids)) {more}"),
            {"day": day, "ids": ids},
        )
    if kept:
        conn.execute(t.filtered_conversations.insert(), [_filtered(day, one) for one in kept])
    if rejected:
        conn.execute(t.phase4_rejections.insert(), [{"day": day, **vars(one)} for one in rejected])
    conn.execute(
        sa.text(
            """
            insert into iccm.filtered_days (day, filtered_at, kept, rejected)
            values (:day, :read_at, :kept, :rejected)
            on conflict (day) do update set filtered_at = excluded.filtered_at,
                kept = excluded.kept, rejected = excluded.rejected
            """
        ),
        {"day": day, "read_at": read_at, "kept": len(kept), "rejected": len(rejected)},
    )


def _filtered(day: date, kept: Keep) -> dict[str, Any]:
    return {"day": day, **vars(kept), "content_sha256": content_sha256(kept.requirements)}

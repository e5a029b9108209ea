"""``filtered_conversations``: the conversations of a day that may be trained on (F1-F4).

``filter_day`` replaces the rows of one UTC day in one transaction. Its cost follows the rows of the day, not
the size of the tables: an index range of ``conversations`` and lookups by session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.decontamination import TextPair, find_contamination, load_canary_index
from iccm_assets.curation.embeddings import TextEmbedder, embed_texts
from iccm_assets.curation.filter_policy import (
    Kept,
    Rejected,
    ScoredConversation,
    apply_filter,
    reject_contaminated,
)
from iccm_assets.db import tables as t
from iccm_assets.db.clock import start_of_day
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import CurationSettings, Settings


@dataclass(frozen=True)
class FilterReport:
    """Counts of one day: all conversations, kept ones, and rejected ones by reason."""

    conversations: int
    kept: int
    rejected: dict[str, int]


def filter_day(
    engine: Engine, day: date, settings: Settings, embedder: TextEmbedder | None = None
) -> FilterReport:
    """Decide every conversation of one UTC day and store the result; running it again changes nothing.

    Raises ``InputError`` when the canary set cannot be read: without it no conversation may pass (F4).
    """
    index = load_canary_index(settings.canary_set)
    embedder = embedder or Embedder.load(settings)
    # Embedding takes seconds: it happens before the transaction, which then only loads vectors.
    embed_texts(engine, _texts_likely_to_pass(engine, day, settings.curation), embedder)
    with engine.begin() as conn:
        acquire_lock(conn, Lock.FILTERED_DAY, day)
        # Before the rows: what changes in between makes the day change again.
        inputs = conn.execute(text(_FINGERPRINTS), _range(day, day)).one_or_none()
        decisions = [apply_filter(row, settings.curation) for row in _load_conversations(conn, day)]
        rejected = [decision for decision in decisions if isinstance(decision, Rejected)]
        passed = [decision for decision in decisions if isinstance(decision, Kept)]
        pairs = [TextPair(decision.source_code, decision.requirements) for decision in passed]
        leaks = find_contamination(engine, pairs, index, embedder, settings.curation.duplicate_similarity)
        kept = []
        for decision, leak in zip(passed, leaks, strict=True):
            if leak is None:
                kept.append(decision)
            else:
                rejected.append(reject_contaminated(decision, leak))
        _replace_day(conn, day, inputs.fingerprint if inputs else None, kept, rejected)
    reasons = Counter(rejection.reason for rejection in rejected)
    return FilterReport(len(decisions), len(kept), dict(sorted(reasons.items())))


def find_changed_days(conn: Connection, first: date, last: date) -> list[date]:
    """Return the days from ``first`` to ``last`` whose inputs changed since they were filtered (P6).

    This includes days with conversations that were never filtered, and days from which a conversation moved
    to another day or was deleted.
    """
    days = {**_range(first, last), "first": first, "last": last}
    return list(conn.execute(_CHANGED_DAYS, days).scalars())


# Each day's inputs as one text that does not depend on the order of its rows. What is compared is what the
# filter read, not when: a score that was written just before the filter ran is no change, and a transaction
# that committed during or after the run is one, whatever time it wrote.
_FINGERPRINTS = """
    select i.day, count(*) || ':' || sum(hashtextextended(cast(i.inputs as text), 0)) as fingerprint
    from (
        select (c."timestamp" at time zone 'UTC')::date as day, row(
            c.id, extract(epoch from c.updated_at), extract(epoch from c.erased_at),
            (select extract(epoch from max(r.scored_at)) from iccm.requirements r
             where r.session_id = c.session_id),
            (select row(count(*), extract(epoch from max(f.created_at))) from iccm.feedback f
             where f.session_id = c.session_id)
        ) as inputs
        from iccm.conversations c
        where c."timestamp" >= :start and c."timestamp" < :end
    ) as i
    group by i.day
"""
_CHANGED_DAYS = text(
    f"""
    select day from ({_FINGERPRINTS}) as i
    full join (select day, fingerprint from iccm.filtered_days where day between :first and :last) as d
        using (day)
    where i.fingerprint is distinct from d.fingerprint
    order by 1
    """
)


def _range(first: date, last: date) -> dict[str, object]:
    return {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))}


_LIKELY_TO_PASS = text(
    """
    select a.text from iccm.conversations c
    cross join lateral (
        select r.* from iccm.requirements r where r.session_id = c.session_id and r.kind = 'accepted' limit 1
    ) a
    where c."timestamp" >= :start and c."timestamp" < :end and c.erased_at is null
        and a.test_pass_rate > :rate and a.implementation_variance < :variance
    """
)


def _texts_likely_to_pass(engine: Engine, day: date, curation: CurationSettings) -> list[str]:
    """Return the accepted texts of the day that pass by their scores alone."""
    limits = {"rate": curation.min_test_pass_rate, "variance": curation.max_implementation_variance}
    with engine.connect() as conn:
        return list(conn.execute(_LIKELY_TO_PASS, {**_range(day, day), **limits}).scalars())


_CONVERSATIONS = text(
    """
    select c.id as conversation_id, c.session_id, c.user_id, c.content, c.metadata,
        c.origin = 'simulated' or c.metadata -> 'simulated' is not distinct from 'true'::jsonb as simulated,
        c.erased_at is not null as erased,
        f.rating is not null as negative_feedback,
        a.text as requirements, a.source_sha256,
        a.test_suite is not null as has_test_suite, a.scored_at is not null as scored,
        a.test_pass_rate, a.implementation_variance, a.test_suite ->> 'kind' as evidence, a.test_suite_origin,
        a.evidence ->> 'suite' as suite_status, a.evidence ->> 'reason' as suite_problem,
        coalesce((
            select bool_and(b.reconstructor like 'builtin/%') from iccm.reconstructions b
            where b.requirement_id = a.id and b.test_pass_rate is not null
        ), false) as builtin_only,
        m.text as first_response, m.test_pass_rate as first_test_pass_rate
    from iccm.conversations c
    left join lateral (
        select r.* from iccm.requirements r where r.session_id = c.session_id and r.kind = 'accepted' limit 1
    ) a on true
    left join lateral (
        select r.text, r.test_pass_rate from iccm.requirements r
        where r.session_id = c.session_id and r.kind = 'model'
        order by r.created_at, r.id limit 1
    ) m on true
    left join lateral (
        select d.rating from iccm.feedback d where d.session_id = c.session_id and d.rating < 0 limit 1
    ) f on true
    where c."timestamp" >= :start and c."timestamp" < :end
    order by c.id
    """
)


# Lateral joins with a limit look sessions up one by one: an exists-subquery is planned as a hash of the whole
# feedback table, and the plain join of accepted texts can be, too.
#
# PostgreSQL plans a cursor for the first tenth of its rows, and then reads the whole table in the order of
# the primary key: with 1 M conversations a day took 904 ms instead of 165 ms, growing with the table.
_PLAN_FOR_ALL_ROWS = text("set local cursor_tuple_fraction = 1")


def _load_conversations(conn: Connection, day: date) -> Iterator[ScoredConversation]:
    """Load the day's conversations, some hundred at a time."""
    conn.execute(_PLAN_FOR_ALL_ROWS)
    rows = conn.execute(_CONVERSATIONS, _range(day, day), execution_options={"yield_per": 200})
    for row in rows.mappings():
        yield ScoredConversation(**row)


def _replace_day(
    conn: Connection, day: date, fingerprint: str | None, kept: Sequence[Kept], rejected: Sequence[Rejected]
) -> None:
    """Delete the day's rows and insert the new ones; a conversation that moved leaves its old day."""
    ids = [row.conversation_id for row in kept] + [row.conversation_id for row in rejected]
    for table, condition in (
        (t.filtered_conversations, ""),
        (t.phase4_rejections, "and stage in ('filter', 'policy')"),
    ):
        conn.execute(
            text(
                f"delete from {table.fullname} where (day = :day or conversation_id = any(:ids)) {condition}"
            ),
            {"day": day, "ids": ids},
        )
    filtered = [{"day": day, **vars(row), "content_sha256": content_sha256(row.requirements)} for row in kept]
    rejections = [{"day": day, **vars(row)} for row in rejected]
    for table, rows in ((t.filtered_conversations, filtered), (t.phase4_rejections, rejections)):
        if rows:
            conn.execute(table.insert(), rows)
    conn.execute(
        text(
            """
            insert into iccm.filtered_days (day, filtered_at, kept, rejected, fingerprint)
            values (:day, iccm.now(), :kept, :rejected, :fingerprint)
            on conflict (day) do update set filtered_at = excluded.filtered_at,
                kept = excluded.kept, rejected = excluded.rejected, fingerprint = excluded.fingerprint
            """
        ),
        {"day": day, "kept": len(kept), "rejected": len(rejected), "fingerprint": fingerprint},
    )

"""``training_pool``: one greedy deduplication over the filtered rows of the materialized days (P1-P4).

The pool is a function of three things only: which days are materialized, their filtered rows, and which rows
are pinned. The order in which days are materialized, and how they are grouped into runs, has no effect. Every
run decides the rows of new and changed days, and those rows of later days that this affects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, text

from iccm_assets.curation.embeddings import TextEmbedder, embed_missing
from iccm_assets.curation.opposites import find_example_differences
from iccm_assets.curation.pool_decisions import Mask, update_decisions
from iccm_assets.curation.pool_rows import IS_ROW, ROW_ORDER, PoolRows, load_pool_rows, load_texts
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.settings import Settings

# Part of the fingerprint of every day: pools that were built by another rule are rebuilt.
_RULE = "windows"


@dataclass(frozen=True)
class PoolReport:
    """Result of a rebuild: ``rows``, ``kept`` and ``removed`` count the requested days."""

    rows: int
    kept: int
    removed: int
    embedded: int
    rebuilt_days: int
    changed_rows: int
    pool_size: int


def rebuild_pool(
    engine: Engine,
    days: Sequence[date],
    settings: Settings,
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> PoolReport:
    """Make ``days`` part of the pool and bring it up to date, in one transaction under one lock.

    Only differences are written: a rebuild that changes nothing touches no row. ``progress`` is called with
    the number of newly embedded texts.
    """
    embedded = 0
    while True:
        with engine.connect() as conn:
            missing = _texts_to_embed(conn, days, embedder)
        embedded += embed_missing(engine, missing, embedder, progress)
        with engine.begin() as conn:
            lock_pool(conn)
            # The filter must not replace a day between reading and copying its rows.
            conn.execute(text("lock table iccm.filtered_conversations in share mode"))
            # Another day may have been filtered during the embedding: then embed its texts first.
            if not _texts_to_embed(conn, days, embedder):
                threshold = settings.curation.duplicate_similarity
                return _PoolRebuild(conn, days, threshold, embedder.digest).run(embedded)


def lock_pool(conn: Connection) -> None:
    """Lock the pool until the transaction ends; required before rebuilding it or pinning its rows."""
    acquire_lock(conn, Lock.TRAINING_POOL)


def _texts_to_embed(conn: Connection, days: Sequence[date], embedder: TextEmbedder) -> dict[str, str]:
    """Return the texts, by hash, that a rebuild needs and that have no vector."""
    rows = conn.execute(_TEXTS_TO_EMBED, {"days": list(days), "embedder": embedder.digest})
    return {row.content_sha256: row.requirements for row in rows}


_TEXTS_TO_EMBED = text(
    """
    with texts as (
        select f.content_sha256, f.requirements from iccm.filtered_conversations f
        where f.day = any(:days) or exists (select from iccm.pool_days d where d.day = f.day)
        union
        select p.content_sha256, p.requirements from iccm.phase4_training_data p where p.pinned
    )
    select t.content_sha256, t.requirements from texts t
    where not exists (
        select from iccm.embeddings e
        where e.content_sha256 = t.content_sha256 and e.embedder = :embedder
            and e.further_windows is not null
    )
    """
)


class _PoolRebuild:
    """One rebuild, inside its transaction."""

    def __init__(self, conn: Connection, days: Sequence[date], threshold: float, digest: str) -> None:
        self._conn = conn
        self._requested = set(days)
        self._threshold = threshold
        self._digest = digest

    def run(self, embedded: int) -> PoolReport:
        # Erased content leaves the pool in any case, pinned or not (V2).
        changed = self._change(_DELETE_ERASED)
        stored = {day: _Fingerprint.parse(value) for day, value in self._query(_STORED_DAYS)}
        days = sorted({*stored, *self._requested})
        current = self._fingerprints(days)
        stale = {day for day in days if not current[day].is_same_day(stored.get(day))}
        outdated = {day for day in days if stored.get(day) != current[day]}
        # Where only the pinned rows changed, every row may have others before it.
        has_moved = outdated != stale
        built = stale | self._requested
        start = min(outdated | built if has_moved else built, default=None)
        n_rows = 0
        if start is not None:
            rows = load_pool_rows(self._conn, days, start)
            touched = self._decide(rows, days, start, stale, has_moved)
            built |= {day for day, is_touched in zip(rows.days, touched, strict=True) if is_touched}
            changed += self._write(rows, start, touched, built - stale - self._requested)
            self._record_days(outdated | built, current)
            n_rows = sum(day in self._requested for day in rows.days)
        changed += self._change(_UPDATE_QUALIFIES)
        [(kept, removed, size)] = self._query(_TOTALS, days=sorted(self._requested))
        return PoolReport(n_rows, kept, removed, embedded, len(built), changed, size)

    def _query(self, sql: str, **values: Any) -> list[Any]:
        return list(self._conn.execute(text(sql), values).tuples())

    def _change(self, sql: str, **values: Any) -> int:
        return self._conn.execute(text(sql), values).rowcount

    def _fingerprints(self, days: list[date]) -> dict[date, _Fingerprint]:
        rule = _digest(repr((_RULE, self._digest, self._threshold)))
        pinned = _digest(repr(self._query(_PINNED)))
        rows = dict(self._query(_DIGESTS, days=days))
        return {day: _Fingerprint(rule, pinned, rows.get(day, "")) for day in days}

    def _decide(self, rows: PoolRows, days: list[date], start: date, stale: set[date], moved: bool) -> Mask:
        """Decide the rows of stale days and what they affect; return which rows from ``start`` on were."""
        undecided = ~rows.is_decided
        undecided[rows.n_earlier :] |= np.array([day in stale for day in rows.days], dtype=bool)
        moved_rows = np.zeros(len(undecided), dtype=bool)
        moved_rows[: rows.n_pinned] = moved
        if not (undecided | moved_rows).any():
            return undecided[rows.n_earlier :]
        texts = load_texts(self._conn, rows, days, start, self._digest)
        touched = update_decisions(texts, rows.decisions, undecided, moved_rows, self._threshold)
        return touched[rows.n_earlier :]

    def _write(self, rows: PoolRows, start: date, touched: Mask, only_touched: set[date]) -> int:
        """Write the differences; of the days in ``only_touched``, touched rows alone can have any."""
        first = rows.n_earlier
        ids, originals = rows.ids[first:], rows.decisions.positions[first:]
        is_copied = touched | np.array([day not in only_touched for day in rows.days], dtype=bool)
        is_kept = originals < 0
        changed = self._change(_DELETE_NOT_KEPT, start=start, kept=ids[is_kept].tolist())
        changed += self._change(_DELETE_NOT_REMOVED, start=start, removed=ids[~is_kept].tolist())
        changed += self._change(_COPY_KEPT, kept=ids[is_kept & is_copied].tolist(), embedder=self._digest)
        # How a row differs from its original depends on the original's source, too.
        with_copied_original = np.isin(originals, first + np.flatnonzero(is_kept & is_copied))
        return changed + self._copy_removed(rows, ~is_kept & (is_copied | with_copied_original))

    def _copy_removed(self, rows: PoolRows, is_copied: Mask) -> int:
        chosen = np.flatnonzero(is_copied)
        positions = chosen + rows.n_earlier
        ids = rows.ids[positions].tolist()
        originals = rows.ids[rows.decisions.positions[positions]].tolist()
        return self._change(
            _COPY_REMOVED,
            ids=ids,
            days=[rows.days[row] for row in chosen.tolist()],
            originals=originals,
            similarities=rows.decisions.similarities[positions].tolist(),
            differences=self._find_differences(ids, originals),
        )

    def _find_differences(self, ids: list[int], originals: list[int]) -> list[str | None]:
        """Return how each removed row differs from the kept one, comma-separated; None if it does not."""
        pairs = self._query(_PAIRS, ids=ids, originals=originals)
        return [",".join(find_example_differences(*pair)) or None for pair in pairs]

    def _record_days(self, days: set[date], fingerprints: dict[date, _Fingerprint]) -> None:
        ordered = sorted(days)
        self._change(_RECORD_DAYS, days=ordered, fingerprints=[str(fingerprints[day]) for day in ordered])


@dataclass(frozen=True)
class _Fingerprint:
    """Digests of everything the decisions of a day depend on, except earlier days."""

    rule: str
    pinned: str
    rows: str

    @classmethod
    def parse(cls, value: str) -> _Fingerprint | None:
        """Parse a stored fingerprint; None for one of an earlier release, whose days are rebuilt."""
        parts = value.split(":")
        return cls(*parts) if len(parts) == 3 else None

    def __str__(self) -> str:
        return f"{self.rule}:{self.pinned}:{self.rows}"

    def is_same_day(self, other: _Fingerprint | None) -> bool:
        """Return whether the day has the same rows in the same order, by the same rule."""
        return other is not None and (self.rule, self.rows) == (other.rule, other.rows)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


_STORED_DAYS = "select day, fingerprint from iccm.pool_days"

_PINNED = """
    select conversation_id, content_sha256 from iccm.phase4_training_data where pinned
    order by day, conversation_id
"""

_DIGESTS = f"""
    select f.day, left(encode(sha256(convert_to(string_agg(
        f.conversation_id || ' ' || f.content_sha256, ',' order by {ROW_ORDER}
    ), 'UTF8')), 'hex'), 32)
    from iccm.filtered_conversations f
    where {IS_ROW} group by f.day
"""

_DELETE_ERASED = """
    delete from iccm.phase4_training_data p using iccm.conversations c
    where c.id = p.conversation_id and c.erased_at is not null
"""

_DELETE_NOT_KEPT = """
    delete from iccm.phase4_training_data
    where not pinned and day >= :start and not conversation_id = any(:kept)
"""

_DELETE_NOT_REMOVED = """
    delete from iccm.phase4_rejections
    where stage = 'dedup' and day >= :start and not conversation_id = any(:removed)
"""

# A pinned row that the filter no longer keeps is not rehearsed.
_UPDATE_QUALIFIES = """
    update iccm.phase4_training_data p set qualifies = not p.qualifies
    where p.pinned and p.qualifies is distinct from exists (
        select from iccm.filtered_conversations f
        where f.conversation_id = p.conversation_id
            and f.requirements = p.requirements and f.source_code = p.source_code
    )
"""

_TOTALS = """
    select coalesce(sum(kept), 0)::int, coalesce(sum(removed), 0)::int,
        (select count(*) from iccm.phase4_training_data)
    from iccm.pool_days where day = any(:days)
"""

_FIELDS = (
    "day",
    "session_id",
    "user_id",
    "source_code",
    "requirements",
    "test_pass_rate",
    "implementation_variance",
    "quality_score",
    "failed_first",
    "content_sha256",
    "evidence",
    "test_suite_origin",
)

_COPIED = (*_FIELDS, "embedding", "further_windows")

_COPY_KEPT = f"""
    insert into iccm.phase4_training_data as p (conversation_id, {", ".join(_COPIED)})
    select f.conversation_id, {", ".join(f"f.{name}" for name in _FIELDS)}, e.embedding, e.further_windows
    from iccm.filtered_conversations f
    join iccm.embeddings e on e.content_sha256 = f.content_sha256 and e.embedder = :embedder
    where f.conversation_id = any(:kept)
    on conflict (conversation_id) do update set
        {", ".join(f"{name} = excluded.{name}" for name in _COPIED)}, qualifies = true
    where ({", ".join(f"p.{name}" for name in _COPIED)}, p.qualifies)
        is distinct from ({", ".join(f"excluded.{name}" for name in _COPIED)}, true)
"""

# Source and requirements of the removed row and of the kept one, which may be pinned and no longer filtered.
_PAIRS = """
    select f.source_code, f.requirements, p.source_code, p.requirements
    from unnest(cast(:ids as bigint[]), cast(:originals as bigint[])) with ordinality
        as n (id, duplicate_of, position)
    join iccm.filtered_conversations f on f.conversation_id = n.id
    join iccm.phase4_training_data p on p.conversation_id = n.duplicate_of
    order by n.position
"""

_COPY_REMOVED = """
    insert into iccm.phase4_rejections as r
        (conversation_id, stage, day, reason, detail, duplicate_of, similarity, differences)
    select n.id, 'dedup', n.day, 'near_duplicate',
        'similarity ' || to_char(n.similarity, 'FM0.000000') || ' to conversation ' || n.duplicate_of,
        n.duplicate_of, n.similarity, string_to_array(n.differences, ',')
    from unnest(
        cast(:ids as bigint[]), cast(:days as date[]), cast(:originals as bigint[]),
        cast(:similarities as float8[]), cast(:differences as text[])
    ) as n (id, day, duplicate_of, similarity, differences)
    on conflict (conversation_id, stage) do update set day = excluded.day, reason = excluded.reason,
        detail = excluded.detail, duplicate_of = excluded.duplicate_of, similarity = excluded.similarity,
        differences = excluded.differences
    where (r.day, r.reason, r.detail, r.duplicate_of, r.similarity, r.differences) is distinct from
        (excluded.day, excluded.reason, excluded.detail, excluded.duplicate_of, excluded.similarity,
            excluded.differences)
"""

_RECORD_DAYS = """
    insert into iccm.pool_days as d (day, rebuilt_at, kept, removed, fingerprint)
    select n.day, iccm.now(),
        (select count(*) from iccm.phase4_training_data p where p.day = n.day),
        (select count(*) from iccm.phase4_rejections r where r.day = n.day and r.stage = 'dedup'),
        n.fingerprint
    from unnest(cast(:days as date[]), cast(:fingerprints as text[])) as n (day, fingerprint)
    on conflict (day) do update set rebuilt_at = excluded.rebuilt_at, kept = excluded.kept,
        removed = excluded.removed, fingerprint = excluded.fingerprint
    where (d.kept, d.removed, d.fingerprint)
        is distinct from (excluded.kept, excluded.removed, excluded.fingerprint)
"""

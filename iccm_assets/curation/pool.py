"""``training_pool``: one greedy fold over the materialized days' filtered rows (P1-P4).

The pool is a function of three things only: which days are materialized, their filtered rows, and which
rows are pinned. The order in which days were launched, and how they were grouped into runs, leaves no
trace. Every launch folds again from the earliest day that is asked for or whose inputs are not those it
was folded with; what lies before is taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

import numpy as np
import sqlalchemy as sa

from iccm_assets.curation.embeddings import TextEmbedder, Vectors, add_missing, vectors_of
from iccm_assets.curation.fold import FoldResult, Removed, Rows, fold
from iccm_assets.settings import Settings
from iccm_assets.store.locks import Lock, acquire_lock
from iccm_assets.store.tables import EMBEDDING_DIMENSIONS


@dataclass(frozen=True)
class PoolReport:
    """What a launch did. Counts are of the days asked for, but for the last three."""

    days: tuple[date, ...]
    rows: int
    kept: int
    removed: int
    embedded: int
    refolded_days: int
    changed_rows: int
    pool_size: int

    def metadata(self) -> dict[str, int]:
        """The numbers for a materialization."""
        return {
            "filtered": self.rows,
            "kept": self.kept,
            "duplicates_removed": self.removed,
            "newly_embedded": self.embedded,
            "days_refolded": self.refolded_days,
            "rows_changed": self.changed_rows,
            "pool_size": self.pool_size,
        }


def fold_days(
    engine: sa.Engine,
    days: Sequence[date],
    settings: Settings,
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None = None,
) -> PoolReport:
    """Make ``days`` part of the pool and bring it up to date, in one transaction under one lock.

    Only differences are written: a launch that changes nothing touches no row. ``progress`` is told how
    many texts were embedded.
    """
    embedded = 0
    while True:
        embedded += _embed(engine, days, embedder, progress)
        with engine.begin() as conn:
            lock_pool(conn)
            # The filter may not replace a day between our reading it and copying it.
            conn.execute(sa.text("lock table iccm.filtered_conversations in share mode"))
            if not _unembedded(conn, days, embedder):  # else a day was filtered while we embedded
                return _Fold(conn, days, settings.curation.duplicate_similarity, embedder.digest).run(
                    embedded
                )


def lock_pool(conn: sa.Connection) -> None:
    """Nobody else folds or pins until the transaction ends; whoever pins rows takes this first."""
    acquire_lock(conn, Lock.TRAINING_POOL)


def _embed(
    engine: sa.Engine,
    days: Sequence[date],
    embedder: TextEmbedder,
    progress: Callable[[int], None] | None,
) -> int:
    with engine.connect() as conn:
        texts = _unembedded(conn, days, embedder)
    return add_missing(engine, texts, embedder, progress)


def _unembedded(conn: sa.Connection, days: Sequence[date], embedder: TextEmbedder) -> dict[str, str]:
    """The texts, by hash, that the fold needs and that have no vector."""
    rows = conn.execute(
        sa.text(
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
            )
            """
        ),
        {"days": list(days), "embedder": embedder.digest},
    )
    return {row.content_sha256: row.requirements for row in rows}


@dataclass(frozen=True)
class _Row:
    """A filtered or pinned row, as far as the fold looks at it."""

    conversation_id: int
    day: date
    quality_score: float
    content_sha256: str


class _Fold:
    """One launch, inside its transaction."""

    def __init__(self, conn: sa.Connection, days: Sequence[date], threshold: float, digest: str) -> None:
        self._conn = conn
        self._asked = sorted(set(days))
        self._threshold = threshold
        self._digest = digest

    def run(self, embedded: int) -> PoolReport:
        changed = self._drop_erased()
        stored = dict(self._query("select day, fingerprint from iccm.pool_days"))
        materialized = sorted({*stored, *self._asked})
        pinned, rows = self._pinned(), self._filtered(materialized)
        fingerprints = self._fingerprints(materialized, pinned, rows)
        stale = [day for day in materialized if stored.get(day) != fingerprints[day]]
        start = min([*self._asked, *stale], default=None)
        refolded = [day for day in materialized if start is not None and day >= start]
        if start is not None:
            result = self._folded(start, pinned, rows)
            changed += self._write(start, rows, result)
            self._record(refolded, fingerprints)
        changed += self._flag_pinned()
        return self._report(embedded, len(refolded), changed, rows)

    def _query(self, sql: str, **values: Any) -> list[Any]:
        return list(self._conn.execute(sa.text(sql), values).tuples())

    def _change(self, sql: str, **values: Any) -> int:
        return self._conn.execute(sa.text(sql), values).rowcount

    def _drop_erased(self) -> int:
        """Erased content leaves the pool whatever else holds, pinned or not (V2)."""
        return self._change(
            """
            delete from iccm.phase4_training_data p using iccm.conversations c
            where c.id = p.conversation_id and c.erased_at is not null
            """
        )

    def _pinned(self) -> list[_Row]:
        return [
            _Row(*row)
            for row in self._query(
                """
                select conversation_id, day, quality_score, content_sha256
                from iccm.phase4_training_data where pinned order by day, conversation_id
                """
            )
        ]

    def _filtered(self, days: list[date]) -> list[_Row]:
        """The materialized days' rows in the fold's order, without those that are pinned already."""
        return [
            _Row(*row)
            for row in self._query(
                """
                select f.conversation_id, f.day, f.quality_score, f.content_sha256
                from iccm.filtered_conversations f
                where f.day = any(:days)
                    and not exists (
                        select from iccm.phase4_training_data p
                        where p.conversation_id = f.conversation_id and p.pinned
                    )
                    and not exists (
                        select from iccm.conversations c
                        where c.id = f.conversation_id and c.erased_at is not null
                    )
                order by f.day, f.quality_score desc, f.conversation_id
                """,
                days=days,
            )
        ]

    def _fingerprints(self, days: list[date], pinned: list[_Row], rows: list[_Row]) -> dict[date, str]:
        """Per day a digest of all that its decisions rest on, besides the days before it."""
        common = repr(
            (self._digest, self._threshold, [(row.conversation_id, row.content_sha256) for row in pinned])
        )
        by_day = {day: list(members) for day, members in groupby(rows, key=lambda row: row.day)}
        return {
            day: hashlib.sha256(
                repr((common, [(r.conversation_id, r.content_sha256) for r in by_day.get(day, [])])).encode()
            ).hexdigest()[:32]
            for day in days
        }

    def _folded(self, start: date, pinned: list[_Row], rows: list[_Row]) -> FoldResult[int]:
        stored = {row[0] for row in self._query("select conversation_id from iccm.phase4_training_data")}
        before = [row for row in rows if row.day < start and row.conversation_id in stored]
        new = [row for row in rows if row.day >= start]
        vectors = vectors_of(
            self._conn, {row.content_sha256 for row in (*pinned, *before, *new)}, self._digest
        )
        return fold(_rows(new, vectors), _rows([*pinned, *before], vectors), self._threshold)

    def _write(self, start: date, rows: list[_Row], result: FoldResult[int]) -> int:
        return self._write_kept(start, result.kept) + self._write_removed(start, rows, result.removed)

    def _write_kept(self, start: date, kept: list[int]) -> int:
        gone = self._change(
            """
            delete from iccm.phase4_training_data
            where not pinned and day >= :start and not conversation_id = any(:kept)
            """,
            start=start,
            kept=kept,
        )
        return gone + self._change(_COPY_KEPT, kept=kept, embedder=self._digest)

    def _write_removed(self, start: date, rows: list[_Row], removed: list[Removed[int]]) -> int:
        days = {row.conversation_id: row.day for row in rows}
        gone = self._change(
            """
            delete from iccm.phase4_rejections
            where stage = 'dedup' and day >= :start and not conversation_id = any(:removed)
            """,
            start=start,
            removed=[one.id for one in removed],
        )
        return gone + self._change(
            _COPY_REMOVED,
            ids=[one.id for one in removed],
            days=[days[one.id] for one in removed],
            of=[one.duplicate_of for one in removed],
            similarities=[one.similarity for one in removed],
        )

    def _flag_pinned(self) -> int:
        """Whether what was learned from is still what the filter keeps: if not, it is not rehearsed."""
        return self._change(
            """
            update iccm.phase4_training_data p set qualifies = not p.qualifies
            where p.pinned and p.qualifies is distinct from exists (
                select from iccm.filtered_conversations f
                where f.conversation_id = p.conversation_id
                    and f.requirements = p.requirements and f.source_code = p.source_code
            )
            """
        )

    def _record(self, days: list[date], fingerprints: dict[date, str]) -> None:
        self._change(
            _RECORD_DAYS,
            days=days,
            fingerprints=[fingerprints[day] for day in days],
        )

    def _report(self, embedded: int, refolded: int, changed: int, rows: list[_Row]) -> PoolReport:
        counted = self._query(
            "select coalesce(sum(kept), 0)::int, coalesce(sum(removed), 0)::int "
            "from iccm.pool_days where day = any(:days)",
            days=self._asked,
        )
        (kept, removed), ((size,),) = (
            counted[0],
            self._query("select count(*) from iccm.phase4_training_data"),
        )
        asked = set(self._asked)
        return PoolReport(
            days=tuple(self._asked),
            rows=sum(row.day in asked for row in rows),
            kept=kept,
            removed=removed,
            embedded=embedded,
            refolded_days=refolded,
            changed_rows=changed,
            pool_size=size,
        )


def _rows(rows: Sequence[_Row], vectors: dict[str, Vectors]) -> Rows[int]:
    stacked = [vectors[row.content_sha256] for row in rows]
    return Rows(
        [row.conversation_id for row in rows],
        np.stack(stacked) if stacked else np.zeros((0, EMBEDDING_DIMENSIONS), dtype=np.float32),
    )


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
)

_COPY_KEPT = f"""
    insert into iccm.phase4_training_data as p (conversation_id, {", ".join(_FIELDS)}, embedding)
    select f.conversation_id, {", ".join(f"f.{name}" for name in _FIELDS)}, e.embedding
    from iccm.filtered_conversations f
    join iccm.embeddings e on e.content_sha256 = f.content_sha256 and e.embedder = :embedder
    where f.conversation_id = any(:kept)
    on conflict (conversation_id) do update set
        {", ".join(f"{name} = excluded.{name}" for name in (*_FIELDS, "embedding"))}, qualifies = true
    where ({", ".join(f"p.{name}" for name in (*_FIELDS, "embedding"))}, p.qualifies)
        is distinct from ({", ".join(f"excluded.{name}" for name in (*_FIELDS, "embedding"))}, true)
"""

_COPY_REMOVED = """
    insert into iccm.phase4_rejections as r
        (conversation_id, stage, day, reason, detail, duplicate_of, similarity)
    select n.id, 'dedup', n.day, 'near_duplicate',
        'similarity ' || to_char(n.similarity, 'FM0.000000') || ' to conversation ' || n.duplicate_of,
        n.duplicate_of, n.similarity
    from unnest(
        cast(:ids as bigint[]), cast(:days as date[]), cast(:of as bigint[]), cast(:similarities as float8[])
    ) as n (id, day, duplicate_of, similarity)
    on conflict (conversation_id, stage) do update set day = excluded.day, reason = excluded.reason,
        detail = excluded.detail, duplicate_of = excluded.duplicate_of, similarity = excluded.similarity
    where (r.day, r.reason, r.detail, r.duplicate_of, r.similarity) is distinct from
        (excluded.day, excluded.reason, excluded.detail, excluded.duplicate_of, excluded.similarity)
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

"""``training_pool``: one greedy deduplication over the filtered rows of the materialized days (P1-P4).

The pool is a function of three things only: which days are materialized, their filtered rows, and which rows
are pinned. The order in which days are materialized, and how they are grouped into runs, has no effect. Every
run rebuilds the pool from the earliest day that is requested or whose inputs have changed; earlier days
are retained as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.curation.embeddings import TextEmbedder, Vectors, embed_missing, load_vectors
from iccm_assets.curation.greedy_dedup import DedupResult, EmbeddedRows, RemovedDuplicate, greedy_dedup
from iccm_assets.curation.opposites import find_example_differences
from iccm_assets.curation.text_vectors import TextVectors
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import EMBEDDING_DIMENSIONS
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


@dataclass(frozen=True)
class _Row:
    """The columns of a filtered or pinned row that a rebuild uses."""

    conversation_id: int
    day: date
    quality_score: float
    content_sha256: str


class _PoolRebuild:
    """One rebuild, inside its transaction."""

    def __init__(self, conn: Connection, days: Sequence[date], threshold: float, digest: str) -> None:
        self._conn = conn
        self._requested = sorted(set(days))
        self._threshold = threshold
        self._digest = digest

    def run(self, embedded: int) -> PoolReport:
        # Erased content leaves the pool in any case, pinned or not (V2).
        changed = self._change(_DELETE_ERASED)
        stored = dict(self._query("select day, fingerprint from iccm.pool_days"))
        materialized = sorted({*stored, *self._requested})
        pinned = [_Row(*row) for row in self._query(_PINNED)]
        rows = [_Row(*row) for row in self._query(_FILTERED, days=materialized)]
        fingerprints = self._fingerprints(materialized, pinned, rows)
        stale = [day for day in materialized if stored.get(day) != fingerprints[day]]
        start = min([*self._requested, *stale], default=None)
        rebuilt = [day for day in materialized if start is not None and day >= start]
        if start is not None:
            result = self._deduplicate(start, pinned, rows)
            changed += self._write_kept(start, result.kept)
            changed += self._write_removed(start, rows, result.removed)
            self._change(_RECORD_DAYS, days=rebuilt, fingerprints=[fingerprints[day] for day in rebuilt])
        changed += self._change(_UPDATE_QUALIFIES)
        [(kept, removed, size)] = self._query(_TOTALS, days=self._requested)
        return PoolReport(
            rows=sum(row.day in self._requested for row in rows),
            kept=kept,
            removed=removed,
            embedded=embedded,
            rebuilt_days=len(rebuilt),
            changed_rows=changed,
            pool_size=size,
        )

    def _query(self, sql: str, **values: Any) -> list[Any]:
        return list(self._conn.execute(text(sql), values).tuples())

    def _change(self, sql: str, **values: Any) -> int:
        return self._conn.execute(text(sql), values).rowcount

    def _fingerprints(self, days: list[date], pinned: list[_Row], rows: list[_Row]) -> dict[date, str]:
        """Return per day a digest of everything its decisions depend on, except earlier days."""
        keys: dict[date, list[tuple[int, str]]] = {day: [] for day in days}
        for row in rows:
            keys[row.day].append((row.conversation_id, row.content_sha256))
        pinned_keys = [(row.conversation_id, row.content_sha256) for row in pinned]
        common = repr((_RULE, self._digest, self._threshold, pinned_keys))
        return {day: hashlib.sha256(repr((common, keys[day])).encode()).hexdigest()[:32] for day in days}

    def _deduplicate(self, start: date, pinned: list[_Row], rows: list[_Row]) -> DedupResult[int]:
        """Deduplicate the rows from ``start`` on against pinned rows and the pool before ``start``."""
        in_pool = {row[0] for row in self._query("select conversation_id from iccm.phase4_training_data")}
        retained = [*pinned, *(row for row in rows if row.day < start and row.conversation_id in in_pool)]
        new = [row for row in rows if row.day >= start]
        hashes = {row.content_sha256 for row in (*retained, *new)}
        vectors = load_vectors(self._conn, hashes, self._digest)
        return greedy_dedup(_with_vectors(new, vectors), _with_vectors(retained, vectors), self._threshold)

    def _write_kept(self, start: date, kept: list[int]) -> int:
        deleted = self._change(_DELETE_NOT_KEPT, start=start, kept=kept)
        return deleted + self._change(_COPY_KEPT, kept=kept, embedder=self._digest)

    def _write_removed(self, start: date, rows: list[_Row], removed: list[RemovedDuplicate[int]]) -> int:
        days = {row.conversation_id: row.day for row in rows}
        ids = [duplicate.id for duplicate in removed]
        originals = [duplicate.duplicate_of for duplicate in removed]
        deleted = self._change(_DELETE_NOT_REMOVED, start=start, removed=ids)
        return deleted + self._change(
            _COPY_REMOVED,
            ids=ids,
            days=[days[id_] for id_ in ids],
            originals=originals,
            similarities=[duplicate.similarity for duplicate in removed],
            differences=self._find_differences(ids, originals),
        )

    def _find_differences(self, ids: list[int], originals: list[int]) -> list[str | None]:
        """Return how each removed row differs from the kept one, comma-separated; None if it does not."""
        pairs = self._query(_PAIRS, ids=ids, originals=originals)
        return [",".join(find_example_differences(*pair)) or None for pair in pairs]


def _with_vectors(rows: Sequence[_Row], vectors: dict[str, Vectors]) -> EmbeddedRows[int]:
    stacked = TextVectors.stack([vectors[row.content_sha256] for row in rows], EMBEDDING_DIMENSIONS)
    return EmbeddedRows([row.conversation_id for row in rows], stacked.matrix, stacked.counts)


_DELETE_ERASED = """
    delete from iccm.phase4_training_data p using iccm.conversations c
    where c.id = p.conversation_id and c.erased_at is not null
"""

_PINNED = """
    select conversation_id, day, quality_score, content_sha256
    from iccm.phase4_training_data where pinned order by day, conversation_id
"""

# In the order of deduplication, without pinned rows.
_FILTERED = """
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

"""The rows of the training pool as the database has them: their order, their decisions, their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, text

from iccm_assets.curation.duplicate_search import BestMatches, OrderedTexts
from iccm_assets.curation.text_vectors import Positions, TextVectors
from iccm_assets.db.tables import EMBEDDING_DIMENSIONS
from iccm_assets.errors import DatabaseError

_BLOCK_ROWS = 4096
_COPY_HEADER_BYTES = 19
_COPY_TRAILER = b"\xff\xff"
# COPY's binary format: the number of fields, then each field with its length before it.
_COPY_ROW = np.dtype(
    [
        ("n_fields", ">i2"),
        ("id_length", ">i4"),
        ("id", ">i8"),
        ("vector_length", ">i4"),
        ("dimensions", ">i2"),
        ("unused", ">i2"),
        ("vector", ">f4", (EMBEDDING_DIMENSIONS,)),
    ]
)


@dataclass(frozen=True)
class PoolRows:
    """Pinned rows, kept rows of days before a start, then all other rows from the start on; in order.

    ``days`` are those of the rows from the start on, the last ones. ``decisions`` has the index of the
    original of a removed row, none for a kept one; where the database has no decision, ``is_decided`` is
    False.
    """

    ids: Positions
    n_pinned: int
    days: Sequence[date]
    decisions: BestMatches
    is_decided: npt.NDArray[np.bool_]

    @property
    def n_earlier(self) -> int:
        """Number of rows before the start; pinned ones count as such."""
        return len(self.ids) - len(self.days)


def load_pool_rows(conn: Connection, days: Sequence[date], start: date) -> PoolRows:
    """Load the rows of the materialized ``days``; removed rows before ``start`` are omitted."""
    values = {"days": list(days), "start": start}
    pinned = conn.execute(text(_PINNED_IDS)).scalars().all()
    earlier = conn.execute(text(_EARLIER_IDS), values).scalars().all()
    later = conn.execute(text(_LATER_ROWS), values).tuples().all()
    ids = np.array([*pinned, *earlier, *(row[0] for row in later)], dtype=np.intp)
    rows = PoolRows(
        ids, len(pinned), [row[1] for row in later], BestMatches(len(ids)), np.ones(len(ids), dtype=bool)
    )
    index = {int(id_): position for position, id_ in enumerate(ids)}
    decisions, is_decided = rows.decisions, rows.is_decided
    for position, (_, _, is_kept, original, similarity) in enumerate(later, start=rows.n_earlier):
        if not is_kept:
            kept = len(ids) if original is None else index.get(original, len(ids))
            # A row that came or went, or whose original did, has no decision.
            if kept < position and is_decided[kept] and decisions.positions[kept] < 0:
                decisions.positions[position], decisions.similarities[position] = kept, similarity
            else:
                is_decided[position] = False
    return rows


def load_texts(
    conn: Connection, rows: PoolRows, days: Sequence[date], start: date, digest: str
) -> OrderedTexts:
    """Load the vectors of the rows, in blocks, into one matrix."""
    values = {"days": list(days), "start": start, "digest": digest}
    order = np.argsort(rows.ids)
    in_order = rows.ids[order]
    counts = np.ones(len(rows.ids), dtype=np.intp)
    long = conn.execute(text(_FURTHER_WINDOWS), values).tuples().all()
    further = {
        int(order[np.searchsorted(in_order, id_)]): np.frombuffer(windows, dtype="<f4").reshape(
            -1, EMBEDDING_DIMENSIONS
        )
        for id_, windows in long
    }
    for row, windows in further.items():
        counts[row] += len(windows)
    texts = TextVectors(np.empty((counts.sum(), EMBEDDING_DIMENSIONS), dtype=np.float32), counts)
    for row, windows in further.items():
        texts.windows(row)[1:] = windows
    firsts = texts.starts[:-1][order]
    n_loaded = 0
    for block in _copy_blocks(conn, values):
        if (block["n_fields"] != 2).any() or (block["dimensions"] != EMBEDDING_DIMENSIONS).any():
            raise DatabaseError("iccm.embeddings has a vector of other dimensions")
        texts.matrix[firsts[np.searchsorted(in_order, block["id"])]] = block["vector"]
        n_loaded += len(block)
    if n_loaded != len(rows.ids):
        raise DatabaseError(f"{len(rows.ids)} rows of the training pool have {n_loaded} vectors")
    return OrderedTexts.of(texts)


def _copy_blocks(conn: Connection, values: dict[str, Any]) -> Any:
    """Yield the ids and first windows of the rows, some thousand at a time."""
    driver = conn.connection.driver_connection
    assert driver is not None
    buffer, size = bytearray(), _BLOCK_ROWS * _COPY_ROW.itemsize
    skipped = _COPY_HEADER_BYTES
    with driver.cursor() as cursor, cursor.copy(_COPY_VECTORS, values) as copy:
        while data := copy.read():
            buffer += data
            if len(buffer) >= size + skipped:
                yield np.frombuffer(bytes(buffer[skipped : skipped + size]), dtype=_COPY_ROW)
                del buffer[: skipped + size]
                skipped = 0
    yield np.frombuffer(bytes(buffer[skipped:].removesuffix(_COPY_TRAILER)), dtype=_COPY_ROW)


_PINNED_IDS = """
    select conversation_id from iccm.phase4_training_data where pinned order by day, conversation_id
"""

# The rows that are deduplicated; pinned and erased ones are not.
_IS_ROW = """
    f.day = any({days})
    and not exists (
        select from iccm.phase4_training_data x where x.conversation_id = f.conversation_id and x.pinned
    )
    and not exists (
        select from iccm.conversations c where c.id = f.conversation_id and c.erased_at is not null
    )
"""
IS_ROW = _IS_ROW.format(days=":days")
ROW_ORDER = "f.day, f.quality_score desc, f.conversation_id"

_EARLIER_IDS = f"""
    select f.conversation_id from iccm.filtered_conversations f
    join iccm.phase4_training_data p on p.conversation_id = f.conversation_id
    where {IS_ROW} and f.day < :start order by {ROW_ORDER}
"""

_LATER_ROWS = f"""
    select f.conversation_id, f.day,
        p.conversation_id is not null and r.conversation_id is null as is_kept,
        case when p.conversation_id is null then r.duplicate_of end as original, r.similarity
    from iccm.filtered_conversations f
    left join iccm.phase4_training_data p on p.conversation_id = f.conversation_id
        and p.day = f.day and p.content_sha256 = f.content_sha256
    left join iccm.phase4_rejections r on r.conversation_id = f.conversation_id
        and r.stage = 'dedup' and r.day = f.day
    where {IS_ROW} and f.day >= :start order by {ROW_ORDER}
"""

_HASHES = """
    select f.conversation_id, f.content_sha256 from iccm.filtered_conversations f
    where {is_row} and (f.day >= {start} or exists (
        select from iccm.phase4_training_data p where p.conversation_id = f.conversation_id
    ))
    union all
    select p.conversation_id, p.content_sha256 from iccm.phase4_training_data p where p.pinned
"""

_FURTHER_WINDOWS = f"""
    select n.conversation_id, e.further_windows
    from ({_HASHES.format(is_row=IS_ROW, start=":start")}) n
    join iccm.embeddings e on e.content_sha256 = n.content_sha256 and e.embedder = :digest
    where octet_length(e.further_windows) > 0
"""

_COPY_VECTORS = f"""
    copy (
        select n.conversation_id, e.embedding
        from ({_HASHES.format(is_row=_IS_ROW.format(days="%(days)s"), start="%(start)s")}) n
        join iccm.embeddings e on e.content_sha256 = n.content_sha256 and e.embedder = %(digest)s
    ) to stdout (format binary)
"""

"""Conversations, filtered rows and embedders without weights, for the tests of curation."""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import sqlalchemy as sa

from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.greedy_dedup import DedupResult, EmbeddedRows, RemovedDuplicate
from iccm_assets.db import tables as t
from iccm_assets.models.text_division import DividedText

FIRST_DAY = date(2026, 3, 2)
SUITE = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 2}]}
SESSIONS = [f"session-{n}" for n in range(400) if not is_in_holdout(f"session-{n}", 0.15)]
HELD_OUT = next(f"session-{n}" for n in range(400) if is_in_holdout(f"session-{n}", 0.15))


def day(number: int) -> date:
    return FIRST_DAY + timedelta(days=number)


class HashEmbedder:
    """Embeds a text as the direction of its first word, disturbed by the whole; records what it encodes.

    A text with ``|`` is long: its units are what stands between.
    """

    def __init__(self, digest: str = "hash-1", disturbance: float = 0.33) -> None:
        self.digest = digest
        self.encoded: list[str] = []
        self._disturbance = disturbance

    def encode(self, texts):
        self.encoded += texts
        rows = [
            _direction(text.split(" ")[0]) + self._disturbance * _direction(text + self.digest)
            for text in texts
        ]
        stacked = np.stack(rows)
        return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)

    def divide(self, text, *, only_long=True):
        if "|" not in text:
            return DividedText.whole(text, len(text.split()))
        starts = [0, *(index + 1 for index, character in enumerate(text) if character == "|"), len(text)]
        return DividedText(text, tuple(starts), (40,) * (len(starts) - 1))


def _direction(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=384)
    return vector / np.linalg.norm(vector)


def add_conversation(engine, session_id, on, *, number=None):
    """Insert a conversation without content; return its id."""
    with engine.begin() as conn:
        values = {
            "session_id": session_id,
            "timestamp": datetime(on.year, on.month, on.day, 12, tzinfo=UTC),
            "origin": "simulated",
            **({} if number is None else {"id": number}),
        }
        return conn.execute(
            t.conversations.insert().values(values).returning(t.conversations.c.id)
        ).scalar_one()


def add_filtered(engine, on, rows):
    """Insert filtered rows (conversation_id, requirements, quality_score) and their conversations."""
    for number, text, quality in rows:
        add_conversation(engine, f"s{number}", on, number=number)
        put_filtered(engine, on, number, text, quality)


def put_filtered(engine, on, number, text, quality):
    with engine.begin() as conn:
        conn.execute(
            t.filtered_conversations.delete().where(t.filtered_conversations.c.conversation_id == number)
        )
        conn.execute(
            t.filtered_conversations.insert().values(
                conversation_id=number,
                day=on,
                session_id=f"s{number}",
                source_code=f"source {number}",
                requirements=text,
                test_pass_rate=quality,
                implementation_variance=0.0,
                quality_score=quality,
                content_sha256=content_sha256(text),
                evidence="cases",
                test_suite_origin="attached",
            )
        )


def dump_tables(engine, *tables):
    """Return all rows of tables as text, sorted."""
    with engine.connect() as conn:
        return [
            sorted(str(row[0]) for row in conn.execute(sa.text(f"select x::text from {table.fullname} x")))
            for table in tables
        ]


def write_canary_set(path, items):
    suite = {"kind": "cases", "cases": [{"call": "f", "args": [], "expect": 1}]}
    lines = [json.dumps({"slice": "x", "test_suite": suite, **item}) for item in items]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def smallest_match(text: np.ndarray, other: np.ndarray) -> float:
    """The similarity of two texts by the definition, one pair of windows at a time."""
    pairs = [[round(float(np.dot(a, b)), 6) for b in other] for a in text]
    return min(*(max(row) for row in pairs), *(max(column) for column in zip(*pairs, strict=True)))


def _unit(vector: np.ndarray) -> np.ndarray:
    exact = np.array([float(x) for x in vector])
    return exact / np.linalg.norm(exact)


def brute_force(rows: EmbeddedRows, existing: EmbeddedRows, threshold: float) -> DedupResult:
    """Deduplicate by the definition (P2): one pair at a time, in Python."""
    kept = list(zip(existing.ids, _windows(existing), strict=True))
    result = DedupResult([], [])
    for id_, windows in zip(rows.ids, _windows(rows), strict=True):
        matches = [(smallest_match(windows, other), other_id) for other_id, other in kept]
        best = max(matches, key=lambda match: match[0], default=None)
        if best is not None and best[0] >= threshold:
            result.removed.append(RemovedDuplicate(id_, best[1], best[0]))
        else:
            result.kept.append(id_)
            kept.append((id_, windows))
    return result


def _windows(rows: EmbeddedRows) -> list[np.ndarray]:
    """The windows of each row as unit vectors."""
    units = np.array([_unit(vector) for vector in rows.vectors])
    counts = np.ones(len(units), dtype=int) if rows.counts is None else rows.counts
    return np.split(units, np.cumsum(counts)[:-1]) if len(rows.ids) else []

"""Small worlds for the tests of curation: conversations, filtered rows and embedders without weights."""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import sqlalchemy as sa

from iccm_assets.curation.embeddings import content_sha256
from iccm_assets.db import tables as t

FIRST_DAY = date(2026, 3, 2)


def day(number: int) -> date:
    return FIRST_DAY + timedelta(days=number)


class HashEmbedder:
    """A text's vector: the direction of its first word, disturbed by the whole; notes what it encodes."""

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


def _direction(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=384)
    return vector / np.linalg.norm(vector)


def add_conversation(engine, session_id, on, *, number=None):
    """A bare conversation of a day; returns its id."""
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
    """Filtered rows of a day, [(conversation_id, requirements, quality_score)], and their conversations."""
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
            )
        )


def everything(engine, *tables):
    """All rows of tables, in a comparable order, vectors as text."""
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

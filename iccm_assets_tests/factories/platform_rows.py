"""Rows of a small platform, inserted directly into the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import sqlalchemy as sa

from iccm_assets.db import tables as t

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def conversation(
    conn: sa.Connection,
    number: int,
    *,
    user: str | None = None,
    token: str | None = None,
    at: datetime | None = None,
    quality: float = 0.9,
    failed_first: bool = False,
    pool: bool = True,
    filtered: bool = True,
    pinned: bool = False,
    erased: bool = False,
) -> int:
    """Insert a conversation, with its filtered and pool rows as requested."""
    timestamp = at or NOW - timedelta(days=1)
    values = {
        "id": number,
        "session_id": f"s{number}",
        "user_id": user,
        "token_name": token,
        "timestamp": timestamp,
        "origin": "simulated",
    }
    conn.execute(t.conversations.insert().values(**values, erased_at=NOW if erased else None))
    example = {
        "conversation_id": number,
        "day": timestamp.date(),
        "session_id": f"s{number}",
        "user_id": user,
        "source_code": f"def f{number}(): ...",
        "requirements": f"f{number} shall return.",
        "test_pass_rate": 1.0,
        "implementation_variance": 0.0,
        "quality_score": quality,
        "failed_first": failed_first,
        "content_sha256": f"{number:064d}",
        "evidence": "cases",
        "test_suite_origin": "attached",
    }
    if filtered:
        conn.execute(t.filtered_conversations.insert().values(**example))
    if pool:
        vector = np.zeros(384, dtype=np.float32)
        conn.execute(t.phase4_training_data.insert().values(**example, embedding=vector, pinned=pinned))
    return number


def version(conn: sa.Connection, name: str, parent: str | None = None, status: str = "candidate") -> str:
    """Insert a model version."""
    conn.execute(
        t.model_versions.insert().values(
            version=name,
            parent_version=parent,
            status=status,
            digest=f"digest-{name}",
            path=f"/models/{name}",
        )
    )
    return name


def training_run(
    conn: sa.Connection,
    number: int,
    candidate: str | None = None,
    *,
    examples: dict[int, str] | None = None,
    trained_at: datetime | None = None,
    status: str = "gate_passed",
    **columns: object,
) -> int:
    """Insert a training run with the conversations it used, by role."""
    values = {"id": number, "trigger": "manual", "trigger_key": f"manual:{number}", "status": status}
    conn.execute(
        t.phase4_training_runs.insert().values(
            **values, candidate_version=candidate, training_timestamp=trained_at, **columns
        )
    )
    for conversation_id, role in (examples or {}).items():
        conn.execute(
            t.training_run_examples.insert().values(
                training_run_id=number, conversation_id=conversation_id, role=role
            )
        )
    return number

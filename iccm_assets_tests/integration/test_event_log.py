"""Dagster's event log holds ids and numbers, never conversation text (V2)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets_tests.factories.demo_platforms import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("loop")]

# Shorter lines (`return x`, `else:`) do not identify a conversation.
MIN_LENGTH = 24


def extract_lines(texts: list[str]) -> set[str]:
    """Return the lines that are long enough to identify a text, plain and JSON-escaped."""
    lines = {line.strip() for text in texts for line in text.splitlines() if len(line.strip()) >= MIN_LENGTH}
    return lines | {json.dumps(line)[1:-1] for line in lines}


def conversation_lines(engine: sa.Engine) -> set[str]:
    """Return the lines of messages, requirements, source code and reconstructions."""
    with engine.connect() as conn:
        texts = conn.execute(
            sa.text(
                """
                select m ->> 'content' from iccm.conversations, jsonb_array_elements(content) as m
                union all select text from iccm.requirements
                union all select source_code from iccm.filtered_conversations
                union all select implementation_code from iccm.reconstructions
                union all select requirements from iccm.canary_results
                """
            )
        ).scalars()
        return extract_lines([text for text in texts if text])


def event_log(engine: sa.Engine) -> str:
    """Read all events, runs and asset rows of the Dagster database as one text."""
    with engine.connect() as conn:
        parts = []
        for table, column in (
            ("event_logs", "event"),
            ("runs", "run_body"),
            ("asset_keys", "last_materialization"),
        ):
            parts += conn.execute(
                sa.text(f"select {column} from {table} where {column} is not null")
            ).scalars()
    return "\n".join(parts)


def find_in(log: str, lines: set[str]) -> list[str]:
    return sorted(line for line in lines if line in log)


def test_no_line_of_a_conversation_is_in_dagsters_database(platform: Platform) -> None:
    url = platform.json("env")["DAGSTER_PG_URL"]
    dagster, engine = create_engine_for(url), platform.engine
    try:
        lines, log = conversation_lines(engine), event_log(dagster)
    finally:
        dagster.dispose()
        engine.dispose()
    assert len(lines) > 200 and len(log) > 100_000
    # The metadata of a day is there, which shows that the search works.
    assert find_in(log, {"removed_as_duplicates", "training_conversations"}) == [
        "removed_as_duplicates",
        "training_conversations",
    ]
    assert find_in(log, lines) == []

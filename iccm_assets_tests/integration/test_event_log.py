"""Dagster's event log holds ids and numbers, never conversation text (V2)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets_tests.integration.conftest import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("loop")]

# Shorter lines (`return x`, `else:`) say nothing about whose they are.
SHORTEST = 24


def lines_of(texts: list[str]) -> set[str]:
    """The lines of texts that are long enough to be told from others, as written and as in JSON."""
    lines = {line.strip() for text in texts for line in text.splitlines() if len(line.strip()) >= SHORTEST}
    return lines | {json.dumps(line)[1:-1] for line in lines}


def conversation_lines(engine: sa.Engine) -> set[str]:
    """What people and models said, what they accepted, and the code it is about."""
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
        return lines_of([text for text in texts if text])


def event_log(engine: sa.Engine) -> str:
    """All events, runs and asset rows of the Dagster database, as one text."""
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


def found_in(log: str, lines: set[str]) -> list[str]:
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
    # What is told of a day is there, and a line that is there would be found.
    assert found_in(log, {"removed_as_duplicates", "training_conversations"}) == [
        "removed_as_duplicates",
        "training_conversations",
    ]
    assert found_in(log, lines) == []

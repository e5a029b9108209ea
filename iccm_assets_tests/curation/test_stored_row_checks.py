"""The checks of filtered rows and the training pool, on rows of a database (U4, P2, F3, F4)."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from iccm_assets.curation import checks
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, set_clock
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import conversation
from iccm_assets_tests.factories.training_pools import (
    FIRST_DAY,
    HELD_OUT,
    SESSIONS,
    add_conversation,
    write_canary_set,
)

AXES = np.eye(384, dtype=np.float32)
CANARY = {
    "item": "c1",
    "source_code": "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n"
    "    return result\n",
    "requirements": "The function shall return the sum of all prices of the order.",
}
OTHER = {
    **CANARY,
    "item": "c2",
    "source_code": "x = 1\n",
    "requirements": "It shall close the valve at noon.",
}


@pytest.fixture
def curated(settings: Settings, tmp_path) -> Settings:
    """Settings with a canary set of two items."""
    return settings.model_copy(
        update={"canary_set": write_canary_set(tmp_path / "canary.jsonl", [CANARY, OTHER])}
    )


def execute(engine: sa.Engine, sql: str, **values: object) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text(sql), values)


def add_examples(engine: sa.Engine, *numbers: int, **changes: object) -> None:
    with engine.begin() as conn:
        for number in numbers:
            conversation(conn, number, **changes)


def put_vector(engine: sa.Engine, number: int, vector: np.ndarray, further: np.ndarray | None = None) -> None:
    rows = t.phase4_training_data
    windows = b"" if further is None else further.astype("<f4").tobytes()
    with engine.begin() as conn:
        conn.execute(
            rows.update()
            .where(rows.c.conversation_id == number)
            .values(embedding=vector, further_windows=windows)
        )


def add_filtered_day(conn: sa.Connection, day: date, kept: int) -> None:
    conn.execute(t.filtered_days.insert().values(day=day, filtered_at=now(conn), kept=kept, rejected=0))


@pytest.mark.parametrize("table", ["filtered_conversations", "phase4_training_data"])
def test_rows_that_may_not_be_learned_from_are_named_by_their_problem(engine, curated, table) -> None:
    add_examples(engine, 1, 2, 3, 4)
    execute(engine, "update iccm.conversations set erased_at = iccm.now() where id = 3")
    for number, session in {1: SESSIONS[1], 2: HELD_OUT, 3: SESSIONS[3], 4: SESSIONS[4]}.items():
        where = f"update iccm.{table} set session_id = :session where conversation_id = :id"
        execute(engine, where, session=session, id=number)
    copied = f"update iccm.{table} set source_code = :code where conversation_id = 4"
    execute(engine, copied, code=CANARY["source_code"])
    with engine.connect() as conn:
        assert checks.load_contamination(conn, table, curated) == (
            4,
            {"held_out": [2], "erased": [3], "overlapping_canary_set": [4]},
        )
        result = checks.no_contamination(conn, curated)
    assert not result.passed and "3" in result.sample_ids
    assert result.metrics["rows_checked"] == 4


def test_only_the_newest_rows_of_a_large_pool_are_checked(engine, curated) -> None:
    execute(
        engine,
        """insert into iccm.conversations (id, session_id, "timestamp", origin)
           select n, 's' || n, '2026-03-02 12:00+00', 'simulated' from generate_series(1, 5001) n""",
    )
    columns = """conversation_id, day, session_id, source_code, requirements, test_pass_rate,
        implementation_variance, quality_score, content_sha256, evidence, test_suite_origin"""
    values = """n, date '2026-03-02', 's' || n, 'a = 1', 'It shall be 1.', 1, 0, 1, 'h' || n, 'cases',
        'attached'"""
    execute(
        engine,
        f"""insert into iccm.phase4_training_data ({columns}, embedding)
            select {values}, array_fill(1::real, array[384])::vector from generate_series(1, 5001) n""",
    )
    execute(
        engine,
        f"""insert into iccm.filtered_conversations ({columns})
            select {values} from generate_series(1, 2001) n""",
    )
    with engine.connect() as conn:
        pool = checks.load_pool_vectors(conn)
        n_checked, _ = checks.load_contamination(conn, "filtered_conversations", curated)
    assert (pool.pool_size, pool.ids) == (5001, list(range(5001, 1, -1)))
    assert n_checked == 2000


def test_the_vectors_of_the_pool_are_unit_vectors_of_all_windows_newest_first(engine) -> None:
    add_examples(engine, 1, pinned=True)
    add_examples(engine, 2)
    put_vector(engine, 1, 2 * AXES[0], 3 * AXES[1])
    put_vector(engine, 2, 4 * AXES[2])
    with engine.connect() as conn:
        pool = checks.load_pool_vectors(conn)
    assert (pool.ids, pool.pinned, pool.pool_size) == ([2, 1], [False, True], 2)
    assert pool.vectors.counts.tolist() == [1, 2]
    assert pool.vectors.matrix.tolist() == AXES[[2, 0, 1]].tolist()


def test_two_equal_vectors_are_duplicates_unless_a_version_was_trained_on_both(engine, curated) -> None:
    add_examples(engine, 1, 2, 3)
    for number, axis in {1: 0, 2: 0, 3: 1}.items():
        put_vector(engine, number, AXES[axis])
    with engine.connect() as conn:
        result = checks.no_duplicates(conn, curated)
    assert (result.passed, result.sample_ids) == (False, ("2~1 (1.000000)",))
    assert result.description == "1 pairs at 0.9 or above among 3 of 3 rows of the pool"
    execute(engine, "update iccm.phase4_training_data set pinned = true")
    with engine.connect() as conn:
        assert checks.no_duplicates(conn, curated).passed


def test_pool_rows_as_similar_as_duplicates_to_a_text_of_the_canary_set_are_found(engine, curated) -> None:
    with engine.connect() as conn:
        assert checks.find_similar_to_canary_set(conn, curated, "e1") == []
    add_examples(engine, 1, 2, 3)
    for number in (1, 2, 3):
        put_vector(engine, number, AXES[number])
    half_like_the_second = 3 * (0.5 * AXES[2] + 0.75**0.5 * AXES[9])
    for item, vector in ((CANARY, AXES[1]), (OTHER, half_like_the_second)):
        row = {"content_sha256": content_sha256(item["requirements"]), "embedder": "e1", "embedding": vector}
        with engine.begin() as conn:
            conn.execute(t.embeddings.insert().values(**row, further_windows=b""))
    with engine.connect() as conn:
        assert checks.find_similar_to_canary_set(conn, curated, "e1") == [1]
        assert checks.find_similar_to_canary_set(conn, curated, "another embedder") == []


def test_rows_between_the_filter_and_the_pool_are_accounted_for(engine, curated) -> None:
    add_examples(engine, 1)
    add_examples(engine, 2, 3, pool=False)
    add_examples(engine, 4, filtered=False)
    with engine.begin() as conn:
        [folded] = conn.execute(sa.select(t.filtered_conversations.c.day).distinct()).scalars()
        rejected = {"conversation_id": 2, "stage": "dedup", "day": folded, "reason": "near_duplicate"}
        conn.execute(t.phase4_rejections.insert().values(rejected))
        counts = {"kept": 2, "removed": 1, "fingerprint": "f"}
        conn.execute(t.pool_days.insert().values(day=folded, rebuilt_at=now(conn), **counts))
        for day, kept in {folded: 3, FIRST_DAY: 1, FIRST_DAY + timedelta(days=1): 0}.items():
            add_filtered_day(conn, day, kept)
    with engine.connect() as conn:
        assert checks.load_pool_counts(conn) == {
            "filtered": 3, "pool": 2, "removed": 1, "lost": [3], "stray": [4], "days": [FIRST_DAY],
        }  # fmt: skip
        result = checks.row_counts_reconcile(conn, curated)
    assert (result.passed, result.sample_ids) == (False, (str(FIRST_DAY), "3", "4"))
    assert result.description.startswith("3 filtered = 2 in the pool + 1 duplicates; 1 unaccounted for")


@pytest.fixture
def yesterday(engine) -> date:
    """The day before the platform's; its clock shows noon."""
    with engine.begin() as conn:
        time = now(conn)
        noon = time.replace(hour=12, minute=0, second=0)
        return set_clock(conn, shift=noon - time).date() - timedelta(days=1)


def test_yesterdays_conversations_have_to_be_filtered(engine, curated, yesterday) -> None:
    for day in (yesterday, yesterday + timedelta(days=1)):
        add_conversation(engine, f"s-{day}", day)
    with engine.connect() as conn:
        missing = checks.yesterday_is_materialized(conn, curated)
        assert not checks.is_filtered(conn, yesterday)
    assert not missing.passed
    assert missing.description == f"{yesterday} has 1 conversations and was not filtered"
    with engine.begin() as conn:
        add_filtered_day(conn, yesterday, 1)
    with engine.connect() as conn:
        assert checks.yesterday_is_materialized(conn, curated).passed
        assert checks.is_filtered(conn, yesterday)


def test_a_week_up_to_yesterday_is_checked_for_changes(engine, curated, yesterday) -> None:
    days = [yesterday + timedelta(days=number) for number in (-7, -6, 0, 1)]
    for day in days:
        add_conversation(engine, f"s-{day}", day)
    with engine.connect() as conn:
        result = checks.partitions_are_fresh(conn, curated)
    assert result.description == (
        f"2 of the last 7 days changed since they were filtered: {days[1]}, {days[2]}"
    )

import threading
from datetime import datetime

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from iccm_assets.curation.embeddings import parse_windows
from iccm_assets.curation.greedy_dedup import EmbeddedRows, find_duplicates
from iccm_assets.curation.text_vectors import TextVectors
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.reporting.daily_funnel import load_daily_funnels
from iccm_assets_tests.factories.training_pools import (
    HashEmbedder,
    add_conversation,
    add_filtered,
    brute_force,
    day,
    dump_tables,
    put_filtered,
)

DAYS = 30


def random_days(rng, days=DAYS, at_most=9):
    """Draw filtered rows (conversation_id, text, quality) by day; some days are empty, first words repeat."""
    numbers = iter(range(1, 10_000))
    return {
        n: [
            (
                next(numbers),
                _draw_text(rng),
                round(float(rng.uniform(0.76, 1)), 2),
            )
            for _ in range(rng.integers(0, at_most))
        ]
        for n in range(days)
    }


def _draw_text(rng):
    """Draw a short text or, rarely, a long one of two windows."""
    units = [f"{'abcdefgh'[rng.integers(8)]} {rng.integers(40)}" for _ in range(3)]
    return "|".join(["a", units[0], "b"][: rng.integers(2, 4)]) if rng.random() < 0.3 else units[0]


def fill(engine, rows_by_day):
    for n, rows in rows_by_day.items():
        add_filtered(engine, day(n), rows)


def empty_pool(engine):
    with engine.begin() as conn:
        for table in (t.phase4_training_data, t.phase4_rejections, t.pool_days):
            conn.execute(table.delete())


def load_pool(engine):
    """Return the kept rows, the removed rows with their originals, and the days."""
    with engine.connect() as conn:
        kept = conn.execute(
            sa.text("select conversation_id, day, pinned from iccm.phase4_training_data")
        ).all()
        removed = conn.execute(
            sa.text(
                "select conversation_id, day, duplicate_of, similarity "
                "from iccm.phase4_rejections where stage = 'dedup'"
            )
        ).all()
        days = conn.execute(sa.text("select day, kept, removed from iccm.pool_days")).all()
    return sorted(map(tuple, kept)), sorted(map(tuple, removed)), sorted(map(tuple, days))


def expected_pool(rows_by_day, embedder, pinned=()):
    """Deduplicate all days at once by brute force; ``pinned``: conversation ids."""
    ordered = [
        (id_, n, text)
        for n in sorted(rows_by_day)
        for id_, text, _ in sorted(rows_by_day[n], key=lambda row: (-row[2], row[0]))
    ]
    first = sorted([row for row in ordered if row[0] in pinned], key=lambda row: (row[1], row[0]))
    rest = [row for row in ordered if row[0] not in pinned]

    def rows(chosen):
        windows = [embedder.encode(embedder.divide(row[2]).windows()) for row in chosen]
        stacked = TextVectors.stack(windows, 384)
        return EmbeddedRows([row[0] for row in chosen], stacked.matrix, stacked.counts)

    result = brute_force(rows(rest), rows(first), 0.9)
    days = {row[0]: day(row[1]) for row in ordered}
    kept = sorted((id_, days[id_], id_ in pinned) for id_ in [*result.kept, *(row[0] for row in first)])
    removed = sorted(
        (duplicate.id, days[duplicate.id], duplicate.duplicate_of, duplicate.similarity)
        for duplicate in result.removed
    )
    return kept, removed


@pytest.fixture(scope="module")
def rows_by_day():
    return random_days(np.random.default_rng(11))


@pytest.fixture
def filled(engine, rows_by_day):
    fill(engine, rows_by_day)
    return engine


def test_thirty_days_at_once_equal_the_definition(filled, settings, rows_by_day):
    report = rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, HashEmbedder())
    kept, removed, days = load_pool(filled)
    assert (kept, removed) == expected_pool(rows_by_day, HashEmbedder())
    assert len(removed) > 20 and len(kept) > 20
    assert [row[0] for row in days] == [day(n) for n in range(DAYS)]
    assert (
        (report.kept, report.removed)
        == (len(kept), len(removed))
        == (report.pool_size, report.rows - report.kept)
    )


def test_any_order_and_grouping_of_days_gives_the_same_pool(filled, settings):
    """30 days in one run, as 30 runs, and 12 random orders and groupings."""
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    expected = load_pool(filled)
    rng = np.random.default_rng(5)
    for attempt in range(14):
        empty_pool(filled)
        order = list(range(DAYS)) if attempt == 0 else [int(n) for n in rng.permutation(DAYS)]
        size = 1 if attempt < 2 else int(rng.integers(1, 12))
        for start in range(0, DAYS, size):
            rebuild_pool(filled, [day(n) for n in order[start : start + size]], settings, embedder)
        assert load_pool(filled) == expected
    assert len(embedder.encoded) == len(set(embedder.encoded))


@hypothesis_settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_every_intermediate_pool_equals_the_definition_for_the_days_so_far(engine, settings, seed, data):
    with engine.begin() as conn:
        conn.execute(sa.text("truncate iccm.conversations, iccm.embeddings, iccm.pool_days cascade"))
    rows_by_day = random_days(np.random.default_rng(seed), days=6, at_most=6)
    fill(engine, rows_by_day)
    embedder, materialized = HashEmbedder(), set()
    for group in data.draw(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=4)):
        rebuild_pool(engine, [day(n) for n in group], settings, embedder)
        materialized |= group
        so_far = {n: rows for n, rows in rows_by_day.items() if n in materialized}
        assert load_pool(engine)[:2] == expected_pool(so_far, HashEmbedder())


def test_running_any_day_again_writes_nothing(filled, settings):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    tables = (t.phase4_training_data, t.phase4_rejections, t.pool_days, t.embeddings)
    before, encoded = dump_tables(filled, *tables), len(embedder.encoded)
    for n in (0, 13, 29):
        report = rebuild_pool(filled, [day(n)], settings, embedder)
        assert report.changed_rows == 0 and report.embedded == 0
    with filled.connect() as conn:
        written = conn.execute(
            sa.text("select count(distinct xmin::text) from iccm.phase4_training_data")
        ).scalar_one()
    assert written == 1
    assert dump_tables(filled, *tables) == before
    assert len(embedder.encoded) == encoded


def test_a_late_conversation_changes_only_the_rows_it_affects(filled, settings, rows_by_day):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    late = (9001, rows_by_day[20][0][1] if rows_by_day[20] else "a 1", 1.0)
    add_filtered(filled, day(3), [late])
    rebuild_pool(filled, [day(3)], settings, embedder)
    changed = {**rows_by_day, 3: [*rows_by_day[3], late]}
    assert load_pool(filled)[:2] == expected_pool(changed, HashEmbedder())
    assert embedder.encoded.count(late[1]) == 1


def test_a_changed_day_is_rebuilt_even_if_another_day_is_requested(filled, settings, rows_by_day):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    late = (9001, "a brand new text", 1.0)
    add_filtered(filled, day(3), [late])
    rebuild_pool(filled, [day(25)], settings, embedder)
    assert load_pool(filled)[:2] == expected_pool({**rows_by_day, 3: [*rows_by_day[3], late]}, HashEmbedder())


def test_a_conversation_no_longer_filtered_or_erased_leaves_the_pool(engine, settings):
    embedder = HashEmbedder(disturbance=0.01)
    add_filtered(engine, day(0), [(1, "a one", 0.9), (2, "b one", 0.9)])
    add_filtered(engine, day(1), [(3, "a two", 0.9)])
    rebuild_pool(engine, [day(0), day(1)], settings, embedder)
    assert [row[0] for row in load_pool(engine)[0]] == [1, 2]
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.filtered_conversations where conversation_id = 1"))
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id = 2"))
    rebuild_pool(engine, [day(1)], settings, embedder)
    kept, removed, days = load_pool(engine)
    assert [row[0] for row in kept] == [3] and removed == []
    assert days == [(day(0), 0, 0), (day(1), 1, 0)]


def test_an_empty_day_is_recorded_and_an_unmaterialized_day_is_ignored(engine, settings):
    add_filtered(engine, day(1), [(1, "a one", 0.9)])
    report = rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    assert (report.rows, report.kept, report.pool_size) == (0, 0, 0)
    assert load_pool(engine) == ([], [], [(day(0), 0, 0)])


def test_identical_and_empty_texts_are_handled_like_any_other(engine, settings):
    add_filtered(
        engine, day(0), [(1, "", 0.8), (2, "", 0.9), (3, "same", 0.9), (4, "same", 0.9), (5, "é\n🙂", 0.9)]
    )
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    kept, removed, _ = load_pool(engine)
    assert [row[0] for row in kept] == [2, 3, 5]
    assert removed == [(1, day(0), 2, 1.0), (4, day(0), 3, 1.0)]


def test_a_row_of_the_pool_has_all_its_windows(engine, settings):
    text = "a start|b middle|an end"
    add_filtered(engine, day(0), [(1, text, 0.9), (2, "a start|c middle|an end", 0.8), (3, "short", 0.9)])
    rebuild_pool(engine, [day(0)], settings, HashEmbedder(disturbance=0.01))
    query = """
        select vector_send(embedding), further_windows from iccm.phase4_training_data order by conversation_id
    """
    with engine.connect() as conn:
        first, second, short = (parse_windows(*row) for row in conn.execute(sa.text(query)))
    embedder = HashEmbedder(disturbance=0.01)
    assert np.array_equal(first, embedder.encode(embedder.divide(text).windows()))
    assert (len(second), len(short)) == (2, 1)


def test_removed_rows_of_another_program_with_other_numbers_are_counted_apart(engine, settings):
    texts = ["a shall return 3", "a shall return 4", "a must return 3", "a shall not return 3"]
    add_filtered(engine, day(0), [(number, text, 0.9) for number, text in enumerate(texts, 1)])
    rebuild_pool(engine, [day(0)], settings, HashEmbedder(disturbance=0.01))
    query = "select conversation_id, differences from iccm.phase4_rejections order by 1"
    with engine.connect() as conn:
        differences = dict(conn.execute(sa.text(query)).tuples().all())
        [funnel] = load_daily_funnels(conn, [day(0)]).values()
    assert differences == {2: ["numbers"], 3: None, 4: ["negations"]}
    assert (funnel.removed, funnel.differing) == (3, 2)
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.filtered_conversations set source_code = 'the same'"))
    rebuild_pool(engine, [day(0)], settings, HashEmbedder(disturbance=0.01))
    with engine.connect() as conn:
        assert dict(conn.execute(sa.text(query)).tuples().all()) == {2: None, 3: None, 4: None}


def pin(engine, *ids):
    with engine.begin() as conn:
        conn.execute(
            t.phase4_training_data.update()
            .where(t.phase4_training_data.c.conversation_id.in_(ids))
            .values(pinned=True)
        )


def test_pinned_rows_come_first_and_the_pool_still_equals_the_definition(filled, settings, rows_by_day):
    embedder = HashEmbedder()
    all_days = [day(n) for n in range(DAYS)]
    rebuild_pool(filled, all_days, settings, embedder)
    pinned = [row[0] for row in load_pool(filled)[0]][5::3]
    pin(filled, *pinned)
    twin = (
        9001,
        next(text for rows in rows_by_day.values() for id_, text, _ in rows if id_ == pinned[-1]) + " ",
        1.0,
    )
    add_filtered(filled, day(0), [twin])
    rebuild_pool(filled, [day(29)], settings, embedder)
    assert load_pool(filled)[:2] == expected_pool(
        {**rows_by_day, 0: [*rows_by_day[0], twin]}, HashEmbedder(), set(pinned)
    )


def test_a_pinned_row_that_no_longer_qualifies_stays_but_is_flagged(engine, settings):
    embedder = HashEmbedder(disturbance=0.01)
    add_filtered(engine, day(0), [(1, "a one", 0.9), (2, "b one", 0.9)])
    rebuild_pool(engine, [day(0)], settings, embedder)
    pin(engine, 1, 2)
    put_filtered(engine, day(0), 2, "b one, corrected", 0.95)
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.filtered_conversations where conversation_id = 1"))
    add_filtered(engine, day(1), [(3, "a two", 1.0)])
    for _ in range(2):
        rebuild_pool(engine, [day(0), day(1)], settings, embedder)
        with engine.connect() as conn:
            rows = conn.execute(
                sa.text(
                    "select conversation_id, requirements, pinned, qualifies from iccm.phase4_training_data"
                )
            )
            assert sorted(map(tuple, rows)) == [(1, "a one", True, False), (2, "b one", True, False)]
    put_filtered(engine, day(0), 2, "b one", 0.95)
    rebuild_pool(engine, [day(0)], settings, embedder)
    with engine.connect() as conn:
        rows = conn.execute(
            sa.text("select conversation_id from iccm.phase4_training_data where qualifies")
        ).all()
    assert [row[0] for row in rows] == [2]


def test_an_erased_pinned_row_leaves_the_pool(engine, settings):
    add_filtered(engine, day(0), [(1, "a one", 0.9)])
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    pin(engine, 1)
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now()"))
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    assert load_pool(engine)[0] == []


def test_a_conversation_that_moves_to_another_day_is_in_the_pool_once(engine, settings):
    embedder = HashEmbedder(disturbance=0.01)
    add_filtered(engine, day(0), [(1, "a one", 0.9)])
    add_filtered(engine, day(1), [(2, "a two", 0.9)])
    rebuild_pool(engine, [day(0), day(1)], settings, embedder)
    put_filtered(engine, day(2), 1, "a one", 0.9)
    rebuild_pool(engine, [day(2)], settings, embedder)
    assert [(row[0], row[1]) for row in load_pool(engine)[0]] == [(2, day(1))]
    assert [row[:3] for row in load_pool(engine)[1]] == [(1, day(2), 2)]


def test_another_embedder_rebuilds_the_whole_pool(filled, settings, rows_by_day):
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, HashEmbedder())
    other = HashEmbedder("hash-2", disturbance=0.36)
    rebuild_pool(filled, [day(29)], settings, other)
    assert load_pool(filled)[:2] == expected_pool(rows_by_day, HashEmbedder("hash-2", disturbance=0.36))


def test_concurrent_rebuilds_give_the_same_pool(filled, settings, rows_by_day):
    failures = []

    def rebuild(n):
        try:
            rebuild_pool(filled, [day(k) for k in range(n, DAYS, 5)], settings, HashEmbedder())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=rebuild, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert load_pool(filled)[:2] == expected_pool(rows_by_day, HashEmbedder())


class CircleEmbedder(HashEmbedder):
    """Embeds a number as a direction in a plane: chains of similar texts, and equal similarities, abound."""

    def encode(self, texts):
        self.encoded += texts
        angles = np.deg2rad([float(text) for text in texts])
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
        return vectors


class EditedDays:
    """Filtered rows by day as a test changes them, in the database and in memory."""

    def __init__(self, engine, rng, n_days):
        self.engine, self.rng = engine, rng
        self.rows = {n: [] for n in range(n_days)}
        self.pinned, self._numbers = set(), iter(range(1, 10_000))
        self._edited = set()  # since the last rebuild: the pool has another state of them

    def edit(self):
        free = [(n, row) for n, rows in self.rows.items() for row in rows if row[0] not in self.pinned]
        kind = self.rng.choice(["add", "add", "delete", "quality", "text", "move", "pin", "erase"])
        if kind == "add" or not free:
            n, row = self._draw_day(), (next(self._numbers), self._draw_text(), self._draw_quality())
            add_filtered(self.engine, day(n), [row])
            self.rows[n].append(row)
            return
        n, (id_, text, quality) = free[self.rng.integers(len(free))]
        if kind == "pin":
            if id_ not in self._edited and id_ in {row[0] for row in load_pool(self.engine)[0]}:
                pin(self.engine, id_)
                self.pinned.add(id_)
            return
        self._edited.add(id_)
        self.rows[n].remove((id_, text, quality))
        if kind in ("delete", "erase"):
            table = "filtered_conversations" if kind == "delete" else "conversations"
            change = (
                f"delete from iccm.{table} where conversation_id = :id"
                if kind == "delete"
                else f"update iccm.{table} set erased_at = iccm.now() where id = :id"
            )
            with self.engine.begin() as conn:
                conn.execute(sa.text(change), {"id": id_})
            return
        text = self._draw_text() if kind == "text" else text
        quality = self._draw_quality() if kind == "quality" else quality
        n = self._draw_day() if kind == "move" else n
        put_filtered(self.engine, day(n), id_, text, quality)
        self.rows[n].append((id_, text, quality))

    def rebuild(self, requested, settings, embedder):
        rebuild_pool(self.engine, [day(n) for n in requested], settings, embedder)
        self._edited.clear()

    def _draw_day(self):
        return int(self.rng.integers(len(self.rows)))

    def _draw_text(self):
        return str(5 * int(self.rng.integers(36)))

    def _draw_quality(self):
        return round(float(self.rng.integers(77, 100)) / 100, 2)


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**20))
def test_any_sequence_of_changes_gives_the_pool_of_the_definition(engine, settings, seed):
    with engine.begin() as conn:
        conn.execute(sa.text("truncate iccm.conversations, iccm.embeddings, iccm.pool_days cascade"))
    rng = np.random.default_rng(seed)
    days, embedder = EditedDays(engine, rng, 6), CircleEmbedder()
    for _ in range(25):
        days.edit()
    days.rebuild(days.rows, settings, embedder)
    for _ in range(5):
        for _ in range(rng.integers(1, 4)):
            days.edit()
        days.rebuild([int(rng.integers(6))], settings, embedder)
        assert load_pool(engine)[:2] == expected_pool(days.rows, CircleEmbedder(), days.pinned)


@pytest.fixture
def decided(monkeypatch) -> list[int]:
    """With how many rows the rows of each call of ``find_duplicates`` were decided."""
    calls = []

    def find(texts, others, threshold, **options):
        calls.append((len(texts), len(others)))
        return find_duplicates(texts, others, threshold, **options)

    monkeypatch.setattr("iccm_assets.curation.pool_decisions.find_duplicates", find)
    return calls


def test_a_changed_day_decides_its_rows_and_those_it_affects(engine, settings, decided):
    """0 and 20 are similar, and 20 and 40; so are 100 and 110."""
    for n, angles in enumerate([("0", "100"), ("300",), ("20", "110"), ("40", "200")]):
        add_filtered(engine, day(n), [(10 * n + k, text, 0.9) for k, text in enumerate(angles)])
    rebuild_pool(engine, [day(n) for n in range(4)], settings, CircleEmbedder())
    assert [row[0] for row in load_pool(engine)[0]] == [0, 1, 10, 30, 31]
    decided.clear()
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.filtered_conversations where conversation_id = 0"))
    report = rebuild_pool(engine, [day(0)], settings, CircleEmbedder())
    assert [row[0] for row in load_pool(engine)[0]] == [1, 10, 20, 31]
    # Row 1 of the changed day and the orphaned row 20; then row 30, which 20 displaces.
    assert [call[0] for call in decided] == [2, 1]
    assert report.rebuilt_days == 3


def test_a_new_day_is_compared_with_kept_rows_only_and_an_unchanged_one_with_none(
    engine, settings, decided, monkeypatch
):
    for n in range(3):
        add_filtered(engine, day(n), [(10 * n + k, str(90 * k), 0.9) for k in range(4)])
    rebuild_pool(engine, [day(0), day(1)], settings, CircleEmbedder())
    rebuild_pool(engine, [day(2)], settings, CircleEmbedder())
    assert decided == [(8, 0), (4, 4)]
    monkeypatch.setattr("iccm_assets.curation.training_pool.load_texts", None)
    for n in range(3):
        assert rebuild_pool(engine, [day(n)], settings, CircleEmbedder()).changed_rows == 0


def test_a_copy_of_a_source_that_changed_is_renewed_without_a_decision(engine, settings, decided):
    add_filtered(engine, day(0), [(1, "0", 0.9)])
    add_filtered(engine, day(1), [(2, "1", 0.9)])
    rebuild_pool(engine, [day(0), day(1)], settings, CircleEmbedder())
    decided.clear()
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.filtered_conversations set source_code = 'source 2'"))
    assert rebuild_pool(engine, [day(0)], settings, CircleEmbedder()).changed_rows == 2
    with engine.connect() as conn:
        sources = conn.execute(sa.text("select source_code from iccm.phase4_training_data")).scalars()
        assert sources.all() == ["source 2"]
        differences = sa.text("select differences from iccm.phase4_rejections")
        assert conn.execute(differences).scalar_one() is None  # the same program now
    assert decided == []


def test_newly_pinned_rows_decide_no_day_without_them_again(engine, settings, decided):
    add_filtered(engine, day(0), [(1, "0", 0.9), (2, "90", 0.9)])
    add_filtered(engine, day(1), [(3, "180", 0.9), (4, "181", 0.8)])
    rebuild_pool(engine, [day(0), day(1)], settings, CircleEmbedder())
    pin(engine, 3)
    decided.clear()
    rebuild_pool(engine, [day(1)], settings, CircleEmbedder())
    assert load_pool(engine)[0] == [(1, day(0), False), (2, day(0), False), (3, day(1), True)]
    assert decided == [(1, 3)]


def test_a_pool_of_an_earlier_release_is_decided_anew(engine, settings, decided):
    add_filtered(engine, day(0), [(1, "0", 0.9), (2, "90", 0.9)])
    rebuild_pool(engine, [day(0)], settings, CircleEmbedder())
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.pool_days set fingerprint = 'cafe'"))
    rebuild_pool(engine, [], settings, CircleEmbedder())
    assert decided == [(2, 0), (2, 0)]


def test_a_failing_embedder_leaves_the_pool_as_it_was(engine, settings):
    add_filtered(engine, day(0), [(1, "a one", 0.9)])
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    add_conversation(engine, "s2", day(1), number=2)
    put_filtered(engine, day(1), 2, "b one", 0.9)

    class Broken(HashEmbedder):
        def encode(self, texts):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        rebuild_pool(engine, [day(1)], settings, Broken())
    assert load_pool(engine) == ([(1, day(0), False)], [], [(day(0), 1, 0)])


def test_the_rebuild_time_is_platform_time(engine, settings):
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    with engine.connect() as conn:
        rebuilt_at = conn.execute(sa.text("select rebuilt_at from iccm.pool_days")).scalar_one()
    assert isinstance(rebuilt_at, datetime) and rebuilt_at.tzinfo is not None

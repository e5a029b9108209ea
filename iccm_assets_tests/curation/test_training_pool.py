import threading
from datetime import datetime

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from iccm_assets.curation.greedy_dedup import EmbeddedRows
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets_tests.curation.pool_factories import (
    HashEmbedder,
    add_conversation,
    add_filtered,
    day,
    everything,
    put_filtered,
)
from iccm_assets_tests.curation.test_greedy_dedup import brute_force

DAYS = 30


def random_days(rng, days=DAYS, at_most=9):
    """Filtered rows of some days: (conversation_id, text, quality); some days empty, few first words."""
    numbers = iter(range(1, 10_000))
    return {
        n: [
            (
                next(numbers),
                f"{'abcdefgh'[rng.integers(8)]} {rng.integers(40)}",
                round(float(rng.uniform(0.76, 1)), 2),
            )
            for _ in range(rng.integers(0, at_most))
        ]
        for n in range(days)
    }


def fill(engine, world):
    for n, rows in world.items():
        add_filtered(engine, day(n), rows)


def empty_pool(engine):
    with engine.begin() as conn:
        for table in (t.phase4_training_data, t.phase4_rejections, t.pool_days):
            conn.execute(table.delete())


def the_pool(engine):
    """Kept ids with their days, and the removed with what they duplicate."""
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


def expected_pool(world, embedder, pinned=()):
    """P2 by brute force over all days at once; ``pinned``: conversation ids."""
    ordered = [
        (id_, n, text)
        for n in sorted(world)
        for id_, text, _ in sorted(world[n], key=lambda row: (-row[2], row[0]))
    ]
    first = sorted([row for row in ordered if row[0] in pinned], key=lambda row: (row[1], row[0]))
    rest = [row for row in ordered if row[0] not in pinned]

    def rows(chosen):
        vectors = embedder.encode([row[2] for row in chosen]) if chosen else np.zeros((0, 384))
        return EmbeddedRows([row[0] for row in chosen], vectors)

    result = brute_force(rows(rest), rows(first), 0.9)
    days = {row[0]: day(row[1]) for row in ordered}
    kept = sorted((id_, days[id_], id_ in pinned) for id_ in [*result.kept, *(row[0] for row in first)])
    removed = sorted(
        (duplicate.id, days[duplicate.id], duplicate.duplicate_of, duplicate.similarity)
        for duplicate in result.removed
    )
    return kept, removed


@pytest.fixture(scope="module")
def world():
    return random_days(np.random.default_rng(11))


@pytest.fixture
def filled(engine, world):
    fill(engine, world)
    return engine


def test_thirty_days_at_once_equal_the_definition(filled, settings, world):
    report = rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, HashEmbedder())
    kept, removed, days = the_pool(filled)
    assert (kept, removed) == expected_pool(world, HashEmbedder())
    assert len(removed) > 20 and len(kept) > 20
    assert [row[0] for row in days] == [day(n) for n in range(DAYS)]
    assert (
        (report.kept, report.removed)
        == (len(kept), len(removed))
        == (report.pool_size, report.rows - report.kept)
    )


def test_any_order_of_launch_and_any_grouping_give_the_same_pool(filled, settings):
    """30 days in one run, as 30 runs, and 12 random orders and groupings."""
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    expected = the_pool(filled)
    rng = np.random.default_rng(5)
    for attempt in range(14):
        empty_pool(filled)
        order = list(range(DAYS)) if attempt == 0 else [int(n) for n in rng.permutation(DAYS)]
        size = 1 if attempt < 2 else int(rng.integers(1, 12))
        for start in range(0, DAYS, size):
            rebuild_pool(filled, [day(n) for n in order[start : start + size]], settings, embedder)
        assert the_pool(filled) == expected
    assert len(embedder.encoded) == len(set(embedder.encoded))


@hypothesis_settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_every_state_on_the_way_is_the_fold_of_the_days_materialized_so_far(engine, settings, seed, data):
    with engine.begin() as conn:
        conn.execute(sa.text("truncate iccm.conversations, iccm.embeddings, iccm.pool_days cascade"))
    world = random_days(np.random.default_rng(seed), days=6, at_most=6)
    fill(engine, world)
    embedder, materialized = HashEmbedder(), set()
    for group in data.draw(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=4)):
        rebuild_pool(engine, [day(n) for n in group], settings, embedder)
        materialized |= group
        so_far = {n: rows for n, rows in world.items() if n in materialized}
        assert the_pool(engine)[:2] == expected_pool(so_far, HashEmbedder())


def test_running_any_day_again_writes_nothing(filled, settings):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    tables = (t.phase4_training_data, t.phase4_rejections, t.pool_days, t.embeddings)
    before, encoded = everything(filled, *tables), len(embedder.encoded)
    for n in (0, 13, 29):
        report = rebuild_pool(filled, [day(n)], settings, embedder)
        assert report.changed_rows == 0 and report.embedded == 0
    with filled.connect() as conn:
        written = conn.execute(
            sa.text("select count(distinct xmin::text) from iccm.phase4_training_data")
        ).scalar_one()
    assert written == 1
    assert everything(filled, *tables) == before
    assert len(embedder.encoded) == encoded


def test_a_late_conversation_changes_what_it_must_and_only_that(filled, settings, world):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    late = (9001, world[20][0][1] if world[20] else "a 1", 1.0)
    add_filtered(filled, day(3), [late])
    rebuild_pool(filled, [day(3)], settings, embedder)
    changed = {**world, 3: [*world[3], late]}
    assert the_pool(filled)[:2] == expected_pool(changed, HashEmbedder())
    assert embedder.encoded.count(late[1]) == 1


def test_a_day_that_changed_is_noticed_even_when_another_one_is_launched(filled, settings, world):
    embedder = HashEmbedder()
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, embedder)
    late = (9001, "a brand new text", 1.0)
    add_filtered(filled, day(3), [late])
    rebuild_pool(filled, [day(25)], settings, embedder)
    assert the_pool(filled)[:2] == expected_pool({**world, 3: [*world[3], late]}, HashEmbedder())


def test_a_conversation_that_is_filtered_no_more_or_erased_leaves_the_pool(engine, settings):
    embedder = HashEmbedder(disturbance=0.01)
    add_filtered(engine, day(0), [(1, "a one", 0.9), (2, "b one", 0.9)])
    add_filtered(engine, day(1), [(3, "a two", 0.9)])
    rebuild_pool(engine, [day(0), day(1)], settings, embedder)
    assert [row[0] for row in the_pool(engine)[0]] == [1, 2]
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.filtered_conversations where conversation_id = 1"))
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id = 2"))
    rebuild_pool(engine, [day(1)], settings, embedder)
    kept, removed, days = the_pool(engine)
    assert [row[0] for row in kept] == [3] and removed == []
    assert days == [(day(0), 0, 0), (day(1), 1, 0)]


def test_an_empty_day_is_recorded_and_an_unmaterialized_one_takes_no_part(engine, settings):
    add_filtered(engine, day(1), [(1, "a one", 0.9)])
    report = rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    assert (report.rows, report.kept, report.pool_size) == (0, 0, 0)
    assert the_pool(engine) == ([], [], [(day(0), 0, 0)])


def test_identical_and_empty_texts_are_texts_like_any_other(engine, settings):
    add_filtered(
        engine, day(0), [(1, "", 0.8), (2, "", 0.9), (3, "same", 0.9), (4, "same", 0.9), (5, "é\n🙂", 0.9)]
    )
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    kept, removed, _ = the_pool(engine)
    assert [row[0] for row in kept] == [2, 3, 5]
    assert removed == [(1, day(0), 2, 1.0), (4, day(0), 3, 1.0)]


def pin(engine, *ids):
    with engine.begin() as conn:
        conn.execute(
            t.phase4_training_data.update()
            .where(t.phase4_training_data.c.conversation_id.in_(ids))
            .values(pinned=True)
        )


def test_pinned_rows_come_first_and_the_pool_still_equals_the_definition(filled, settings, world):
    embedder = HashEmbedder()
    everyday = [day(n) for n in range(DAYS)]
    rebuild_pool(filled, everyday, settings, embedder)
    pinned = [row[0] for row in the_pool(filled)[0]][5::3]
    pin(filled, *pinned)
    twin = (
        9001,
        next(text for rows in world.values() for id_, text, _ in rows if id_ == pinned[-1]) + " ",
        1.0,
    )
    add_filtered(filled, day(0), [twin])
    rebuild_pool(filled, [day(29)], settings, embedder)
    assert the_pool(filled)[:2] == expected_pool({**world, 0: [*world[0], twin]}, HashEmbedder(), set(pinned))


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


def test_an_erased_pinned_row_leaves_all_the_same(engine, settings):
    add_filtered(engine, day(0), [(1, "a one", 0.9)])
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    pin(engine, 1)
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now()"))
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    assert the_pool(engine)[0] == []


def test_a_conversation_that_moves_to_another_day_is_there_once(engine, settings):
    embedder = HashEmbedder(disturbance=0.01)
    add_filtered(engine, day(0), [(1, "a one", 0.9)])
    add_filtered(engine, day(1), [(2, "a two", 0.9)])
    rebuild_pool(engine, [day(0), day(1)], settings, embedder)
    put_filtered(engine, day(2), 1, "a one", 0.9)
    rebuild_pool(engine, [day(2)], settings, embedder)
    assert [(row[0], row[1]) for row in the_pool(engine)[0]] == [(2, day(1))]
    assert [row[:3] for row in the_pool(engine)[1]] == [(1, day(2), 2)]


def test_another_embedder_folds_everything_anew(filled, settings, world):
    rebuild_pool(filled, [day(n) for n in range(DAYS)], settings, HashEmbedder())
    other = HashEmbedder("hash-2", disturbance=0.36)
    rebuild_pool(filled, [day(29)], settings, other)
    assert the_pool(filled)[:2] == expected_pool(world, HashEmbedder("hash-2", disturbance=0.36))


def test_launches_at_the_same_time_do_not_disturb_each_other(filled, settings, world):
    failures = []

    def launch(n):
        try:
            rebuild_pool(filled, [day(k) for k in range(n, DAYS, 5)], settings, HashEmbedder())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=launch, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert the_pool(filled)[:2] == expected_pool(world, HashEmbedder())


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
    assert the_pool(engine) == ([(1, day(0), False)], [], [(day(0), 1, 0)])


def test_the_moment_of_the_fold_is_the_platforms_time(engine, settings):
    rebuild_pool(engine, [day(0)], settings, HashEmbedder())
    with engine.connect() as conn:
        moment = conn.execute(sa.text("select rebuilt_at from iccm.pool_days")).scalar_one()
    assert isinstance(moment, datetime) and moment.tzinfo is not None

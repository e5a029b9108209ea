"""Which pool rows a retraining selects (T7): the pure function, compared with brute force."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.retraining.example_selection import (
    PoolRow,
    max_fair_selection,
    select_examples,
    selection_window,
)
from iccm_assets.settings import SelectionSettings

S = SelectionSettings()
NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def row(
    number: int,
    user: str | None = None,
    quality: float = 0.9,
    days: float = 1.0,
    failed: bool = False,
) -> PoolRow:
    return PoolRow(number, f"session-{number}", user, NOW - timedelta(days=days), quality, failed)


def test_the_window_is_a_week_or_back_to_the_last_training_up_to_thirty_days() -> None:
    def days_before(start: datetime) -> float:
        return (NOW - start) / timedelta(days=1)

    assert days_before(selection_window(NOW, NOW - timedelta(days=2), S).start) == 7
    assert days_before(selection_window(NOW, NOW - timedelta(days=12), S).start) == 12
    assert days_before(selection_window(NOW, NOW - timedelta(days=90), S).start) == 30
    assert days_before(selection_window(NOW, None, S).start) == 30


def test_rows_outside_the_window_are_counted_but_not_selected() -> None:
    rows = [row(i) for i in range(30)] + [row(100 + i, days=7.1) for i in range(4)] + [row(200, days=-0.5)]
    chosen = select_examples(rows, NOW, NOW - timedelta(days=1), S)
    assert len(chosen.selected) == 30
    assert chosen.counts == {"selected": 30, "outside_window": 5, "user_cap": 0, "limit": 0}


def test_the_best_rows_come_first_and_ties_are_ordered_newest_first() -> None:
    rows = [row(i, quality=0.8 + (i % 3) / 100, days=i % 7) for i in range(30)]
    order = [
        (example.quality_score, example.timestamp, example.conversation_id)
        for example in select_examples(rows, NOW, None, S).selected
    ]
    assert order == sorted(order, reverse=True)


def test_the_limit_is_a_hundred_and_two_hundred_in_an_emergency() -> None:
    rows = [row(i, quality=1 - i / 1000) for i in range(260)]
    usual, emergency = (
        select_examples(rows, NOW, None, S),
        select_examples(rows, NOW, None, S, emergency=True),
    )
    assert [example.conversation_id for example in usual.selected] == list(range(100))
    assert len(emergency.selected) == 200
    assert usual.counts["limit"] == 160
    assert usual.selectable == emergency.selectable == 260
    assert usual.reason == "100 of 260 new pool rows of 30.0 days (160 limit)"


def test_in_an_emergency_corrected_failures_come_first() -> None:
    rows = [row(i, quality=0.99) for i in range(190)] + [
        row(500 + i, quality=0.8, failed=True) for i in range(40)
    ]
    usual, emergency = (
        select_examples(rows, NOW, None, S),
        select_examples(rows, NOW, None, S, emergency=True),
    )
    assert not any(example.failed_first for example in usual.selected)
    assert all(example.failed_first for example in emergency.selected[:40])
    assert not any(example.failed_first for example in emergency.selected[40:])


def test_one_user_gets_at_most_ten_rows_and_at_most_a_tenth() -> None:
    rows = [row(i, user="busy", quality=1.0) for i in range(50)] + [row(100 + i) for i in range(95)]
    chosen = select_examples(rows, NOW, None, S)
    assert Counter(example.user_id for example in chosen.selected) == {"busy": 10, None: 90}
    small = select_examples(rows[:50] + rows[50:90], NOW, None, S)
    assert len(small.selected) == 44
    assert Counter(example.user_id for example in small.selected)["busy"] == 4
    assert small.counts["user_cap"] == 46


def test_without_a_user_the_session_is_the_owner() -> None:
    anonymous = [PoolRow(i, "one-session", None, NOW, 0.9) for i in range(30)]
    assert select_examples(anonymous, NOW, None, S).selected == ()
    same_name = [*anonymous[:1], *(row(100 + i, user="one-session") for i in range(3))]
    assert len({example.owner for example in same_name}) == 2


def test_fewer_than_ten_users_give_nothing_because_each_may_have_a_tenth() -> None:
    nine = [row(10 * user + i, user=f"u{user}") for user in range(9) for i in range(10)]
    assert select_examples(nine, NOW, None, S).selectable == 0
    ten = nine + [row(1000 + i, user="u9") for i in range(10)]
    assert select_examples(ten, NOW, None, S).selectable == 100


def test_an_empty_pool_selects_nothing() -> None:
    chosen = select_examples([], NOW, None, S)
    assert (chosen.selected, chosen.selectable, sum(chosen.counts.values())) == ((), 0, 0)


def brute_force(counts: list[int], limit: int) -> int:
    return max(
        (n for n in range(limit + 1) if sum(min(count, 10, n // 10) for count in counts) >= n), default=0
    )


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(0, 250))
def test_the_size_is_the_largest_that_the_cap_allows(counts: list[int], limit: int) -> None:
    size, cap = max_fair_selection(counts, limit, S)
    assert size == brute_force(counts, limit)
    assert cap == min(10, size // 10)


def test_the_share_is_exact_where_binary_fractions_are_not() -> None:
    assert int(100 * 0.29) == 28
    assert max_fair_selection([29] * 4, 100, SelectionSettings(max_user_share=0.29, max_per_user=50)) == (
        100,
        29,
    )


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(0, 25)),
            st.integers(0, 5),
            st.floats(0, 35),
            st.booleans(),
        ),
        max_size=260,
    ),
    st.booleans(),
)
def test_every_selection_obeys_its_rules(
    rows: list[tuple[int | None, int, float, bool]], emergency: bool
) -> None:
    pool = [
        row(i, None if user is None else f"u{user}", 0.8 + quality / 50, days, failed)
        for i, (user, quality, days, failed) in enumerate(rows)
    ]
    selection = select_examples(pool, NOW, NOW - timedelta(days=9), S, emergency)
    size = len(selection.selected)
    owners = Counter(example.owner for example in selection.selected)
    assert size <= (200 if emergency else 100)
    assert all(count <= 10 and count * 10 <= size for count in owners.values())
    assert all(example.timestamp in selection.window for example in selection.selected)
    assert sum(selection.counts.values()) == len(pool)
    assert selection.counts["selected"] == size
    inside = Counter(example.owner for example in pool if example.timestamp in selection.window)
    assert size == brute_force(list(inside.values()), 200 if emergency else 100)
    assert selection.selectable >= size
    # No unselected row of the same owner is better than a selected one.
    selected_ids = {example.conversation_id for example in selection.selected}
    for example in selection.selected:
        for other in pool:
            if (
                other.owner == example.owner
                and other.conversation_id not in selected_ids
                and other.timestamp in selection.window
            ):
                assert _sort_key(example, emergency) > _sort_key(other, emergency)


def _sort_key(example: PoolRow, emergency: bool) -> tuple:
    return (
        emergency and example.failed_first,
        example.quality_score,
        example.timestamp,
        example.conversation_id,
    )

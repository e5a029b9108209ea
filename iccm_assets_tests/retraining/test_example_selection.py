"""Which pool rows a retraining selects (T7): the pure function, compared with brute force."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
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
    token: str | None = None,
) -> PoolRow:
    return PoolRow(number, f"session-{number}", user, NOW - timedelta(days=days), quality, failed, token)


def pool_rows(counts: dict[str | None, int]) -> list[PoolRow]:
    """As many rows of each user, the first user's best."""
    users = [user for user, count in counts.items() for _ in range(count)]
    return [row(number, user, quality=1 - number / 10_000) for number, user in enumerate(users)]


def team(size: int, rows_each: int) -> list[PoolRow]:
    return pool_rows({f"u{number}": rows_each for number in range(size)})


def test_the_window_is_a_week_or_back_to_the_last_training_up_to_thirty_days() -> None:
    def days_before(start: datetime) -> float:
        return (NOW - start) / timedelta(days=1)

    assert days_before(selection_window(NOW, NOW - timedelta(days=2), S).start) == 7
    assert days_before(selection_window(NOW, NOW - timedelta(days=12), S).start) == 12
    assert days_before(selection_window(NOW, NOW - timedelta(days=90), S).start) == 30
    assert days_before(selection_window(NOW, None, S).start) == 30


@pytest.mark.parametrize(("days", "selected"), [(-1e-6, 0), (0.0, 1), (30.0, 1), (30.000001, 0)])
def test_both_ends_of_the_window_belong_to_it(days: float, selected: int) -> None:
    assert len(select_examples([row(1, days=days)], NOW, None, S).selected) == selected


def test_rows_outside_the_window_are_counted_but_not_selected() -> None:
    rows = [row(i) for i in range(30)] + [row(100 + i, days=7.1) for i in range(4)] + [row(200, days=-0.5)]
    chosen = select_examples(rows, NOW, NOW - timedelta(days=1), S)
    assert len(chosen.selected) == 30
    assert chosen.counts == {"selected": 30, "outside_window": 5, "user_cap": 0, "limit": 0}
    assert "(5 outside_window)" in chosen.reason


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
    assert usual.reason == (
        "selected 100 of 260 new rows of the last 30 days (160 limit); with 1 user no cap applies"
    )


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


@pytest.mark.parametrize(
    ("users", "rows_each", "selected", "most_of_one"),
    [
        (1, 60, 60, 60),
        (2, 60, 100, 60),
        (3, 60, 100, 60),
        (8, 15, 100, 15),
        (9, 20, 100, 20),
        (10, 20, 100, 20),
    ],
)
def test_a_team_of_any_size_learns(users: int, rows_each: int, selected: int, most_of_one: int) -> None:
    chosen = select_examples(team(users, rows_each), NOW, None, S)
    assert len(chosen.selected) == selected
    assert max(Counter(example.owner for example in chosen.selected).values()) == most_of_one
    assert chosen.selectable == users * rows_each


def test_fifty_users_have_a_tenth_each() -> None:
    rows = pool_rows({"busy": 90} | {f"u{number}": 2 for number in range(49)})
    chosen = select_examples(rows, NOW, None, S)
    assert Counter(example.user_id for example in chosen.selected)["busy"] == 10
    assert (len(chosen.selected), chosen.selectable) == (100, 108)
    assert chosen.fair_share.note == "the cap of 10% (50 users) leaves 108 of 188 rows"


def test_a_user_has_a_share_of_the_final_selection_not_of_the_rows() -> None:
    rows = pool_rows({"busy": 93} | {f"u{number}": 4 for number in range(7)})
    chosen = select_examples(rows, NOW, None, S)
    assert Counter(example.user_id for example in chosen.selected)["busy"] == 9
    assert len(chosen.selected) == 37 and 9 <= 0.25 * 37 < 10
    assert chosen.reason == (
        "selected 37 of 121 new rows of the last 30 days (84 user_cap);"
        " the cap of 25% (8 users) leaves 37 of 121 rows; "
        "with 8 users the cap is wide: 25% of the examples instead of 10%"
    )


def test_an_emergency_has_the_same_share_of_its_larger_selection() -> None:
    rows = pool_rows({"busy": 190} | {f"u{number}": 30 for number in range(9)})
    chosen = select_examples(rows, NOW, None, S, emergency=True)
    assert len(chosen.selected) == 200
    assert Counter(example.user_id for example in chosen.selected)["busy"] == 40


def test_without_a_user_the_token_is_the_owner_and_else_all_are_one() -> None:
    rows = [row(0), row(1), row(2, token="ci"), row(3, token="ci", user=""), row(4, user="ci", token="ci")]
    assert [example.owner for example in rows] == [
        "anonymous",
        "anonymous",
        "token:ci",
        "token:ci",
        "user:ci",
    ]


def test_anonymous_rows_alone_are_selectable_and_beside_users_they_count_as_a_user() -> None:
    anonymous = pool_rows({None: 60})
    assert len(select_examples(anonymous, NOW, None, S).selected) == 60
    mixed = pool_rows({None: 60} | {f"u{number}": 3 for number in range(19)})
    chosen = select_examples(mixed, NOW, None, S)
    assert Counter(example.user_id for example in chosen.selected)[None] == 6
    assert len(chosen.selected) == 63


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ([4, 3], "with 2 users no cap applies"),
        ([9] * 5, "with 5 users the cap is wide: 40% of the examples instead of 10%"),
        ([9] * 20, ""),
        ([], ""),
    ],
)
def test_the_note_says_when_the_cap_is_wide(counts: list[int], note: str) -> None:
    assert max_fair_selection(counts, None, S).note == note


def test_a_team_whose_usual_share_is_everything_is_told_of_no_cap() -> None:
    assert max_fair_selection([4, 3], None, SelectionSettings(max_user_share=1.0)).note == ""


def test_without_rows_no_user_may_have_any() -> None:
    assert max_fair_selection([0, 0], None, S).max_per_user == 0


def test_a_user_always_may_have_an_example() -> None:
    share = max_fair_selection([1] * 50, 5, S)
    assert (share.size, share.max_per_user) == (5, 1)


def test_an_empty_pool_selects_nothing() -> None:
    chosen = select_examples([], NOW, None, S)
    assert (chosen.selected, chosen.selectable, sum(chosen.counts.values())) == ((), 0, 0)


def max_rows_per_user(size: int, users: int) -> int:
    """The cap of the contract, in rows of a selection."""
    return max(1, min(size, int(max(Fraction(1, 10), Fraction(2, max(users, 1))) * size)))


def brute_force(counts: list[int], limit: int) -> int:
    users = sum(count > 0 for count in counts)
    return max(
        n
        for n in range(limit + 1)
        if sum(min(count, max_rows_per_user(n, users)) for count in counts) >= n or n == 0
    )


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(0, 250))
def test_the_size_is_the_largest_that_the_cap_allows(counts: list[int], limit: int) -> None:
    share = max_fair_selection(counts, limit, S)
    assert share.size == brute_force(counts, limit)
    assert share.size == 0 or share.max_per_user == max_rows_per_user(share.size, share.users)
    assert max_fair_selection(counts, None, S).size == brute_force(counts, sum(counts))


def test_the_share_is_exact_where_binary_fractions_are_not() -> None:
    assert int(100 * 0.29) == 28
    share = max_fair_selection([29, *[10] * 8], 100, SelectionSettings(max_user_share=0.29))
    assert (share.size, share.max_per_user) == (100, 29)


def test_a_hundred_thousand_rows_of_a_single_user_are_counted_at_once() -> None:
    share = max_fair_selection([100_000, *range(1, 40)], None, S)
    assert share.size == brute_force([100_000, *range(1, 40)], 1000)


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
    inside = Counter(example.owner for example in pool if example.timestamp in selection.window)
    assert all(count <= max_rows_per_user(size, len(inside)) for count in owners.values())
    assert all(example.timestamp in selection.window for example in selection.selected)
    assert sum(selection.counts.values()) == len(pool)
    assert selection.counts["selected"] == size
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

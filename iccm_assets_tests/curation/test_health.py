"""The pool's checks, by their definition (U4, P2)."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from iccm_assets.curation import health
from iccm_assets.curation.health import Pair
from iccm_assets.curation.similarity import similarity, unit_rows

DAY = date(2026, 3, 2)


def test_yesterday_must_be_there_unless_nothing_came() -> None:
    assert health.yesterday(DAY, True, 10).passed
    assert health.yesterday(DAY, False, 0).passed
    missing = health.yesterday(DAY, False, 10)
    assert not missing.passed and "2026-03-02" in missing.text and "daily_data_schedule" in missing.recovery


def test_changed_days_are_named() -> None:
    found = health.current(7, [DAY])
    assert not found.passed and not found.error and "2026-03-02" in found.text
    assert health.current(7, []).passed


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_any_kind_of_leak_is_red_and_names_its_conversation(kind: int) -> None:
    lists: list[list[int]] = [[], [], []]
    assert health.leaks(5, *lists).passed
    lists[kind] = [42]
    found = health.leaks(5, *lists)
    assert not found.passed and found.error and found.ids == ("42",)


def test_similar_pairs_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=(40, 16))
    rows = unit_rows(np.vstack([base, base[:10] + 0.15 * rng.normal(size=(10, 16)), base[:2]]))
    ids = list(range(100, 100 + len(rows)))
    exempt = [n % 3 == 0 for n in range(len(rows))]
    expected = {
        (ids[a], ids[b])
        for a in range(len(rows))
        for b in range(a + 1, len(rows))
        if similarity(rows[a], rows[b]) >= 0.9 and not (exempt[a] and exempt[b])
    }
    found = health.similar_pairs(ids, rows, exempt, 0.9)
    assert {(pair.one, pair.other) for pair in found} == expected and len(expected) > 5
    assert all(pair.similarity >= 0.9 for pair in found)
    assert health.similar_pairs([], np.zeros((0, 16)), [], 0.9) == []


def test_a_pair_is_red_with_its_similarity() -> None:
    found = health.duplicates(10, 12, [Pair(1, 2, 0.95)], 0.9)
    assert not found.passed and found.ids == ("1~2 (0.950000)",) and "10 of 12" in found.text
    assert health.duplicates(10, 10, [], 0.9).passed


@pytest.mark.parametrize("odd", [{"lost": [3]}, {"stray": [4]}, {"days": [DAY]}])
def test_rows_add_up_or_the_odd_ones_are_named(odd: dict[str, list[object]]) -> None:
    fine = {"filtered": 10, "pool": 8, "removed": 2, "lost": [], "stray": [], "days": []}
    assert health.adds_up(**fine).passed
    found = health.adds_up(**{**fine, **odd})
    assert not found.passed and found.ids == (str(next(iter(odd.values()))[0]),)

"""Checks of filtered rows and the pool (U4, P2)."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from iccm_assets.curation import checks
from iccm_assets.curation.similarity import normalize_rows, similarity
from iccm_assets.curation.text_vectors import TextVectors

DAY = date(2026, 3, 2)


def test_yesterday_must_be_filtered_unless_nothing_was_captured() -> None:
    assert checks.check_yesterday(DAY, True, 10).passed
    assert checks.check_yesterday(DAY, False, 0).passed
    missing = checks.check_yesterday(DAY, False, 10)
    assert (
        not missing.passed
        and "2026-03-02" in missing.description
        and "daily_data_schedule" in missing.recovery
    )


def test_changed_days_are_named() -> None:
    result = checks.check_freshness(7, [DAY])
    assert not result.passed and result.severity == "warning" and "2026-03-02" in result.description
    fine = checks.check_freshness(7, [])
    assert fine.passed and fine.description == "0 of the last 7 days changed since they were filtered: none"


@pytest.mark.parametrize("kind", ["held_out", "erased", "overlapping_canary_set"])
def test_every_kind_of_contamination_fails_and_names_its_conversation(kind: str) -> None:
    problems: dict[str, list[int]] = {"held_out": [], "erased": [], "overlapping_canary_set": []}
    fine = checks.check_contamination(5, problems)
    assert fine.passed and fine.metrics == {**dict.fromkeys(problems, 0), "rows_checked": 5}
    result = checks.check_contamination(5, {**problems, kind: [42]})
    assert (
        not result.passed
        and result.severity == "error"
        and result.sample_ids == ("42",)
        and result.metrics[kind] == 1
    )


def test_similar_pairs_equal_the_definition() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=(40, 16))
    rows = normalize_rows(np.vstack([base, base[:10] + 0.15 * rng.normal(size=(10, 16)), base[:2]]))
    ids = list(range(100, 100 + len(rows)))
    exempt = [n % 3 == 0 for n in range(len(rows))]
    expected = {
        (ids[a], ids[b])
        for a in range(len(rows))
        for b in range(a + 1, len(rows))
        if similarity(rows[a], rows[b]) >= 0.9 and not (exempt[a] and exempt[b])
    }
    pairs = checks.find_similar_pairs(ids, TextVectors.of_single_windows(rows), exempt, 0.9)
    assert {pair[:2] for pair in pairs} == expected and len(expected) > 5
    assert all(exact >= 0.9 for _, _, exact in pairs)
    unit = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)]])
    at_the_threshold = checks.find_similar_pairs(
        [7, 8], TextVectors.of_single_windows(unit), [False] * 2, 0.9
    )
    assert at_the_threshold == [(7, 8, 0.9)]
    assert checks.find_similar_pairs([], TextVectors.of_single_windows(np.zeros((0, 16))), [], 0.9) == []


def test_pairs_are_found_within_and_between_the_blocks_of_a_large_pool() -> None:
    rows = normalize_rows(np.random.default_rng(6).normal(size=(1100, 64)))
    for copy, original in ((900, 3), (1050, 40), (1090, 1080)):
        rows[copy] = rows[original]
    texts = TextVectors.of_single_windows(rows)
    pairs = checks.find_similar_pairs(range(1100), texts, [False] * 1100, 0.9)
    assert [pair[:2] for pair in pairs] == [(3, 900), (40, 1050), (1080, 1090)]


def test_a_similar_pair_fails_with_its_similarity() -> None:
    result = checks.check_duplicates(10, 12, [(1, 2, 0.95)], 0.9)
    assert not result.passed and result.sample_ids == ("1~2 (0.950000)",) and "10 of 12" in result.description
    fine = checks.check_duplicates(10, 10, [], 0.9)
    assert fine.passed and fine.metrics == {"pairs": 0, "rows_checked": 10}
    two = checks.check_duplicates(10, 12, [(1, 2, 0.95), (3, 4, 0.91)], 0.9)
    assert two.metrics == {"pairs": 2, "rows_checked": 10, "highest_similarity": 0.95}


@pytest.mark.parametrize("unexpected", [{"lost": [3]}, {"stray": [4]}, {"days": [DAY]}])
def test_row_counts_match_or_the_unexpected_rows_are_named(unexpected: dict[str, list[object]]) -> None:
    fine = {"filtered": 10, "pool": 8, "removed": 2, "lost": [], "stray": [], "days": []}
    assert checks.check_row_counts(**fine).passed
    result = checks.check_row_counts(**{**fine, **unexpected})
    assert not result.passed and result.sample_ids == (str(next(iter(unexpected.values()))[0]),)

"""What the gate cannot decide with a canary set is known before a candidate is trained (E3)."""

from __future__ import annotations

from typing import Any

import pytest

from iccm_assets.curation.canary_set import CanaryItem, CanarySet, load_canary_set
from iccm_assets.evaluation.canary_limits import find_canary_limits
from iccm_assets.settings import load_settings

EVALUATION = load_settings().evaluation
SUITE: dict[str, Any] = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 1}]}


def canary_set(*slices: int, suite: dict[str, Any] = SUITE) -> CanarySet:
    items = (
        CanaryItem(f"{number}-{item}", f"slice{number}", "def f(x): return x", "f shall return x", suite)
        for number, size in enumerate(slices)
        for item in range(size)
    )
    return CanarySet(tuple(items), "digest")


def test_a_sound_canary_set_has_no_limits() -> None:
    assert find_canary_limits(canary_set(20, 21), EVALUATION) == []


def test_every_item_of_the_packaged_set_compares_results() -> None:
    limits = find_canary_limits(load_canary_set(load_settings().canary_set), EVALUATION)
    assert all(limit.startswith("forgetting is not judged on ") for limit in limits)


def test_slices_below_the_minimum_are_named() -> None:
    [limit] = find_canary_limits(canary_set(20, 19, 8), EVALUATION)
    assert limit.startswith("forgetting is not judged on 2 of 3 slices, which have fewer than 20 items")
    assert limit.endswith("slice1 (19), slice2 (8)")


def test_too_few_items_for_a_latency_make_every_verdict_inconclusive() -> None:
    limits = find_canary_limits(canary_set(19), EVALUATION)
    assert "no candidate passes with 19 items: latency_regression is inconclusive below 20" in limits


@pytest.mark.parametrize(
    ("suite", "reason"),
    [
        ({"kind": "cases", "cases": [{"new": "C", "steps": [{"call": "f"}]}]}, "no `expect` and no `raises`"),
        ({"kind": "cases", "cases": [{"call": "f"}]}, "case 0: a case has either 'expect' or 'raises'"),
        ({"kind": "tests"}, "kind is 'tests'"),
    ],
)
def test_items_that_compare_no_result_are_named_with_the_reason(suite: dict[str, Any], reason: str) -> None:
    [limit] = find_canary_limits(canary_set(20, suite=suite), EVALUATION)
    assert limit.startswith("20 items compare no result") and f"0-0 ({reason}" in limit
    assert limit.endswith("and 15 more")


@pytest.mark.parametrize(
    "case", [{"call": "f", "raises": "ValueError"}, {"new": "C", "steps": [{"call": "f", "expect": 1}]}]
)
def test_an_exception_or_the_result_of_a_step_is_a_comparison(case: dict[str, Any]) -> None:
    assert find_canary_limits(canary_set(20, suite={"kind": "cases", "cases": [case]}), EVALUATION) == []

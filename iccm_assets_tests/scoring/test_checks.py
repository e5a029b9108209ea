"""What is measured and comparable, and what is not (U4)."""

from __future__ import annotations

import pytest

from iccm_assets.evaluation import checks as evaluation_checks
from iccm_assets.monitoring import checks as monitoring_checks
from iccm_assets.scoring import checks as scoring_checks


def test_a_text_that_was_never_scored_is_named() -> None:
    assert scoring_checks.check_missing_scores(10, [], 7).passed
    found = scoring_checks.check_missing_scores(10, [5, 6], 7)
    assert not found.passed and found.sample_ids == ("5", "6") and "2 of 10" in found.description


@pytest.mark.parametrize(
    ("scored", "without", "passed"), [(100, 10, True), (100, 11, False), (5, 5, True), (0, 0, True)]
)
def test_a_tenth_of_the_texts_may_be_inconclusive_once_there_are_enough(scored, without, passed) -> None:
    assert scoring_checks.check_inconclusive_rate(scored, without, 7).passed is passed


def test_another_canary_set_than_the_verdicts_is_an_error() -> None:
    assert evaluation_checks.check_canary_set("a", None, "").passed
    assert evaluation_checks.check_canary_set("a", "a", "v2").passed
    found = evaluation_checks.check_canary_set("b", "a", "v2")
    assert (
        not found.passed
        and found.severity == "error"
        and "v2" in found.description
        and "production" in found.recovery
    )


def test_slices_below_twenty_items_are_named_and_only_nothing_but_small_ones_is_red() -> None:
    found = evaluation_checks.check_slice_sizes({"big": 20, "small": 19})
    assert found.passed and "small" in found.description
    assert not evaluation_checks.check_slice_sizes({"small": 19}).passed


def test_a_missing_item_is_red() -> None:
    assert evaluation_checks.check_missing_items("v2", 3, []).passed
    found = evaluation_checks.check_missing_items("v2", 3, ["x"])
    assert not found.passed and found.sample_ids == ("x",) and "iccm evaluate v2" in found.recovery


def test_production_nobody_measured_for_two_rounds_or_that_fell_is_a_warning() -> None:
    assert monitoring_checks.check_production_quality("v2", 6.5, 40, []).passed
    late = monitoring_checks.check_production_quality("v2", 13.5, 40, [])
    assert not late.passed and late.severity == "warning" and "13.5 h" in late.description
    fallen = monitoring_checks.check_production_quality("v2", 1.0, 40, ["production_holdout"])
    assert (
        not fallen.passed
        and "production_holdout" in fallen.description
        and "iccm rollback" in fallen.recovery
    )

"""Checks of scores, verdicts and production quality: what passes, warns and fails (U4)."""

from __future__ import annotations

import pytest

from iccm_assets.evaluation import checks as evaluation_checks
from iccm_assets.monitoring import checks as monitoring_checks
from iccm_assets.scoring import checks as scoring_checks


def test_a_text_that_was_never_scored_is_named() -> None:
    assert scoring_checks.check_missing_scores(10, [], 7).passed
    result = scoring_checks.check_missing_scores(10, [5, 6], 7)
    assert not result.passed and result.sample_ids == ("5", "6") and "2 of 10" in result.description


@pytest.mark.parametrize(
    ("scored", "without", "passed"), [(100, 10, True), (100, 11, False), (5, 5, True), (0, 0, True)]
)
def test_a_tenth_of_the_texts_may_be_inconclusive_once_there_are_enough(scored, without, passed) -> None:
    assert scoring_checks.check_inconclusive_rate(scored, without, 7).passed is passed


def test_a_canary_set_other_than_the_verdicts_is_an_error() -> None:
    assert evaluation_checks.check_canary_set("a", None, "").passed
    assert evaluation_checks.check_canary_set("a", "a", "v2").passed
    result = evaluation_checks.check_canary_set("b", "a", "v2")
    assert (
        not result.passed
        and result.severity == "error"
        and "v2" in result.description
        and "production" in result.recovery
    )


def test_small_slices_are_named_and_the_check_fails_only_if_all_are_small() -> None:
    result = evaluation_checks.check_slice_sizes({"big": 20, "small": 19})
    assert result.passed and "small" in result.description
    assert not evaluation_checks.check_slice_sizes({"small": 19}).passed


def test_a_missing_item_fails_the_check() -> None:
    assert evaluation_checks.check_missing_items("v2", 3, []).passed
    result = evaluation_checks.check_missing_items("v2", 3, ["x"])
    assert not result.passed and result.sample_ids == ("x",) and "iccm evaluate v2" in result.recovery


def test_stale_or_degraded_production_quality_is_a_warning() -> None:
    assert monitoring_checks.check_production_quality("v2", 6.5, 40, []).passed
    stale = monitoring_checks.check_production_quality("v2", 13.5, 40, [])
    assert not stale.passed and stale.severity == "warning" and "13.5 h" in stale.description
    degraded = monitoring_checks.check_production_quality("v2", 1.0, 40, ["production_holdout"])
    assert (
        not degraded.passed
        and "production_holdout" in degraded.description
        and "iccm rollback" in degraded.recovery
    )

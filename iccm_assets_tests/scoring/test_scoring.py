"""Aggregating the scores of an orchestra's members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.scoring.reconstruction import is_blank
from iccm_assets.scoring.scoring import ReconstructionScore, ScoringTask, aggregate, score_texts
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.scorable_rows import SOURCE, SUITE, TEXT, make_orchestra


def member(name: str, rate: float | None, status: str = "scored") -> ReconstructionScore:
    return ReconstructionScore(name, status, "", rate, (), None, 0.0, "" if rate is not None else "timed out")


def test_the_score_is_the_mean_and_the_population_variance() -> None:
    score = aggregate([member("a", 1.0), member("b", 0.5), member("c", 0.0)], quorum=2)
    assert score.test_pass_rate == 0.5
    assert score.implementation_variance == pytest.approx(1 / 6)


def test_a_missing_member_is_excluded_and_never_counted_as_zero() -> None:
    score = aggregate([member("a", 1.0), member("b", 1.0), member("c", None, "missing")], quorum=2)
    assert (score.test_pass_rate, score.implementation_variance) == (1.0, 0.0)


def test_below_the_quorum_the_score_is_inconclusive_and_names_the_missing_members() -> None:
    score = aggregate([member("a", 1.0), member("b", None, "missing")], quorum=2)
    assert score.test_pass_rate is None and score.implementation_variance is None
    assert "1 of 2" in score.reason and "b: missing timed out" in score.reason


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=0, max_size=6), st.integers(1, 4))
def test_a_score_exists_exactly_when_the_quorum_is_met(rates: list[float | None], quorum: int) -> None:
    score = aggregate([member(str(n), rate) for n, rate in enumerate(rates)], quorum)
    known = [rate for rate in rates if rate is not None]
    assert (score.test_pass_rate is not None) == (len(known) >= quorum)
    if score.test_pass_rate is not None:
        assert min(known) - 1e-9 <= score.test_pass_rate <= max(known) + 1e-9
        assert -1e-9 <= (score.implementation_variance or 0.0) <= 0.25 + 1e-9


@pytest.mark.parametrize(
    "text", ["", "  \t\n", "\u200b\u200d\u2060", "\ufeff\u00ad", "\u2800", "\u3164\u115f", "\u0301"]
)
def test_a_blank_text_scores_zero_in_an_evaluation_too_and_no_member_is_asked(
    settings: Settings, text: str
) -> None:
    requests: list[str] = []
    tasks = [ScoringTask(TEXT, parse_suite(SUITE)), ScoringTask(text, parse_suite(SUITE), SOURCE)]
    good, blank = score_texts(tasks, make_orchestra(requests.append), settings)
    assert (good.test_pass_rate, requests) == (1.0, [TEXT, TEXT])
    assert (blank.test_pass_rate, blank.implementation_variance, blank.api_compatibility) == (0.0, 0.0, 0.0)
    assert {member.detail for member in blank.members} == {"the text is blank"}


@pytest.mark.parametrize("text", ["x", "。", " \u00e9 ", "\u0939\u093f", "-", "😀"])
def test_a_text_with_a_visible_character_is_not_blank(text: str) -> None:
    assert not is_blank(text)

"""Aggregating the scores of an orchestra's members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.scoring.scoring import ReconstructionScore, aggregate


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

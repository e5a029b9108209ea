"""The last version compared with the first, by the gate's own rules (E1, E3)."""

from __future__ import annotations

import pytest

from iccm_assets.errors import InputError
from iccm_assets.evaluation.confidence_bounds import confidence_above
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence
from iccm_assets.evaluation.version_comparison import compare_versions, confidence_interval
from iccm_assets.settings import EvaluationSettings

SETTINGS = EvaluationSettings()


def evidence(**slices: list[tuple[float | None, float]]) -> GateEvidence:
    items = [
        ItemEvidence(f"{name}-{number}", name, after, before, 0.0, 0.0)
        for name, pairs in slices.items()
        for number, (after, before) in enumerate(pairs)
    ]
    return GateEvidence("v4", "v1", tuple(items), len(items))


def test_a_better_version_without_forgetting_is_an_improvement() -> None:
    comparison = compare_versions(
        evidence(old=[(1.0, 1.0)] * 100, new=[(1.0, 0.0)] * 20 + [(0.0, 0.0)] * 10), SETTINGS
    )
    assert comparison.is_improvement
    assert comparison.difference == pytest.approx(20 / 130) and comparison.items == 130
    assert comparison.low < comparison.difference < comparison.high
    assert comparison.p_value < 0.001


def test_a_lost_slice_is_named_even_if_the_gain_is_large() -> None:
    lost = [(0.0, 1.0)] * 12 + [(1.0, 1.0)] * 18
    comparison = compare_versions(evidence(old=lost, new=[(1.0, 0.0)] * 100), SETTINGS)
    assert not comparison.is_improvement and comparison.improvement.outcome == "pass"
    assert "slice old" in comparison.reason


def test_no_difference_is_no_improvement() -> None:
    comparison = compare_versions(evidence(old=[(1.0, 1.0)] * 30), SETTINGS)
    assert not comparison.is_improvement
    assert comparison.p_value == 1.0 and comparison.low < 0 < comparison.high


def test_no_common_item_is_an_error() -> None:
    with pytest.raises(InputError):
        compare_versions(evidence(old=[(None, 1.0)] * 30), SETTINGS)


def test_the_interval_is_the_bounds_that_the_gate_would_not_reject() -> None:
    differences = [0.0] * 80 + [1.0] * 12 + [-0.5] * 5
    low, high = confidence_interval(differences)
    assert confidence_above(differences, low - 0.001, -1.0) >= 0.975
    assert confidence_above(differences, low + 0.001, -1.0) < 0.975
    mirrored = confidence_interval([-difference for difference in differences])
    assert mirrored == (-high, -low)

"""The last version against the first, by the gate's own rules (E1, E3)."""

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


def test_better_with_nothing_lost_holds_and_says_so() -> None:
    found = compare_versions(
        evidence(old=[(1.0, 1.0)] * 100, new=[(1.0, 0.0)] * 20 + [(0.0, 0.0)] * 10), SETTINGS
    )
    assert found.is_improvement
    assert found.difference == pytest.approx(20 / 130) and found.items == 130
    assert found.low < found.difference < found.high
    assert found.p_value < 0.001


def test_a_lost_slice_is_named_however_large_the_gain() -> None:
    lost = [(0.0, 1.0)] * 12 + [(1.0, 1.0)] * 18
    found = compare_versions(evidence(old=lost, new=[(1.0, 0.0)] * 100), SETTINGS)
    assert not found.is_improvement and found.improvement.outcome == "pass"
    assert "slice old" in found.reason


def test_no_difference_is_no_improvement() -> None:
    found = compare_versions(evidence(old=[(1.0, 1.0)] * 30), SETTINGS)
    assert not found.is_improvement
    assert found.p_value == 1.0 and found.low < 0 < found.high


def test_nothing_in_common_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(InputError):
        compare_versions(evidence(old=[(None, 1.0)] * 30), SETTINGS)


def test_the_interval_holds_the_bounds_the_gate_would_not_reject() -> None:
    differences = [0.0] * 80 + [1.0] * 12 + [-0.5] * 5
    low, high = confidence_interval(differences)
    assert confidence_above(differences, low - 0.001, -1.0) >= 0.975
    assert confidence_above(differences, low + 0.001, -1.0) < 0.975
    mirrored = confidence_interval([-one for one in differences])
    assert mirrored == (-high, -low)

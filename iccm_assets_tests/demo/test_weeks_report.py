"""What a demo of several weeks says at its end: readable in 80 columns, and honest about its outcome."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from iccm_assets.demo import weeks_report
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence
from iccm_assets.evaluation.version_comparison import compare_versions
from iccm_assets.settings import EvaluationSettings
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES
from iccm_assets_tests.factories.demo_weeks import week


def make_report(after: float, last: str = "v4-aaaaaaaa") -> weeks_report.ComparisonReport:
    items = [
        ItemEvidence(f"{name}-{at}", name, 1.0, 1.0, 0.0, 0.0) for name in BASE_FAMILIES for at in range(30)
    ]
    items += [
        ItemEvidence(f"{name}-{at}", name, after, 0.0, 0.0, 0.0) for name in NEW_FAMILIES for at in range(30)
    ]
    evidence = GateEvidence(last, "v1-24ccf5ac", tuple(items), len(items))
    return weeks_report.ComparisonReport(
        "v1-24ccf5ac",
        last,
        "audit_set",
        evidence,
        compare_versions(evidence, EvaluationSettings()),
        EvaluationSettings(),
    )


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_truncated_in_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    weeks = [
        week(1, "gate_passed", "v2-411c0800"),
        week(2, "gate_failed", "v2-411c0800", notes="slice [tally] fell"),
        week(3, None, "v2-411c0800"),
    ]
    weeks_report.print_report(weeks, make_report(0.7), console)
    text = console.export_text()
    assert "…" not in text
    for part in (
        "passed +0.031",
        "failed",
        "no retrain",
        "first response",
        "slice [tally] fell",
        "→",
        "p < 0.001",
        "0 of 19 slices fell.",
        "no slice is proven lost",
    ):
        assert part in text, text
    for name in NEW_FAMILIES:
        assert f"new: {name}" in text


def test_an_improvement_requires_evidence() -> None:
    assert make_report(0.7).is_improvement
    assert not make_report(0.0).is_improvement and "improvement" in make_report(0.0).reason
    same = make_report(0.7, last="v1-24ccf5ac")
    assert not same.is_improvement and "no candidate passed" in same.reason


def test_the_report_is_one_json_document() -> None:
    plain = json.loads(
        json.dumps(weeks_report.to_json([week(1, "gate_passed", "v2")], make_report(0.7)), default=str)
    )
    assert plain["is_improvement"] and plain["weeks"][0]["outcome"] == "gate_passed"
    known = next(row for row in plain["slices"] if row["slice"] == BASE_FAMILIES[0])
    assert known["detectable"] == pytest.approx(3 / 30, abs=1e-8)
    assert (
        plain["comparison"]["low"] > 0 and len(plain["slices"]) == len(BASE_FAMILIES) + len(NEW_FAMILIES) + 1
    )

"""What a demo of several weeks says at its end: readable in 80 columns, and honest about its outcome."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from iccm_assets.demo import weeks_report
from iccm_assets.demo.weekly_cycle import WeekResult
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence
from iccm_assets.evaluation.version_comparison import compare_versions
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets.settings import EvaluationSettings
from iccm_assets.simulation.developers.traffic_summary import TrafficSummary
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES

DAY = date(2026, 3, 1)


def week(number: int, status: str | None, production: str, **facts: Any) -> WeekResult:
    mix = dict.fromkeys((*BASE_FAMILIES, *NEW_FAMILIES), 10)
    new = 10 * len(NEW_FAMILIES)
    held = TrafficSummary(production, sum(mix.values()), 44, new, 9, 90, 70, 12, 30, 5, mix)
    at = datetime(2026, 3, 1, 2, tzinfo=UTC)
    run = None
    if status:
        run = TrainingRun(
            id=number, trigger="weekly", trigger_key=f"weekly:{number}", attempt=1, fence=1, heartbeat_at=at,
            emergency=False, status=status, timestamp=at, base_version="v1-24ccf5ac",
            candidate_version="v2-411c0800", dataset_digest=None, config={}, improvement=0.031,
            notes=facts.get("notes"), error=None, dagster_run_id=None,
        )  # fmt: skip
    return WeekResult(
        number=number,
        first=DAY + timedelta(days=7 * number - 6),
        last=DAY + timedelta(days=7 * number),
        traffic=held,
        late_sessions=5,
        trigger="112 new examples, 50 required",
        run=run,
        funnel={
            "captured": 200,
            "scored": 170,
            "filtered": 130,
            "pool": 121,
            "first_response_pass_rate": 0.612,
        },
        trained_on={"origin pool": 100, "origin pinned": 90, "origin sample": 400},
        production=production,
        pass_rate=0.782,
        seconds={"traffic": 40.0, "data": 60.0, "retrain": 130.0},
    )


def make_report(after: float, last: str = "v4-aaaaaaaa") -> weeks_report.ComparisonReport:
    items = [
        ItemEvidence(f"{name}-{at}", name, 1.0, 1.0, 0.0, 0.0) for name in BASE_FAMILIES for at in range(30)
    ]
    items += [
        ItemEvidence(f"{name}-{at}", name, after, 0.0, 0.0, 0.0) for name in NEW_FAMILIES for at in range(30)
    ]
    evidence = GateEvidence(last, "v1-24ccf5ac", tuple(items), len(items))
    return weeks_report.ComparisonReport(
        "v1-24ccf5ac", last, evidence, compare_versions(evidence, EvaluationSettings())
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
    assert (
        plain["comparison"]["low"] > 0 and len(plain["slices"]) == len(BASE_FAMILIES) + len(NEW_FAMILIES) + 1
    )

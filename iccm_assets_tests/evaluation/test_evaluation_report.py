"""The evaluation report (E2): the forgetting matrix over an ancestry, latencies and holdout."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from math import isnan

import pytest

from iccm_assets.evaluation import evaluation_report
from iccm_assets.evaluation.gate_evidence import RuleResult, Verdict
from iccm_assets.evaluation.paired_evaluation import EvaluationOutcome, Latency, VersionScores
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.scoring import Score

SLICES = {"a1": "strings", "a2": "strings", "b1": "lists"}


def measured(version: str, **rates: float | None) -> VersionScores:
    return VersionScores(
        version, {item: Score(rate, 0.01, 1.0, ()) for item, rate in rates.items()}, cached=len(rates)
    )


def model(version: str) -> ModelVersion:
    return ModelVersion(version, None, "candidate", version, "/", {}, datetime.now(UTC), None)


def outcome(holdout: int = 0, ancestors: tuple[VersionScores, ...] = ()) -> EvaluationOutcome:
    latency = Latency([float(n) for n in range(1, 101)], [0.5] * 100)
    sessions = {f"conversation:{n}": 1.0 for n in range(holdout)}
    return EvaluationOutcome(
        candidate=model("v3"),
        production=model("v2"),
        canary=(measured("v3", a1=1.0, a2=0.5, b1=0.25), measured("v2", a1=0.5, a2=0.5, b1=0.5)),
        holdout=(measured("v3", **sessions), measured("v2", **dict.fromkeys(sessions, 0.5))),
        latency=(latency, latency),
        slices=SLICES,
        verdict=Verdict("fail", 0.1, False, (RuleResult("forgetting", "fail", "slice lists fell"),)),
        ancestors=ancestors,
    )


ANCESTORS = (measured("v0", b1=0.75), measured("v1", a1=1.0, a2=1.0, b1=None))


def test_the_forgetting_matrix_has_a_column_for_every_version_of_the_ancestry() -> None:
    lists, strings = evaluation_report.forgetting_matrix(outcome(ancestors=ANCESTORS))
    assert list(lists) == ["slice", "items", "v0", "v1", "v2", "v3", "change", "forgotten"]
    assert (lists["v0"], lists["v2"], lists["v3"]) == (0.75, 0.5, 0.25)
    assert (lists["change"], lists["forgotten"], lists["items"]) == (-0.25, 0.5, 1)
    assert isnan(lists["v1"]) and isnan(strings["v0"])
    assert (strings["v3"], strings["change"], strings["forgotten"]) == (0.75, 0.25, 0.25)


@pytest.mark.parametrize("ancestors", [(), ANCESTORS], ids=["two versions", "an ancestry"])
def test_the_heat_map_is_a_picture_of_all_rows_and_versions(ancestors: tuple[VersionScores, ...]) -> None:
    from matplotlib import image

    rows = evaluation_report.forgetting_matrix(outcome(ancestors=ancestors))
    drawn = image.imread(io.BytesIO(evaluation_report.plot_forgetting_matrix(rows)), format="png")
    taller = image.imread(io.BytesIO(evaluation_report.plot_forgetting_matrix(rows * 6)), format="png")
    assert drawn.shape[0] < taller.shape[0] < 1000 and 300 < drawn.shape[1] == taller.shape[1] < 1200


def test_the_metadata_contains_verdict_matrix_heat_map_and_latency() -> None:
    metadata = evaluation_report.build_metadata(outcome(holdout=3, ancestors=ANCESTORS))
    assert metadata["verdict"] == "fail" and metadata["holdout_items"] == 3
    assert "| lists | 1 | 0.75 | nan | 0.5 | 0.25 |" in metadata["forgetting_matrix"]["raw_value"]
    assert metadata["forgetting_heat_map"]["raw_value"].startswith(
        "![forgetting matrix](data:image/png;base64,"
    )
    assert "| v3 | response | 100 | 50.0 | 95.0 | 99.0 |" in metadata["latency"]["raw_value"]
    assert "| v2 | output token | 100 | 0.5 | 0.5 | 0.5 |" in metadata["latency"]["raw_value"]


def test_trackers_get_the_gate_and_both_versions_in_figures_by_slice() -> None:
    measured_outcome = outcome()
    numbers = {"bound": 0.0, "confidence": 0.97}
    rules = (RuleResult("improvement", "pass", "better", numbers), *measured_outcome.verdict.rules)
    verdict = replace(measured_outcome.verdict, rules=rules)
    figures = evaluation_report.tracked_figures(replace(measured_outcome, verdict=verdict))
    assert figures["gate/improvement"] == 0.1
    assert (figures["gate/improvement_bound"], figures["gate/improvement_confidence"]) == (0.0, 0.97)
    assert figures["gate/candidate_test_pass_rate"] == pytest.approx(1.75 / 3)
    assert figures["gate/production_implementation_variance"] == pytest.approx(0.01)
    assert figures["gate/candidate_slice/strings"] == 0.75
    assert figures["gate/production_latency_ms_p95"] > 90
    assert all(isinstance(value, float) for value in figures.values())


def test_few_holdout_sessions_are_reported_and_not_compared() -> None:
    assert evaluation_report.describe_holdout(outcome(holdout=19)) == (
        "production holdout: 19 of 19 recent sessions scored for both versions; "
        "fewer than 20 are not compared"
    )
    weaker = replace(outcome(holdout=19), holdout_evidence={"cases": 12, "pytest": 7})
    assert "(7 by pytest suites, the weaker evidence)" in evaluation_report.describe_holdout(weaker)
    assert evaluation_report.build_metadata(weaker)["holdout_evidence_pytest"] == 7
    description = evaluation_report.describe_holdout(outcome(holdout=20))
    assert (
        "candidate 1.000, production 0.500, change +0.5000 (confidence 1.000 better, 0.000 worse)"
        in description
    )
    assert "0 of 0 recent sessions" in evaluation_report.describe_holdout(outcome())


def test_importing_the_report_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys; from iccm_assets.evaluation import evaluation_report;"
        " print({'matplotlib', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "set()\n"

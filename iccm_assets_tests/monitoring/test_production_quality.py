"""Production measured without a cache, its baseline at the deployment, and the effect of a new judge (T8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import IccmError
from iccm_assets.evaluation import paired_evaluation
from iccm_assets.evaluation.paired_evaluation import EvaluatedVersion, EvaluationItem, EvaluationSet
from iccm_assets.monitoring import baseline, production_quality
from iccm_assets.registry import versions
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.evaluations import (
    BAD,
    GOOD,
    ORCHESTRA,
    SUITE,
    FakeModel,
    make_reconstructor,
)
from iccm_assets_tests.factories.platform_rows import version

CANARY = EvaluationSet(
    "canary_set", "set-1", tuple(EvaluationItem(f"i{n}", "alpha", f"source {n}", SUITE) for n in range(24))
)


@dataclass(frozen=True)
class FakeProbeResult:
    text: str | None
    error: str = ""
    finish_reason: str = "stop"


class FakeServingPath:
    """Production behind its serving path; returns its texts in turn."""

    def __init__(self, *texts: str | None, finish_reasons: Sequence[str] = ("stop",)) -> None:
        self.texts, self.probes, self.finish_reasons = texts, 0, finish_reasons

    def __call__(self, sources: Sequence[str]) -> list[FakeProbeResult]:
        self.probes += len(sources)
        return [
            FakeProbeResult(
                self.texts[n % len(self.texts)], "HTTP 503", self.finish_reasons[n % len(self.finish_reasons)]
            )
            for n in range(len(sources))
        ]


@pytest.fixture
def serving(engine: sa.Engine) -> ModelVersion:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        return versions.get_version(conn, "v1")


def measure(
    engine, settings, serving, served, orchestra: Orchestra = ORCHESTRA
) -> production_quality.SetMeasurement:
    return production_quality.measure_quality(engine, serving, CANARY, served, orchestra, settings)


def store(engine, serving, measurement, orchestra: Orchestra = ORCHESTRA) -> sa.Row:
    production_quality.store_measurements(engine, serving, [measurement], orchestra, serving_path="test")
    with engine.connect() as conn:
        return conn.execute(
            sa.select(t.quality_measurements).order_by(t.quality_measurements.c.id.desc()).limit(1)
        ).one()


def test_the_first_measurement_of_a_version_that_was_never_evaluated_is_its_baseline(
    engine, settings, serving
) -> None:
    first = measure(engine, settings, serving, FakeServingPath(GOOD))
    row = store(engine, serving, first)
    assert row.mean == row.baseline_mean == pytest.approx(2 / 3)
    assert row.evidence["baseline"]["source"] == "first measurement"
    with engine.connect() as conn:
        reloaded = versions.get_version(conn, "v1")
    second = measure(engine, settings, reloaded, FakeServingPath(GOOD, GOOD, BAD))
    row = store(engine, reloaded, second)
    assert row.baseline_mean == pytest.approx(2 / 3) and row.mean == pytest.approx(4 / 9)
    assert row.n == 24 and row.evidence["confidence"] > 0.9


def test_the_rules_for_lengths_are_those_of_the_evaluation(engine, settings, serving) -> None:
    served = FakeServingPath(GOOD, finish_reasons=("stop", "length", "truncated"))
    measurement = measure(engine, settings, serving, served)
    rates = [rating.rate for rating in measurement.ratings[:3]]
    assert rates == [pytest.approx(2 / 3), 0.0, None]
    assert measurement.unscored_reasons == {"the model did not read the end of the source": 8}
    assert store(engine, serving, measurement).n == 16


def test_production_is_queried_every_time_despite_cached_scores(engine, settings: Settings, serving) -> None:
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(serving, FakeModel(GOOD)), CANARY, ORCHESTRA, settings
    )
    served = FakeServingPath(GOOD)
    for _ in range(2):
        measure(engine, settings, serving, served)
    assert served.probes == 48


def test_the_baseline_is_the_gates_measurement_before_the_deployment(engine, settings, serving) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = null"))
        candidate = versions.get_version(conn, "v1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(candidate, FakeModel(GOOD)), CANARY, ORCHESTRA, settings
    )
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        deployed = versions.get_version(conn, "v1")
    measurement = measure(engine, settings, deployed, FakeServingPath(BAD))
    assert measurement.baseline.source == "at deployment"
    assert measurement.drop.baseline_mean == pytest.approx(2 / 3) and measurement.drop.mean == 0.0
    row = store(engine, deployed, measurement)
    assert row.baseline_mean == pytest.approx(2 / 3)


def test_a_new_orchestra_scores_the_responses_of_the_deployment_again(engine, settings, serving) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = null"))
        candidate = versions.get_version(conn, "v1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(candidate, FakeModel(GOOD)), CANARY, ORCHESTRA, settings
    )
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        deployed = versions.get_version(conn, "v1")
    store(engine, deployed, measure(engine, settings, deployed, FakeServingPath(GOOD)))
    better = Orchestra((make_reconstructor("a"), make_reconstructor("b")), quorum=2)
    with engine.connect() as conn:
        deployed = versions.get_version(conn, "v1")
    measurement = measure(engine, settings, deployed, FakeServingPath(GOOD), better)
    assert measurement.baseline.source == "scored again"
    assert measurement.drop.baseline_mean == measurement.drop.mean == 1.0
    store(engine, deployed, measurement, better)
    with engine.connect() as conn:
        stored_baseline = versions.get_version(conn, "v1").metrics["baseline"]["canary_set"]
    assert stored_baseline["identity"]["orchestra"] == better.digest


def test_items_without_a_response_have_no_score_and_too_many_prevent_a_measurement(
    engine, settings, serving
) -> None:
    measurement = measure(engine, settings, serving, FakeServingPath(GOOD, None))
    row = store(engine, serving, measurement)
    assert row.mean is None and row.n == 12
    assert row.evidence["without_score"] == {"no response: HTTP 503": 12}
    assert row.evidence["remark"] == "12 of 24 items have no score"
    with engine.connect() as conn:
        assert "baseline" not in versions.get_version(conn, "v1").metrics


def test_nothing_is_stored_when_another_version_has_become_production(engine, settings, serving) -> None:
    measurement = measure(engine, settings, serving, FakeServingPath(GOOD))
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set status = 'retired'"))
    with pytest.raises(IccmError, match="v1 is retired now"):
        production_quality.store_measurements(engine, serving, [measurement], ORCHESTRA, serving_path="test")
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.quality_measurements")).scalar_one() == 0


def test_baselines_of_two_sets_are_stored_together(engine, serving) -> None:
    with engine.begin() as conn:
        for name in ("canary_set", "production_holdout"):
            stored = baseline.Baseline({"a": 0.5}, {"orchestra": "o"}, "first measurement", "2026-01-01")
            baseline.store_baseline(conn, "v1", name, stored)
        metrics = versions.get_version(conn, "v1").metrics
    assert set(metrics["baseline"]) == {"canary_set", "production_holdout"}

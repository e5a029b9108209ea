"""Production measured afresh, its baseline of the deployment, and what a new judge does to it (T8)."""

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
from iccm_assets_tests.evaluation.test_paired_evaluation import (
    BAD,
    GOOD,
    ORCHESTRA,
    SUITE,
    Model,
    reader,
)
from iccm_assets_tests.retraining.factories import version

CANARY = EvaluationSet(
    "canary_set", "set-1", tuple(EvaluationItem(f"i{n}", "alpha", f"source {n}", SUITE) for n in range(24))
)


@dataclass(frozen=True)
class Said:
    text: str | None
    error: str = ""


class Served:
    """Production behind its serving path; answers in turn from its texts."""

    def __init__(self, *texts: str | None) -> None:
        self.texts, self.asked = texts, 0

    def __call__(self, sources: Sequence[str]) -> list[Said]:
        self.asked += len(sources)
        return [Said(self.texts[n % len(self.texts)], "HTTP 503") for n in range(len(sources))]


@pytest.fixture
def serving(engine: sa.Engine) -> ModelVersion:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        return versions.get_version(conn, "v1")


def measured(
    engine, settings, serving, served, orchestra: Orchestra = ORCHESTRA
) -> production_quality.SetMeasurement:
    return production_quality.measure_quality(engine, serving, CANARY, served, orchestra, settings)


def stored(engine, serving, one, orchestra: Orchestra = ORCHESTRA) -> sa.Row:
    production_quality.store_measurements(engine, serving, [one], orchestra, serving_path="test")
    with engine.connect() as conn:
        return conn.execute(
            sa.select(t.quality_measurements).order_by(t.quality_measurements.c.id.desc()).limit(1)
        ).one()


def test_the_first_measurement_of_a_version_that_was_never_evaluated_is_its_baseline(
    engine, settings, serving
) -> None:
    first = measured(engine, settings, serving, Served(GOOD))
    row = stored(engine, serving, first)
    assert row.mean == row.baseline_mean == pytest.approx(2 / 3)
    assert row.evidence["baseline"]["source"] == "first measurement"
    with engine.connect() as conn:
        again = versions.get_version(conn, "v1")
    second = measured(engine, settings, again, Served(GOOD, GOOD, BAD))
    row = stored(engine, again, second)
    assert row.baseline_mean == pytest.approx(2 / 3) and row.mean == pytest.approx(4 / 9)
    assert row.n == 24 and row.evidence["confidence"] > 0.9


def test_production_is_asked_every_time_whatever_is_cached(engine, settings: Settings, serving) -> None:
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(serving, Model(GOOD)), CANARY, ORCHESTRA, settings
    )
    served = Served(GOOD)
    for _ in range(2):
        measured(engine, settings, serving, served)
    assert served.asked == 48


def test_the_baseline_is_what_the_gate_measured_before_the_deployment(engine, settings, serving) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = null"))
        candidate = versions.get_version(conn, "v1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(candidate, Model(GOOD)), CANARY, ORCHESTRA, settings
    )
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        deployed = versions.get_version(conn, "v1")
    one = measured(engine, settings, deployed, Served(BAD))
    assert one.baseline.source == "at deployment"
    assert one.drop.baseline_mean == pytest.approx(2 / 3) and one.drop.mean == 0.0
    row = stored(engine, deployed, one)
    assert row.baseline_mean == pytest.approx(2 / 3)


def test_a_new_orchestra_judges_the_answers_of_the_deployment_again(engine, settings, serving) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = null"))
        candidate = versions.get_version(conn, "v1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(candidate, Model(GOOD)), CANARY, ORCHESTRA, settings
    )
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set deployed_at = iccm.now()"))
        deployed = versions.get_version(conn, "v1")
    stored(engine, deployed, measured(engine, settings, deployed, Served(GOOD)))
    better = Orchestra((reader("a"), reader("b")), quorum=2)
    with engine.connect() as conn:
        deployed = versions.get_version(conn, "v1")
    one = measured(engine, settings, deployed, Served(GOOD), better)
    assert one.baseline.source == "scored again"
    assert one.drop.baseline_mean == one.drop.mean == 1.0
    stored(engine, deployed, one, better)
    with engine.connect() as conn:
        kept = versions.get_version(conn, "v1").metrics["baseline"]["canary_set"]
    assert kept["identity"]["orchestra"] == better.digest


def test_what_the_serving_path_does_not_answer_is_no_score_and_too_much_of_it_no_measurement(
    engine, settings, serving
) -> None:
    one = measured(engine, settings, serving, Served(GOOD, None))
    row = stored(engine, serving, one)
    assert row.mean is None and row.n == 12
    assert row.evidence["without_score"] == {"no answer: HTTP 503": 12}
    assert row.evidence["remark"] == "12 of 24 items have no score"
    with engine.connect() as conn:
        assert "baseline" not in versions.get_version(conn, "v1").metrics


def test_nothing_is_stored_when_another_version_serves_by_now(engine, settings, serving) -> None:
    one = measured(engine, settings, serving, Served(GOOD))
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set status = 'retired'"))
    with pytest.raises(IccmError, match="v1 is retired now"):
        production_quality.store_measurements(engine, serving, [one], ORCHESTRA, serving_path="test")
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.quality_measurements")).scalar_one() == 0


def test_baselines_of_two_sets_live_side_by_side(engine, serving) -> None:
    with engine.begin() as conn:
        for name in ("canary_set", "production_holdout"):
            made = baseline.Baseline({"a": 0.5}, {"orchestra": "o"}, "first measurement", "2026-01-01")
            baseline.store_baseline(conn, "v1", name, made)
        metrics = versions.get_version(conn, "v1").metrics
    assert set(metrics["baseline"]) == {"canary_set", "production_holdout"}

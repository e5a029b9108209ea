"""Production is scored before there is a candidate, once: its evaluation takes these scores."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from iccm_assets.evaluation import evaluation_worker, paired_evaluation
from iccm_assets.evaluation.paired_evaluation import EvaluatedVersion, EvaluationItem, EvaluationSet
from iccm_assets.registry import versions
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.evaluations import GOOD, ORCHESTRA, SUITE, FakeModel


def test_production_that_was_scored_ahead_is_not_loaded_or_scored_again(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    production = ModelVersion("v1", None, "production", "d1", "/nowhere", {}, datetime.now(UTC), None)
    canary_set = EvaluationSet(
        "canary_set", "digest", (EvaluationItem("one", "slice", "def f(x):\n    return 2 * x\n", SUITE),)
    )
    model, loaded = FakeModel(GOOD), []

    def load(version: ModelVersion, _settings: Settings) -> EvaluatedVersion:
        loaded.append(version.version)
        return EvaluatedVersion(version, model)

    monkeypatch.setattr(versions, "get_version", lambda conn, name: production)
    monkeypatch.setattr(paired_evaluation, "load_canary_items", lambda settings: canary_set)
    monkeypatch.setattr(evaluation_worker, "load_orchestra_from_settings", lambda settings: ORCHESTRA)
    monkeypatch.setattr(evaluation_worker, "_load_version", load)
    done: list[int] = []
    evaluation_worker.score_production(engine, settings, done.append)
    evaluation_worker.score_production(engine, settings, done.append)
    assert loaded == ["v1"] and sum(done) == 1
    measured = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(production, model), canary_set, ORCHESTRA, settings
    )
    assert measured.cached == 1 and len(model.sources) == 1

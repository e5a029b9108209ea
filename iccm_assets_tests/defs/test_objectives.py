"""A retrain whose model answers recent sources first: the asset, its two processes and its metadata (L12)."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.training.assets import fine_tuned_checkpoint
from iccm_assets.defs.workers import LocalWorkers
from iccm_assets.models.generation import load_encoder
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.erasure_worlds import DAY, EMBEDDER, SUBJECTS, score, session
from iccm_assets_tests.factories.sampled_answers import trained_session
from iccm_assets_tests.factories.tiny_models import tiny_t5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VALUES = {
    "ICCM_TRAINING__OBJECTIVE": "rft",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_TRAINING__LEARNING_RATE": "1e-3",
    "ICCM_TRIGGERS__MIN_EXAMPLES": "2",
    "ICCM_SELECTION__MAX_USER_SHARE": "1",
    "ICCM_EVALUATION__MAX_NEW_TOKENS": "8",
    "ICCM_SAMPLING__SAMPLES": "2",
    "ICCM_SAMPLING__MAX_SOURCES": "3",
}


def test_the_asset_samples_before_it_trains_and_shows_both(
    platform: PlatformResource, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iccm_assets.capture.conversations import upsert_conversation
    from iccm_assets.curation.filtering import filter_day
    from iccm_assets.curation.training_pool import rebuild_pool

    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    settings, engine = platform.settings, platform.engine
    source = tiny_t5(tmp_path / "t5")
    stored = ModelStore.open(settings).import_model(str(source), load_encoder(source)[0].prompt)
    with engine.begin() as conn:
        versions.register_version(
            conn, digest=stored.digest, path=str(stored.path), parent=None, status="production"
        )
        for number, subject in enumerate(SUBJECTS):
            name = trained_session(number)
            upsert_conversation(conn, session(name, f"user{number}", subject, f"word{number}"))
    score(engine)
    filter_day(engine, DAY, settings, EMBEDDER)
    rebuild_pool(engine, [DAY], settings, EMBEDDER)
    result = dg.materialize(
        [fine_tuned_checkpoint],
        instance=instance,
        resources={"platform": platform, "workers": LocalWorkers()},
        selection=[fine_tuned_checkpoint],
    )
    assert result.success
    [shown] = [event.metadata for event in result.asset_materializations_for_node("fine_tuned_checkpoint")]
    assert shown["objective"].value == "rft" and shown["sampling_tried"].value == 3
    assert (shown["sampling_sampled"].value, shown["sampling_accepted"].value) == (3, 0)
    assert shown["sampling_wrong_greedy_share"].value == 1.0 and shown["sampling_judge_seconds"].value > 0
    assert "| objective | rft |" in str(shown["model_card"].value)
    with engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.sampled_answers)).scalar_one() == 9
        [row] = conn.execute(sa.select(t.phase4_training_runs)).all()
        metrics = versions.get_version(conn, row.candidate_version).metrics["training"]
    assert row.config["objective"] == metrics["objective"] == "rft" and metrics["sampling"]["tried"] == 3

"""The production holdout leaves out what is similar to anything trained on, long texts included."""

from __future__ import annotations

from datetime import date

import pytest
import sqlalchemy as sa

from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.evaluation import production_holdout
from iccm_assets.settings import Settings
from iccm_assets_tests.curation.pool_factories import HashEmbedder, add_filtered
from iccm_assets_tests.scoring.factories import put_conversation

# The embedder of the tests compares first words; "|" separates the units of a long text.
TRAINED = ("a start|b middle|c end", "short text")
HELD_OUT = {
    "a start|b middle|c ending": False,  # every window has a match
    "a start|b middle|c end|d more": True,
    "a start": True,  # the first window alone is no match of the whole
    "short texts": False,
    "other text": True,
}


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> HashEmbedder:
    embedder = HashEmbedder(disturbance=0.01)
    monkeypatch.setattr(production_holdout.Embedder, "load", lambda settings: embedder)
    return embedder


def test_a_long_text_is_left_out_only_if_all_of_it_was_trained_on(
    engine: sa.Engine, settings: Settings, embedder: HashEmbedder
) -> None:
    day = date(2026, 3, 1)
    add_filtered(engine, day, [(9000 + number, text, 0.9) for number, text in enumerate(TRAINED)])
    rebuild_pool(engine, [day], settings, embedder)
    sessions = [f"held-{n}" for n in range(200)]
    held_out = [name for name in sessions if is_in_holdout(name, settings.curation.holdout_fraction)]
    for name, text in zip(held_out, HELD_OUT, strict=False):
        put_conversation(engine, settings, name, text=text)
    with engine.begin() as conn:
        conn.execute(t.phase4_training_data.update().values(pinned=True))
        conn.execute(t.conversations.update().values(timestamp=sa.func.iccm.now()))
        conn.execute(t.requirements.update().values(test_pass_rate=1.0, scored_at=sa.func.iccm.now()))
    kept = {row.requirements for row in production_holdout.load_production_holdout(engine, settings)}
    assert kept == {text for text, stays in HELD_OUT.items() if stays}

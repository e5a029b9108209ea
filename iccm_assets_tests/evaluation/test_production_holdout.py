"""The production holdout leaves out what is similar to anything trained on, long texts included."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.evaluation import production_holdout
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import training_run
from iccm_assets_tests.factories.scorable_rows import put_conversation
from iccm_assets_tests.factories.training_pools import HashEmbedder, add_filtered

# The embedder of the tests compares first words; "|" separates the units of a long text.
TRAINED = ("a start|b middle|c end", "short text")
HELD_OUT = {
    "a start|b middle|c ending": False,  # every window has a match
    "a start|b middle|c end|d more": True,
    "a start": True,  # the first window alone is no match of the whole
    "short texts": False,
    "other text": True,
}
TRAINING_SESSION = next(f"s{n}" for n in range(100) if not is_in_holdout(f"s{n}", 0.15))


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


def held_out_sessions(engine: sa.Engine, settings: Settings, texts: list[str]) -> dict[str, int]:
    """Held-out conversations with scored, accepted texts, an hour apart and the last an hour old: by text."""
    names = (f"held-{n}" for n in range(1000))
    held_out = (name for name in names if is_in_holdout(name, settings.curation.holdout_fraction))
    ids = {text: put_conversation(engine, settings, next(held_out), text=text) for text in texts}
    with engine.begin() as conn:
        for age, number in enumerate(reversed(list(ids.values())), 1):
            when = sa.func.iccm.now() - timedelta(hours=age)
            conn.execute(
                t.conversations.update().where(t.conversations.c.id == number).values(timestamp=when)
            )
        conn.execute(t.requirements.update().values(test_pass_rate=1.0, scored_at=sa.func.iccm.now()))
    return ids


def holdout(engine: sa.Engine, settings: Settings) -> list[str]:
    return [row.requirements for row in production_holdout.load_production_holdout(engine, settings)]


def test_the_holdout_is_recent_scored_accepted_and_not_erased(engine: sa.Engine, settings: Settings) -> None:
    texts = ["first", "too old", "unscored", "not accepted", "erased", "without suite", "last"]
    ids = held_out_sessions(engine, settings, texts)
    put_conversation(engine, settings, TRAINING_SESSION, text="of a session that is not held out")
    c, r = t.conversations, t.requirements
    days = settings.curation.holdout_days
    with engine.begin() as conn:
        conn.execute(
            c.update().where(c.c.session_id == TRAINING_SESSION).values(timestamp=sa.func.iccm.now())
        )
        conn.execute(r.update().values(test_pass_rate=1.0, scored_at=sa.func.iccm.now()))
        for number, columns in (
            (ids["too old"], {"timestamp": sa.func.iccm.now() - timedelta(days=days, minutes=1)}),
            (ids["erased"], {"erased_at": sa.func.iccm.now()}),
        ):
            conn.execute(c.update().where(c.c.id == number).values(**columns))
        for text, columns in (
            ("unscored", {"test_pass_rate": None}),
            ("not accepted", {"kind": "model"}),
            ("without suite", {"test_suite": {"kind": "riddle"}}),
        ):
            conn.execute(r.update().where(r.c.conversation_id == ids[text]).values(**columns))
    assert holdout(engine, settings) == ["first", "last"]  # the oldest first
    with engine.begin() as conn:
        almost = sa.func.iccm.now() - timedelta(days=days, minutes=-5)
        conn.execute(c.update().where(c.c.id == ids["too old"]).values(timestamp=almost))
    assert holdout(engine, settings) == ["too old", "first", "last"]


def test_the_holdout_has_the_newest_items_when_there_are_too_many(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out_sessions(engine, settings, ["a", "b", "c", "d", "e"])
    monkeypatch.setattr(production_holdout, "MAX_ITEMS", 3)
    assert holdout(engine, settings) == ["c", "d", "e"]


def test_what_a_run_was_trained_on_is_left_out_pinned_or_not(
    engine: sa.Engine, settings: Settings, embedder: HashEmbedder
) -> None:
    day = date(2026, 3, 1)
    add_filtered(
        engine, day, [(9000, "pinned text", 0.9), (9001, "used text", 0.9), (9002, "spare text", 0.9)]
    )
    rebuild_pool(engine, [day], settings, embedder)
    held_out_sessions(engine, settings, ["pinned texts", "used texts", "spare texts"])
    pool = t.phase4_training_data
    with engine.begin() as conn:
        conn.execute(pool.update().values(pinned=False))
        conn.execute(pool.update().where(pool.c.conversation_id == 9000).values(pinned=True))
        training_run(conn, 1, examples={9001: "rehearsal"}, status="failed")
    assert holdout(engine, settings) == ["spare texts"]

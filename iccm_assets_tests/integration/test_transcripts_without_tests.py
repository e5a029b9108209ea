"""Without any tests: transcripts are scored, filtered and pooled, rollouts decided, on recorded suites."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.capture.claude_code.importer import TranscriptImporter
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.gateway.routing import assign_arm
from iccm_assets.scoring.live_scoring import score_live_responses
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.rollouts import World, short
from iccm_assets_tests.factories.scorable_rows import SOURCE, TEXT, serve_request
from iccm_assets_tests.factories.training_pools import HashEmbedder
from iccm_assets_tests.factories.transcripts import TranscriptBuilder, ask

GRADE = "def grade(score):\n    if score >= 90:\n        return 'A'\n    return 'B' if score >= 75 else 'C'\n"
REQUIREMENTS = (
    "1. `grade` shall return 'A' for a score of 90 or more.\n"
    "2. `grade` shall return 'B' for a score from 75 to 89.\n"
    "3. `grade` shall return 'C' for any other score."
)
WRONG = "def grade(score):\n    return 'A' if score >= 60 else 'F'\n"
ROW = """
select (c."timestamp" at time zone 'UTC')::date as day, r.test_pass_rate, r.test_suite_origin
from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id
"""


def import_transcript(engine: sa.Engine, settings: Settings) -> None:
    transcript = TranscriptBuilder("plain")
    transcript.prompt(ask(GRADE))
    transcript.answer(REQUIREMENTS)
    (result,) = TranscriptImporter(engine, settings, user_id="dev").import_transcript(transcript.read())
    assert result.state == "new"


@pytest.mark.parametrize(("reconstruction", "pooled"), [(GRADE, 1), (WRONG, 0)], ids=["right", "wrong"])
def test_a_transcript_without_tests_teaches_what_others_can_rebuild(
    engine: sa.Engine, settings: Settings, reconstruction: str, pooled: int
) -> None:
    import_transcript(engine, settings)
    orchestra = Orchestra(
        tuple(LocalReconstructor(name, lambda text: reconstruction) for name in ("a", "b")), quorum=2
    )
    assert score_unscored(engine, orchestra, settings).selected_rows == 0
    assert record_missing_suites(engine, settings).sources == {"usable": 1}
    assert score_unscored(engine, orchestra, settings).scored == 1
    with engine.connect() as conn:
        row = conn.execute(sa.text(ROW)).one()
    assert row.test_suite_origin == "recorded"
    assert (row.test_pass_rate > settings.curation.min_test_pass_rate) == bool(pooled)
    embedder = HashEmbedder()
    curation = settings.curation.model_copy(update={"holdout_fraction": 0.0})
    settings = settings.model_copy(update={"curation": curation})
    filter_day(engine, row.day, settings, embedder)
    rebuild_pool(engine, [row.day], settings, embedder)
    with engine.connect() as conn:
        origins = conn.execute(sa.text("select test_suite_origin from iccm.phase4_training_data")).scalars()
        assert list(origins) == ["recorded"] * pooled


def rebuild(text: str) -> str:
    """Rebuild `f` where the text says what it does."""
    return SOURCE if "twice" in text else SOURCE.replace("2 * x", "x")


def serve_minute(world: World, orchestra: Orchestra, canary_text: str) -> str:
    """Serve requests without tests, score the answers, and let the controller decide; return the state."""
    world.wait(60)
    world.beat()
    state = world.state()
    for _ in range(12):
        world.request_count += 1
        name = f"s{world.request_count}"
        arm = assign_arm(state.id, name, state.weight)
        text = canary_text if arm == "canary" else TEXT
        serve_request(
            world.engine, world.settings, f"r-{name}", name, text=text, tests=None, rollout=state.id, arm=arm,
            at=world.now(),
        )  # fmt: skip
    score_live_responses(world.engine, orchestra, world.settings)
    return world.tick().state.state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("canary_text", "end"),
    [(TEXT, "completed"), ("The function `f` shall take an argument.", "rolled_back")],
    ids=["as good", "degraded"],
)
def test_a_rollout_is_decided_on_recorded_suites_alone(
    engine: sa.Engine, settings: Settings, tmp_path: Path, canary_text: str, end: str
) -> None:
    scoring = settings.scoring.model_copy(update={"recorded_sessions_per_day": 10_000})
    settings = short(settings).model_copy(update={"scoring": scoring})
    world = World(engine, settings, tmp_path / "models").bootstrap()
    world.open()
    orchestra = Orchestra(tuple(LocalReconstructor(name, rebuild) for name in ("a", "b")), quorum=2)
    states = [serve_minute(world, orchestra, canary_text) for _ in range(3)]
    while states[-1] not in ("completed", "rolled_back", "aborted") and len(states) < 120:
        states.append(serve_minute(world, orchestra, canary_text))
    assert states[-1] == end, world.state().reason
    rows = world.rows(
        "select test_suite_origin, count(*) as texts, count(test_pass_rate) as scored"
        " from iccm.requirements where kind = 'model' group by 1"
    )
    assert [row.test_suite_origin for row in rows] == ["recorded"] and rows[0].scored == rows[0].texts
    assert world.statuses()[world.candidate] == ("production" if end == "completed" else "rolled_back")
    if end == "completed":
        assert world.events().count("advanced") >= 1

"""An imported transcript that holds no tests is scored on a recorded suite, filtered, and pooled."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets.capture.claude_code.importer import TranscriptImporter
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings
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

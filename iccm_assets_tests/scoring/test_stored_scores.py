"""Scores in the database: written once, resumable, never for a text that changed meanwhile."""

from __future__ import annotations

from datetime import date
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.evaluation.production_holdout import load_production_holdout
from iccm_assets.scoring import scoring_pass
from iccm_assets.scoring.scoring_queue import count_rows, unscored_requirements
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.scorable_rows import TEXT, VACUOUS_PYTEST, make_orchestra, put_conversation


def scores(engine: sa.Engine) -> list[Any]:
    r = t.requirements.c
    with engine.connect() as conn:
        return list(
            conn.execute(
                sa.select(r.session_id, r.test_pass_rate, r.scored_at.is_not(None)).order_by(r.id)
            ).all()
        )


def test_the_requested_days_are_scored_and_nothing_twice(engine: sa.Engine, settings: Settings) -> None:
    for day in (1, 2, 3):
        put_conversation(engine, settings, f"s{day}", day)
    days = (date(2026, 3, 2), date(2026, 3, 3))
    assert count_rows(engine, unscored_requirements(days)) == 2
    report = scoring_pass.score_unscored(engine, make_orchestra(), settings, days=days)
    assert (report.scored, report.rates) == (2, (1.0, 1.0))
    assert scores(engine) == [("s1", None, False), ("s2", 1.0, True), ("s3", 1.0, True)]
    assert scoring_pass.score_unscored(engine, make_orchestra(), settings, days=days).scored == 0


def test_a_broken_suite_is_counted_and_never_fails_the_day(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "broken", suite={"kind": "cases", "cases": [{"nonsense": 1}]})
    put_conversation(engine, settings, "fine")
    report = scoring_pass.score_unscored(engine, make_orchestra(), settings)
    assert (report.scored, report.invalid_suites) == (1, 1)
    assert scores(engine) == [("broken", None, True), ("fine", 1.0, True)]


def test_rows_of_one_text_suite_and_source_are_scored_once(engine: sa.Engine, settings: Settings) -> None:
    requests: list[str] = []
    for session in ("s1", "s2"):
        put_conversation(engine, settings, session)
    put_conversation(engine, settings, "other", text=TEXT + " It shall not fail.")
    report = scoring_pass.score_unscored(engine, make_orchestra(requests.append), settings)
    assert (report.scored, report.answers.total(), len(requests)) == (3, 6, 4)  # two texts, two members
    assert {rate for _, rate, _ in scores(engine)} == {1.0}
    with engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.reconstructions)).scalar_one() == 6


def test_a_text_that_changes_while_it_is_scored_waits_for_the_next_pass(
    engine: sa.Engine, settings: Settings
) -> None:
    put_conversation(engine, settings, "s")

    def change(text: str) -> None:
        put_conversation(engine, settings, "s", text=TEXT + " It shall not fail.")

    scoring_pass.score_unscored(engine, make_orchestra(change), settings)
    assert scores(engine) == [("s", None, False)]
    assert scoring_pass.score_unscored(engine, make_orchestra(), settings).scored == 1


def test_the_production_holdout_is_recent_held_out_scored_and_unlike_the_training_data(
    engine: sa.Engine, settings: Settings
) -> None:
    from iccm_assets.curation.filter_policy import is_in_holdout

    with engine.begin() as conn:
        today = conn.execute(sa.text("select iccm.now()")).scalar_one()
    fraction = settings.curation.holdout_fraction
    held_out = [name for name in (f"s{n}" for n in range(60)) if is_in_holdout(name, fraction)][:4]
    trained = next(name for name in (f"s{n}" for n in range(60)) if not is_in_holdout(name, fraction))
    for name in (*held_out, trained):
        put_conversation(engine, settings, name, text=f"{TEXT} {name}")
    put_conversation(engine, settings, held_out[3], suite=VACUOUS_PYTEST, text=f"{TEXT} {held_out[3]}")
    assert load_production_holdout(engine, settings) == []
    assert scoring_pass.score_unscored(engine, make_orchestra(), settings).scored == 4
    with engine.begin() as conn:
        conn.execute(t.conversations.update().values(timestamp=today))
        conn.execute(
            t.conversations.update()
            .where(t.conversations.c.session_id == held_out[0])
            .values(timestamp=today.replace(year=2020))
        )
    assert [row.requirements for row in load_production_holdout(engine, settings)] == [
        f"{TEXT} {name}" for name in held_out[1:3]
    ]

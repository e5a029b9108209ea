"""What was captured without tests gets a suite recorded from its source, once, and is then scored."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.scoring.checks import check_recorded_suites, suites_are_recorded
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import (
    load_daily_suites,
    record_live_suites,
    record_missing_suites,
)
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.scorable_rows import (
    SOURCE,
    load_model_rows,
    make_orchestra,
    put_conversation,
    serve_request,
)

GRADE = "def grade(n: int):\n    if n < 3:\n        return 'low'\n    return 'high' if n > 9 else 'mid'\n"
ROLL = "import random\ndef roll(n: int):\n    return random.randint(1, n)\n"
ROWS = sa.text(
    "select test_suite, test_suite_origin, test_pass_rate, evidence from iccm.requirements order by id"
)
SUITES = sa.text("select origin, status, suite is null as is_empty, reason from iccm.test_suites order by id")


def load(engine: sa.Engine, query: sa.TextClause) -> list[sa.Row]:
    with engine.connect() as conn:
        return list(conn.execute(query))


def test_texts_without_tests_are_scored_on_a_suite_recorded_once(
    engine: sa.Engine, settings: Settings
) -> None:
    put_conversation(engine, settings, "a", suite=None)
    put_conversation(engine, settings, "b", suite=None)
    put_conversation(engine, settings, "with tests")
    assert score_unscored(engine, make_orchestra(), settings).selected_rows == 1
    progress: list[int] = []
    report = record_missing_suites(engine, settings, progress=progress.append)
    assert report.counts() == {
        "sources_recorded": 1,
        "sources_usable": 1,
        "sources_unmeasured": 0,
        "texts_with_recorded_suite": 2,
    }
    assert progress == [1]
    assert score_unscored(engine, make_orchestra(), settings).scored == 2
    rows = load(engine, ROWS)
    assert [row.test_suite_origin for row in rows] == ["recorded", "recorded", "attached"]
    assert [row.test_pass_rate for row in rows] == [1.0, 1.0, 1.0]
    assert rows[0].evidence["suite"] == "usable" and rows[0].evidence["strength"] >= 0.8
    put_conversation(engine, settings, "c", suite=None)
    again = record_missing_suites(engine, settings)
    assert (again.sources.total(), again.texts) == (0, 1)  # from the stored one
    assert [row.origin for row in load(engine, SUITES)] == ["attached", "recorded"]


def test_what_cannot_be_recorded_keeps_its_reason_and_is_not_tried_again(
    engine: sa.Engine, settings: Settings
) -> None:
    put_conversation(engine, settings, "a", suite=None, source=ROLL)
    assert record_missing_suites(engine, settings).sources == {"none": 1}
    assert load(engine, SUITES) == [("recorded", "none", True, "roll: it uses randomness")]
    assert load(engine, ROWS)[0].test_suite is None
    assert record_missing_suites(engine, settings).sources.total() == 0


def test_only_the_days_that_are_asked_for_are_recorded(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "a", day=1, suite=None)
    put_conversation(engine, settings, "b", day=2, suite=None, source=GRADE)
    first = datetime(2026, 3, 1, tzinfo=UTC).date()
    assert record_missing_suites(engine, settings, days=(first, first)).sources == {"usable": 1}
    assert [row.test_suite_origin for row in load(engine, ROWS)] == ["recorded", None]


def test_live_answers_are_recorded_up_to_a_number_of_sessions_a_day(
    engine: sa.Engine, settings: Settings
) -> None:
    for number in range(4):
        serve_request(engine, settings, f"r{number}", f"s{number}", tests=None)
    serve_request(engine, settings, "r0 again", "s0", tests=None)
    serve_request(engine, settings, "tested", "t")
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.requirements where kind = 'accepted'"))
    late = record_live_suites(engine, settings, deadline=0.0)
    assert (late.sources_unmeasured, late.sources.total(), late.texts) == (1, 0, 0)
    scoring = settings.scoring.model_copy(update={"recorded_sessions_per_day": 2})
    limited = settings.model_copy(update={"scoring": scoring})
    assert record_live_suites(engine, limited).texts == 3  # of two sessions
    assert record_live_suites(engine, limited).texts == 0
    rows = load_model_rows(engine)
    assert [name for name in sorted(rows) if rows[name].test_suite_origin == "recorded"] == [
        "r0", "r0 again", "r1",
    ]  # fmt: skip
    assert record_missing_suites(engine, settings).texts == 0  # none of them was accepted
    assert record_live_suites(engine, settings).texts == 2


def test_tests_that_arrive_later_replace_a_recorded_suite(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "a", suite=None)
    record_missing_suites(engine, settings)
    put_conversation(engine, settings, "a")
    assert load(engine, ROWS)[0].test_suite_origin == "attached"


def test_an_erased_conversation_leaves_no_recorded_suite(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "a", suite=None)
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set user_id = 'eve'"))
    record_missing_suites(engine, settings)
    erase(engine, DataSubject("user", "eve"), actor="test")
    assert load(engine, SUITES) == []


def test_the_days_sources_are_counted_by_origin_with_the_reasons_of_the_rest(
    engine: sa.Engine, settings: Settings
) -> None:
    for number, source in enumerate((SOURCE, GRADE, ROLL)):
        put_conversation(engine, settings, f"s{number}", suite=None, source=source)
    put_conversation(engine, settings, "t", source=SOURCE + "\n")
    record_missing_suites(engine, settings)
    first = datetime(2026, 3, 1, tzinfo=UTC).date()
    with engine.connect() as conn:
        (day,) = load_daily_suites(conn, first, first).values()
    assert (day.sources, day.by_origin, day.without_usable) == (4, {"attached": 1, "recorded": 2}, 1)
    assert day.reasons == [{"origin": "recorded", "status": "none", "reason": "roll", "sources": 1}]
    assert len(day.strengths) == 2


@pytest.mark.parametrize(
    ("sources", "usable", "passes"), [(0, 0, True), (9, 0, True), (10, 5, True), (10, 4, False)]
)
def test_a_low_yield_warns_once_there_are_enough_sources(sources: int, usable: int, passes: bool) -> None:
    check = check_recorded_suites(sources, usable, 7)
    assert check.passed is passes and f"{usable} of {sources} sources" in check.description


def test_the_check_counts_the_sources_of_the_last_days(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "a", suite=None)
    with engine.begin() as conn:
        conn.execute(
            sa.text('update iccm.conversations set "timestamp" = :time'),
            {"time": datetime.now(UTC) - timedelta(days=2)},
        )
    record_missing_suites(engine, settings)
    with engine.connect() as conn:
        metrics = suites_are_recorded(conn, settings).metrics
    assert metrics == {"sources": 1.0, "usable": 1.0, "usable_share": 1.0}

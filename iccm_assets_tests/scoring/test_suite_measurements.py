"""No text is scored on a suite before the suite was measured on its source, once (C3b, D5)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db import tables as t
from iccm_assets.errors import InputError, SandboxUnavailableError
from iccm_assets.scoring import suite_measurements
from iccm_assets.scoring.live_scoring import score_live_responses
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.scoring_queue import count_rows, unscored_requirements
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_strength import GENERATOR_VERSION, SuiteMeasurement
from iccm_assets.suites.test_suites import Suite
from iccm_assets_tests.factories.scorable_rows import (
    SOURCE,
    SUITE,
    TEXT,
    VACUOUS_PYTEST,
    load_model_rows,
    make_orchestra,
    make_text,
    put_conversation,
    serve_request,
)

Measured = Callable[[str, Suite], SuiteMeasurement]
USABLE = SuiteMeasurement("usable", "", 1.0, 9, 1, 1.0)
PYTEST_SUITE = {
    "kind": "pytest",
    "files": {
        "test_f.py": "import pytest\nfrom implementation import f\n"
        "@pytest.mark.parametrize('n', [3, 0, -4, 7, 2.5, 1000001])\n"
        "def test_twice(n):\n    assert f(n) == n + n\n"
    },
}
MISMATCH = {"kind": "cases", "cases": [{"call": "f", "args": [n], "expect": 2 * n + 1} for n in range(6)]}
DAY = date(2026, 3, 1)
VACUOUS_CASES = {"kind": "cases", "cases": [{"call": "f", "args": [0], "expect": 0}] * 6}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measured], list[str]]:
    """Replace the measurement; returns the sources that it measures."""

    def install(measured: Measured) -> list[str]:
        sources: list[str] = []

        def record(source: str, suite: Suite, settings: Settings, *, origin: str) -> SuiteMeasurement:
            sources.append(source)
            return measured(source, suite)

        monkeypatch.setattr(suite_measurements, "measure_suite", record)
        return sources

    return install


def load_suites(engine: sa.Engine) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.select(t.test_suites).order_by(t.test_suites.c.id)))


def load_requirements(engine: sa.Engine) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.select(t.requirements).order_by(t.requirements.c.id)))


@pytest.mark.parametrize(
    ("suite", "status"),
    [(VACUOUS_PYTEST, "weak"), (VACUOUS_CASES, "weak"), (MISMATCH, "mismatch")],
)
def test_a_suite_that_tests_nothing_is_no_evidence_and_no_member_is_asked(
    engine: sa.Engine, settings: Settings, suite: Any, status: str
) -> None:
    put_conversation(engine, settings, "daily", suite=suite)
    serve_request(engine, settings, "live", "s", tests=suite)
    serve_request(engine, settings, "blank", "s2", tests=suite, text=" ")
    requests: list[str] = []
    orchestra = make_orchestra(requests.append)
    live = score_live_responses(engine, orchestra, settings).scored
    daily = score_unscored(engine, orchestra, settings)
    assert (live.scored, live.inconclusive, dict(live.unusable_suites)) == (0, 2, {status: 2})
    assert (daily.scored, set(daily.unusable_suites)) == (0, {status})
    assert requests == []
    for row in load_requirements(engine):
        assert (row.test_pass_rate, row.implementation_variance) == (None, None)
        assert row.scored_at is not None
        assert (row.evidence["kind"], row.evidence["suite"]) == (suite["kind"], status)
        assert row.evidence["reason"].startswith(f"the test suite is {status}: ")
    [stored] = load_suites(engine)
    assert (stored.status, stored.suite, stored.origin) == (status, suite, "attached")
    assert stored.reason and stored.generator_version == GENERATOR_VERSION
    assert count_rows(engine, unscored_requirements()) == 0


@pytest.mark.parametrize("suite", [SUITE, PYTEST_SUITE])
def test_a_strong_suite_is_measured_once_and_its_scores_say_its_kind_and_strength(
    engine: sa.Engine, settings: Settings, suite: Any
) -> None:
    serve_request(engine, settings, "r", "s", tests=suite)
    assert score_live_responses(engine, make_orchestra(), settings).scored.scored == 1
    [stored] = load_suites(engine)
    assert stored.status == "usable" and stored.strength > 0.8 and stored.counted_mutants > 0
    put_conversation(engine, settings, "other", suite=suite)
    score_unscored(engine, make_orchestra(), settings)
    assert load_suites(engine) == [stored]
    rows = load_requirements(engine)
    assert len(rows) == 3  # the answer, the same text as accepted, which reuses its score, and the other
    for row in rows:
        assert row.test_pass_rate == 1.0
        assert row.evidence == {
            "kind": suite["kind"], "suite": "usable", "strength": pytest.approx(stored.strength, abs=1e-3)
        }  # fmt: skip
        assert row.test_suite_origin == "attached"
    with engine.connect() as conn:
        kinds = conn.execute(sa.select(t.reconstructions.c.evidence)).scalars().all()
    assert set(kinds) == {suite["kind"]}


def test_a_text_whose_source_is_unknown_is_inconclusive(engine: sa.Engine, settings: Settings) -> None:
    serve_request(engine, settings, "r", "s")
    with engine.begin() as conn:
        conn.execute(t.conversations.update().values(content=[], metadata={}))
    requests: list[str] = []
    report = score_live_responses(engine, make_orchestra(requests.append), settings).scored
    assert (report.inconclusive, dict(report.unusable_suites), requests) == (1, {"no_source": 1}, [])
    row = load_model_rows(engine)["r"]
    assert row.scored_at is not None and "source" in row.evidence["reason"]
    assert load_suites(engine) == []


def test_each_text_is_measured_with_its_own_source(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]]
) -> None:
    """A session that goes on with another source keeps the earlier answer apart."""
    sources = measure(lambda source, suite: USABLE)
    serve_request(engine, settings, "first", "s")
    with engine.begin() as conn:
        other = "def g(x):\n    return 3 * x\n"
        row = conn.execute(sa.select(t.conversations)).one()
        content = [*row.content, {"role": "user", "content": f"```python\n{other}```"}]
        conn.execute(t.conversations.update().values(content=content, metadata={"source_code": other}))
    score_live_responses(engine, make_orchestra(), settings)
    assert sources == [SOURCE]


def test_without_a_sandbox_nothing_is_stored_and_the_text_is_retried(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]]
) -> None:
    def fail(source: str, suite: Suite) -> SuiteMeasurement:
        raise SandboxUnavailableError("no bubblewrap here")

    measure(fail)
    serve_request(engine, settings, "r", "s")
    requests: list[str] = []
    orchestra = make_orchestra(requests.append)
    report = score_live_responses(engine, orchestra, settings).scored
    assert (report.inconclusive, dict(report.unusable_suites), requests) == (1, {"unmeasured": 1}, [])
    assert load_suites(engine) == []
    row = load_model_rows(engine)["r"]
    assert "no bubblewrap here" in row.evidence["reason"] and row.evidence["attempts"] == 1
    with engine.connect() as conn:
        titles = conn.execute(sa.select(t.alerts.c.title)).scalars().all()
    assert titles == ["Sandbox layer missing"]
    measure(lambda source, suite: USABLE)
    assert score_live_responses(engine, orchestra, settings).scored.scored == 1
    assert "reason" not in load_model_rows(engine)["r"].evidence


@pytest.mark.slow
def test_concurrent_scorers_store_one_measurement_and_agree_on_it(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]]
) -> None:
    barrier = threading.Barrier(2, timeout=60)
    verdicts = iter(["usable", "weak"])

    def together(source: str, suite: Suite) -> SuiteMeasurement:
        barrier.wait()  # both scorers measure before either stores
        return SuiteMeasurement(next(verdicts), "by chance", 0.9, 9, 1, 1.0)  # type: ignore[arg-type]

    measure(together)
    serve_request(engine, settings, "r", "s")  # scored by one pass
    with engine.begin() as conn:
        conn.execute(t.requirements.delete().where(t.requirements.c.kind == "accepted"))
    put_conversation(engine, settings, "other", text=make_text("other"))  # and by the other

    def work(number: int) -> None:
        if number:
            score_live_responses(engine, make_orchestra(), settings)
        else:
            score_unscored(engine, make_orchestra(), settings, days=(DAY, DAY))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    [stored] = load_suites(engine)
    assert {row.evidence["suite"] for row in load_requirements(engine)} == {stored.status}


def test_a_new_version_of_the_generator_measures_again(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sources = measure(lambda source, suite: USABLE)
    put_conversation(engine, settings, "a")
    score_unscored(engine, make_orchestra(), settings)
    monkeypatch.setattr(suite_measurements, "GENERATOR_VERSION", "next")
    put_conversation(engine, settings, "b", text=make_text("b"))
    score_unscored(engine, make_orchestra(), settings)
    assert len(sources) == 2
    assert [row.generator_version for row in load_suites(engine)] == [GENERATOR_VERSION, "next"]


def test_a_suite_is_measured_as_what_its_origin_demands(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins: list[str] = []

    def record(source: str, suite: Suite, settings: Settings, *, origin: str) -> SuiteMeasurement:
        origins.append(origin)
        return USABLE

    monkeypatch.setattr(suite_measurements, "measure_suite", record)
    conversation = Conversation(
        session_id="s", messages=[], requirements=TEXT, source_code=SOURCE, test_suite=SUITE
    )
    for origin in ("recorded", "recorded", "attached"):
        with engine.begin() as conn:
            posted = replace(conversation, test_suite_origin=origin)
            upsert_conversation(conn, posted, settings=settings)
        score_unscored(engine, make_orchestra(), settings)
    assert origins == ["recorded", "attached"]  # posted again alike, nothing changes
    assert [row.origin for row in load_suites(engine)] == ["recorded", "attached"]
    assert [row.test_suite_origin for row in load_requirements(engine)] == ["attached"]
    with pytest.raises(InputError, match="attached, collected, recorded"), engine.begin() as conn:
        upsert_conversation(conn, replace(conversation, test_suite_origin="own"), settings=settings)


def test_texts_of_one_suite_wait_for_one_measurement(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]]
) -> None:
    sources = measure(lambda source, suite: USABLE)
    for number in range(12):
        put_conversation(engine, settings, f"s{number}", text=make_text(number))
    assert score_unscored(engine, make_orchestra(), settings).scored == 12
    assert len(sources) == 1 and len(load_suites(engine)) == 1


def test_a_scorer_stores_no_suite_of_a_text_that_was_erased_meanwhile(
    engine: sa.Engine, settings: Settings, measure: Callable[[Measured], list[str]]
) -> None:
    def erase_meanwhile(source: str, suite: Suite) -> SuiteMeasurement:
        with engine.begin() as conn:
            conn.execute(t.requirements.delete())
        return USABLE

    measure(erase_meanwhile)
    put_conversation(engine, settings, "a")
    score_unscored(engine, make_orchestra(), settings)
    assert load_suites(engine) == []

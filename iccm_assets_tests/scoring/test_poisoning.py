"""Wrong requirements teach nothing, on suites that test nothing and on those that do (J1, F1, T7)."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.filtering import FilterReport, filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.scoring.orchestra import load_orchestra
from iccm_assets.scoring.scoring_pass import ScoringReport, score_unscored
from iccm_assets.settings import EndpointSettings, Settings, load_settings
from iccm_assets.simulation.reconstructors.mock_endpoint import MockEndpoint
from iccm_assets_tests.factories.training_pools import HashEmbedder, write_canary_set

DAY = date(2026, 3, 1)
TOPICS = ("ember", "brick", "violin", "harbor", "lantern", "meadow", "copper", "orchid", "timber", "walnut")


def make_source(topic: str, number: int) -> str:
    return f"def adjust({topic}):\n    return {topic} + {number}\n"


def make_wrong_text(topic: str, number: int) -> str:
    return f"The function `adjust` shall take `{topic}`. It shall return `{topic}` minus {number + 294}."


def pytest_suite(*lines: str) -> dict[str, Any]:
    return {"kind": "pytest", "files": {"test_x.py": "\n".join(lines) + "\n"}}


def cases(*cases: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "cases", "cases": list(cases)}


VACUOUS = {
    "assert True": pytest_suite("def test_ok():", "    assert True"),
    "__name__.upper": cases({"call": "__name__.upper", "args": [], "expect": "IMPLEMENTATION"}),
}
# Further suites that the wrong implementation passes.
SIBLINGS = {
    "six times assert True": pytest_suite(*(f"def test_{n}():\n    assert True" for n in range(6))),
    "import only": pytest_suite(*(f"def test_{n}():\n    import implementation" for n in range(6))),
    "it exists": pytest_suite(
        "import implementation", *(f"def test_{n}():\n    assert implementation.adjust" for n in range(6))
    ),
    "it is called": pytest_suite(
        "from implementation import adjust", *(f"def test_{n}():\n    adjust({n})" for n in range(6))
    ),
    "it returns a number": pytest_suite(
        "from implementation import adjust",
        *(f"def test_{n}():\n    assert isinstance(adjust({n}), int)" for n in range(6)),
    ),
    "errors are swallowed": pytest_suite(
        "from implementation import adjust",
        *(
            f"def test_{n}():\n    try:\n        assert adjust({n}) == 0\n    except AssertionError: pass"
            for n in range(6)
        ),
    ),
    "a wrong call raises": cases(
        *({"call": "adjust", "args": [[n]], "raises": "TypeError"} for n in range(6))
    ),
    "two cases": cases(*({"call": "adjust", "args": [n], "expect": n + 49} for n in (1, 2))),
    "one input again and again": cases(*[{"call": "adjust", "args": [1], "expect": 50}] * 6),
    "what the text says": cases(*({"call": "adjust", "args": [n], "expect": n - 343} for n in range(6))),
}


def strong_suite(number: int) -> dict[str, Any]:
    return cases(*({"call": "adjust", "args": [n], "expect": n + number} for n in (3, 0, -4, 7, 2.5, 99)))


class Platform:
    """A database, an orchestra of endpoints that implement what a text says, and the steps to the pool."""

    def __init__(self, engine: sa.Engine, settings: Settings, endpoint: MockEndpoint) -> None:
        self.engine, self.settings, self.endpoint = engine, settings, endpoint
        self.orchestra = load_orchestra(endpoint.members, 2, EndpointSettings())
        self.count = 0

    def post(self, suite: Any, *, user: bool, number: int = 49) -> None:
        names = (f"session-{n}" for n in range(self.count * 50, (self.count + 1) * 50))
        topic = TOPICS[self.count % len(TOPICS)]
        self.count += 1
        conversation = Conversation(
            session_id=next(name for name in names if not is_in_holdout(name, 0.15)),
            user_id=f"user-{self.count}" if user else None,
            messages=[
                {"role": "user", "content": f"```python\n{make_source(topic, number)}```"},
                {"role": "assistant", "content": make_wrong_text(topic, number)},
            ],
            requirements=make_wrong_text(topic, number),
            source_code=make_source(topic, number),
            test_suite=suite,
            timestamp=datetime(DAY.year, DAY.month, DAY.day, 12, tzinfo=UTC),
            origin="gateway",
        )
        with self.engine.begin() as conn:
            upsert_conversation(conn, conversation, settings=self.settings)

    def run_day(self) -> tuple[ScoringReport, FilterReport, int]:
        """Score, filter and fold into the pool; return both reports and the size of the pool."""
        scores = score_unscored(self.engine, self.orchestra, self.settings, days=(DAY, DAY))
        filtered = filter_day(self.engine, DAY, self.settings, HashEmbedder())
        pool = rebuild_pool(self.engine, [DAY], self.settings, HashEmbedder())
        return scores, filtered, pool.pool_size

    def requests(self) -> int:
        return self.endpoint.config.request_counts.total()


@pytest.fixture
def platform(engine: sa.Engine, settings: Settings, tmp_path: Path) -> Any:
    path = write_canary_set(
        tmp_path / "canary.jsonl", [{"item": "x", "source_code": "y = 1", "requirements": "y shall be 1."}]
    )
    chosen = load_settings(home=settings.home, database_url=settings.database_url, canary_set=path)
    with MockEndpoint() as endpoint:
        yield Platform(engine, chosen, endpoint)


def test_fifty_poisoned_conversations_on_suites_that_test_nothing_teach_nothing(platform: Platform) -> None:
    for number in range(50):
        platform.post(list(VACUOUS.values())[number % 2], user=number % 4 < 2, number=49 + number)
    scores, filtered, pool = platform.run_day()
    assert (scores.scored, filtered.kept, pool, platform.requests()) == (0, 0, 0, 0)
    assert filtered.rejected == {"invalid_suite": 25, "weak_suite": 25}


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.slow
def test_other_suites_that_the_wrong_code_passes_teach_nothing(platform: Platform, name: str) -> None:
    platform.post(SIBLINGS[name], user=True)
    scores, filtered, pool = platform.run_day()
    assert (scores.scored, filtered.kept, pool, platform.requests()) == (0, 0, 0, 0)
    reason = "suite_mismatch" if name == "what the text says" else "weak_suite"
    assert filtered.rejected == {reason: 1}


def test_on_strong_suites_the_same_conversations_score_below_the_filters_limit(platform: Platform) -> None:
    for number in range(12):
        platform.post(strong_suite(49 + number), user=number % 2 == 0, number=49 + number)
    scores, filtered, pool = platform.run_day()
    assert scores.scored == 12 and max(scores.rates) < platform.settings.curation.min_test_pass_rate
    assert (filtered.kept, pool) == (0, 0)
    assert filtered.rejected == {"low_test_pass_rate": 12}
    assert platform.requests() == 12 * len(platform.orchestra.members)
    with platform.engine.connect() as conn:
        assert set(conn.execute(sa.select(t.test_suites.c.status)).scalars()) == {"usable"}


def test_right_requirements_on_the_same_strong_suites_do_teach(platform: Platform) -> None:
    """So it is the wrong text that is refused above."""
    platform.post(strong_suite(49), user=True)
    right = "The function `adjust` shall take `ember`. It shall return `ember` plus 49."
    with platform.engine.begin() as conn:
        conn.execute(t.requirements.update().values(text=right))
    scores, filtered, pool = platform.run_day()
    assert (scores.rates, filtered.kept, pool) == ((1.0,), 1, 1)
    with platform.engine.connect() as conn:
        row = conn.execute(sa.select(t.phase4_training_data)).one()
    assert (row.evidence, row.test_suite_origin) == ("cases", "attached")

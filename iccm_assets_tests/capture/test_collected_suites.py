"""Test files of a session become a suite of its source, under the module name that they import."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets.capture.claude_code.importer import TranscriptImporter
from iccm_assets.capture.collected_suites import collect_suite
from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.capture.messages import parse_messages
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings, load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.transcripts import TranscriptBuilder

SOURCE = (
    "def total(prices, tax=0):\n    result = sum(prices)\n"
    "    return result + tax if result > 10 else result\n"
)
TESTS = """from shop.prices import total
import pytest

@pytest.mark.parametrize(("prices", "tax", "expected"), [
    ([], 1, 0), ([5], 1, 5), ([10], 2, 10), ([10, 1], 2, 13), ([20], 0, 20), ([8, 4], 3, 15),
])
def test_total(prices, tax, expected):
    assert total(prices, tax) == expected
"""


def session(path: str, text: str, action: str = "written") -> list[dict[str, object]]:
    return [
        {"role": "user", "content": f"Write requirements for\n```python\n{SOURCE}```"},
        {"role": "assistant", "content": [{"type": "file", "path": path, "text": text, "action": action}]},
        {"role": "assistant", "content": "1. `total` shall return the sum of the prices."},
    ]


def collect(path: str, text: str, action: str = "written") -> dict[str, object] | None:
    return collect_suite(parse_messages(session(path, text, action)), SOURCE)


@pytest.mark.parametrize("action", ["written", "read", "attached"])
def test_a_test_file_that_imports_the_source_is_its_suite(action: str) -> None:
    document = collect("/srv/shop/tests/test_prices.py", TESTS, action)
    assert document is not None and set(document["files"]) == {"test_prices.py", "conftest.py"}
    suite = parse_suite(document)
    assert run_suite(SOURCE, suite, load_settings()).test_pass_rate == 1.0
    assert run_suite(SOURCE.replace("> 10", ">= 10"), suite, load_settings()).test_pass_rate == 0.0
    assert measure_suite(SOURCE, suite, load_settings(), origin="collected").status == "usable"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("test_other.py", TESTS.replace("total", "other")),
        ("prices.py", TESTS),
        ("test_prices.py", "def test_total(:\n"),
        ("test_prices.py", "from shop.prices import total\nVALUE = total([1])\n"),
        ("test_prices.py", TESTS.replace("from shop.prices", "from .prices")),
        ("test_prices.txt", TESTS),
    ],
)
def test_other_files_are_no_suite(path: str, text: str) -> None:
    assert collect(path, text) is None


def test_a_module_that_is_imported_whole_and_edited_later_counts_as_it_was_last() -> None:
    first = "import prices as p\ndef test_total():\n    assert p.total([1]) == 2\n"
    messages = [*session("test_prices.py", first), *session("test_prices.py", first.replace("== 2", "== 1"))]
    document = collect_suite(parse_messages(messages), SOURCE)
    assert run_suite(SOURCE, parse_suite(document), load_settings()).test_pass_rate == 1.0


def test_a_stored_conversation_has_its_collected_suite(engine: sa.Engine, settings: Settings) -> None:
    query = sa.text("select test_suite ->> 'kind', test_suite_origin from iccm.requirements")
    conversation = Conversation("s", session("tests/test_prices.py", TESTS))
    for _ in range(2):
        with engine.begin() as conn:
            upsert_conversation(conn, conversation, settings=settings)
            assert conn.execute(query).all() == [("pytest", "collected")]


def import_session(engine: sa.Engine, settings: Settings, with_tests: bool) -> list[str]:
    transcript = TranscriptBuilder("s")
    transcript.prompt(f"Write requirements for\n```python\n{SOURCE}```")
    if with_tests:
        transcript.use("Write", {"file_path": "/srv/shop/tests/test_prices.py", "content": TESTS})
    transcript.answer("1. `total` shall return the sum of the prices.\n2. It shall add the tax above 10.")
    results = TranscriptImporter(engine, settings).import_transcript(transcript.read())
    return [result.state for result in results]


def test_a_transcript_in_which_a_tool_wrote_tests_is_scored_on_them(
    engine: sa.Engine, settings: Settings
) -> None:
    query = sa.text("select test_suite ->> 'kind', test_suite_origin from iccm.requirements")
    assert import_session(engine, settings, with_tests=True) == ["new"]
    assert import_session(engine, settings, with_tests=True) == ["unchanged"]
    assert record_missing_suites(engine, settings).texts == 0
    with engine.connect() as conn:
        assert conn.execute(query).all() == [("pytest", "collected")]


def test_a_second_import_keeps_the_suite_that_was_recorded(engine: sa.Engine, settings: Settings) -> None:
    query = sa.text("select test_suite_origin, scored_at from iccm.requirements")
    import_session(engine, settings, with_tests=False)
    assert record_missing_suites(engine, settings).texts == 1
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.requirements set scored_at = now()"))
        before = conn.execute(query).all()
    assert import_session(engine, settings, with_tests=False) == ["unchanged"]
    with engine.connect() as conn:
        assert conn.execute(query).all() == before and before[0][0] == "recorded"


def test_a_collected_suite_that_tests_little_is_followed_by_a_recorded_one(
    engine: sa.Engine, settings: Settings
) -> None:
    little = "from shop.prices import total\n\ndef test_total():\n    assert total([]) == 0\n"
    for name, tests in (("little", little), ("enough", TESTS)):
        conversation = Conversation(
            session_id=name,
            messages=session("/srv/shop/tests/test_prices.py", tests),
            requirements=f"1. `total` shall return the sum of the prices, {name}.",
            source_code=SOURCE,
        )
        with engine.begin() as conn:
            upsert_conversation(conn, conversation, settings=settings)
    assert record_missing_suites(engine, settings).texts == 1
    assert record_missing_suites(engine, settings).texts == 0
    query = sa.text("select session_id, test_suite_origin from iccm.requirements order by id")
    with engine.connect() as conn:
        assert list(conn.execute(query)) == [("little", "recorded"), ("enough", "collected")]
        kept = conn.execute(sa.text("select origin, status from iccm.test_suites order by id")).all()
    assert sorted(map(tuple, kept)) == [
        ("collected", "usable"), ("collected", "weak"), ("recorded", "usable"),
    ]  # fmt: skip

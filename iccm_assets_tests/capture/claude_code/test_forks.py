"""A turn belongs to one session, whatever forked or resumed file holds it too, in any order of files."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.capture.claude_code.importer import ImportResult, TranscriptImporter, TranscriptPreview
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.transcripts import (
    ADD,
    ADD_REQUIREMENTS,
    SUB,
    SUB_REQUIREMENTS,
    TranscriptBuilder,
    ask,
)

SHORTER = "The function add shall return its sum."
COPIES = {
    "fork": {"flagged": True},
    "fork with new ids": {"flagged": True, "new_uuids": True},
    "resume": {"flagged": False},
}


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def load(engine, settings):
    def load_files(*transcripts: TranscriptBuilder, runs: int = 1) -> dict[str, ImportResult]:
        """Import files, in one run or each in its own; return the last result of each session."""
        results: dict[str, ImportResult] = {}
        importer = TranscriptImporter(engine, settings)
        for transcript in transcripts:
            importer = importer if runs == 1 else TranscriptImporter(engine, settings)
            for result in importer.import_transcript(transcript.read()):
                results[result.session_id] = result
        return results

    return load_files


def examples(engine: sa.Engine) -> dict[str, tuple[str | None, str]]:
    """The accepted requirements by session, with the source in the metadata."""
    statement = """
        select r.session_id, c.metadata ->> 'source_code', r.text from iccm.requirements r
        join iccm.conversations c using (session_id) where r.kind = 'accepted'
    """
    with engine.connect() as conn:
        return {name: (source, text) for name, source, text in conn.execute(sa.text(statement))}


def stored(engine: sa.Engine) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.text("select * from iccm.conversations order by session_id")))


def parent() -> TranscriptBuilder:
    transcript = TranscriptBuilder("parent")
    transcript.prompt(ask(ADD))
    transcript.answer(ADD_REQUIREMENTS)
    return transcript


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("copy", ["fork", "fork with new ids"])
@pytest.mark.parametrize("child_first", [True, False])
def test_a_fork_without_new_requirements_is_no_example(load, engine, runs, copy, child_first):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Thanks.")
    second.answer("You are welcome.")
    files = [second, first] if child_first else [first, second]
    results = load(*files, runs=runs)
    assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS)}
    assert results["child"].continues == "parent" and not results["child"].requirements
    assert results["child"].reason == "no new requirements since it continued session parent"
    assert {row.session_id: len(row.content) for row in stored(engine)} == {"child": 2, "parent": 2}


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("child_first", [True, False])
def test_a_resumed_copy_without_marks_gives_one_example(load, engine, runs, child_first):
    first = parent()
    second = first.fork("child", flagged=False)
    second.prompt("Thanks.")
    second.answer("You are welcome.")
    load(*([second, first] if child_first else [first, second]), runs=runs)
    assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS)}
    assert {row.session_id: len(row.content) for row in stored(engine)} == {"child": 2, "parent": 2}


@pytest.mark.parametrize("copy", COPIES)
def test_a_fork_with_new_requirements_uses_the_source_of_its_parent(load, engine, copy):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    load(first, second)
    assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS), "child": (ADD, SHORTER)}
    assert len(stored(engine)[0].content) == 2


@pytest.mark.parametrize("copy", COPIES)
def test_a_fork_with_a_source_of_its_own_needs_nothing_of_its_parent(load, engine, copy):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt(ask(SUB))
    second.answer(SUB_REQUIREMENTS)
    load(first, second)
    assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS), "child": (None, SUB_REQUIREMENTS)}


@pytest.mark.parametrize("copy", COPIES)
def test_importing_again_in_any_order_changes_nothing(load, engine, copy):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    load(first, second)
    before = stored(engine)
    for files in ([second, first], [second], [first], [first, second]):
        assert {result.state for result in load(*files).values()} == {"unchanged"}
    assert stored(engine) == before


def test_a_fork_with_a_secret_in_its_context_is_redacted_and_does_not_change(load, engine):
    first = TranscriptBuilder("parent")
    first.prompt(ask(f'PASSWORD = "tr0ub4dor&3x"\n{ADD}'))
    first.answer(ADD_REQUIREMENTS)
    second = first.fork("child")
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    load(first, second)
    before = stored(engine)
    assert "tr0ub4dor" not in str(before) and "<PASSWORD>" in before[0].metadata["source_code"]
    assert {result.state for result in load(second, first).values()} == {"unchanged"}
    assert stored(engine) == before


@pytest.mark.parametrize("copy", COPIES)
def test_siblings_give_one_example_in_every_order_and_do_not_change(load, engine, copy):
    first = parent()
    others = []
    for name in ("one", "two"):
        other = first.fork(name, **COPIES[copy])
        other.prompt(f"Thanks from {name}.")
        others.append(other)
    for files in itertools.permutations([first, *others]):
        load(*files)
        before = stored(engine)
        assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS)}
        assert {result.state for result in load(*files, runs=2).values()} == {"unchanged"}
        assert stored(engine) == before and [len(row.content) for row in before] == [1, 2, 1]
        with engine.begin() as conn:
            conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))


@pytest.mark.parametrize("copy", ["fork", "resume"])
def test_forks_of_forks_give_the_same_rows_in_every_order(load, engine, copy):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    third = second.fork("grandchild", **COPIES[copy])
    third.prompt("And in other words?")
    third.answer("The function add must return what a and b add up to.")
    outcomes = []
    for files in itertools.permutations([first, second, third]):
        load(*files, runs=2)
        outcomes.append(
            [(row.session_id, row.content, row.metadata, row.timestamp) for row in stored(engine)]
        )
        with engine.begin() as conn:
            conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))
    assert all(rows == outcomes[0] for rows in outcomes)
    assert [metadata.get("source_code") for _, _, metadata, _ in outcomes[0]] == [ADD, ADD, None]


def test_each_fork_of_a_fork_gives_its_own_example(load, engine):
    first = parent()
    second = first.fork("child", flagged=False)
    second.prompt(ask(SUB))
    second.answer(SUB_REQUIREMENTS)
    third = second.fork("grandchild", flagged=False)
    third.prompt("Thanks.")
    third.answer("You are welcome.")
    load(first, second, third)
    assert examples(engine) == {"parent": (None, ADD_REQUIREMENTS), "child": (None, SUB_REQUIREMENTS)}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_without_a_turn_of_its_own_is_not_stored(load, engine, copy):
    first = parent()
    results = load(first, first.fork("child", **COPIES[copy]))
    assert (results["child"].state, results["child"].continues) == ("copy", "parent")
    assert [row.session_id for row in stored(engine)] == ["parent"]


def test_the_parent_may_go_on_after_the_fork(load, engine):
    first = parent()
    second = first.fork("child", flagged=False)
    second.prompt("Thanks.")
    second.answer("You are welcome.")
    load(first, second)
    first.prompt(ask(SUB))
    first.answer(SUB_REQUIREMENTS)
    assert load(first)["parent"].state == "changed"
    assert examples(engine) == {"parent": (None, SUB_REQUIREMENTS)}
    assert {row.session_id: len(row.content) for row in stored(engine)} == {"child": 2, "parent": 4}


def test_turns_that_the_fork_brought_first_do_not_come_twice(load, engine):
    first = parent()
    load(first)
    first.prompt(ask(SUB))
    first.answer(SUB_REQUIREMENTS)
    second = first.fork("child", flagged=False)
    second.prompt("Thanks.")
    load(second)
    load(first)
    assert examples(engine) == {"parent": (None, SUB_REQUIREMENTS)}
    assert {row.session_id: len(row.content) for row in stored(engine)} == {"child": 1, "parent": 4}


def test_sessions_with_the_same_first_prompt_are_not_related(load, engine):
    files = []
    for name in ("one", "two", "three"):
        transcript = TranscriptBuilder(name, uuids="u")
        transcript.prompt(ask(ADD))
        transcript.answer(f"Which style, {name}?")
        transcript.prompt("Short")
        transcript.answer(ADD_REQUIREMENTS)
        files.append(transcript)
    assert {result.continues for result in load(*files).values()} == {None}
    assert set(examples(engine)) == {"one", "two", "three"}


def test_the_source_of_an_erased_parent_does_not_return(load, engine):
    first = parent()
    load(first)
    erase(engine, DataSubject("session", "parent"), actor="test")
    second = first.fork("child")
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    load(second)
    child = next(row for row in stored(engine) if row.session_id == "child")
    assert "source_code" not in child.metadata and ADD not in str(child)


@pytest.mark.parametrize("copy", COPIES)
def test_turns_of_an_erased_parent_do_not_return_with_its_copies(load, engine, copy):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    load(first, second)
    erase(engine, DataSubject("session", "parent"), actor="test")
    load(second)
    child = next(row for row in stored(engine) if row.session_id == "child")
    assert ADD not in str(child) and len(child.content) == 2 and "parent" not in str(child.metadata)


def test_a_longer_file_that_was_rewound_meanwhile_loses_the_dead_branch(load, engine):
    transcript = parent()
    transcript.prompt(ask(SUB), parent=None)
    transcript.lines, later = transcript.lines[:2], transcript.lines
    load(transcript)
    before = transcript
    after = TranscriptBuilder("parent")
    after.lines = later
    assert load(after)["parent"].state == "changed"
    assert [message["content"] for message in stored(engine)[0].content] == [ask(SUB)]
    assert load(before)["parent"].state == "unchanged"
    with engine.begin() as conn:
        conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))
    load(after, before)
    assert [message["content"] for message in stored(engine)[0].content] == [ask(SUB)]


@pytest.mark.parametrize("older_first", [True, False])
def test_a_branch_that_was_taken_up_again_is_live_again(load, engine, older_first):
    older = parent()
    start = older.last
    first = older.prompt("first")
    older.prompt("second", parent=start)
    newer = TranscriptBuilder("parent")
    newer.lines, newer._count = list(older.lines), older._count
    newer.prompt("on with the first", parent=first)
    load(*([older, newer] if older_first else [newer, older]))
    contents = [message["content"] for message in stored(engine)[0].content]
    assert contents[2:] == ["first", "on with the first"]


def test_a_conversation_that_an_older_version_imported_is_replaced(load, engine):
    load(parent())
    change = """
        update iccm.conversations set metadata = (metadata - 'transcript')
            || '{"turns": [["m0", null], ["m1", null]], "note": 1}'
    """
    with engine.begin() as conn:
        conn.execute(sa.text(change))
    load(parent())
    (row,) = stored(engine)
    assert len(row.content) == 2 and row.metadata["note"] == 1 and "transcript" in row.metadata


@pytest.mark.parametrize("parent_first", [True, False])
@pytest.mark.parametrize("copy", COPIES)
def test_a_preview_sees_the_forks_in_its_files(settings, copy, parent_first):
    first = parent()
    second = first.fork("child", **COPIES[copy])
    second.prompt("Say it in fewer words.")
    second.answer(SHORTER)
    third = first.fork("other", **COPIES[copy])
    third.prompt("Thanks.")
    preview = TranscriptPreview(settings)
    for transcript in (first, second, third) if parent_first else (second, third, first):
        preview.add_transcript(transcript.read())
    exchanges = {session.session_id: session.exchange for session in preview.sessions()}
    assert (exchanges["parent"].source, exchanges["parent"].requirements) == (ADD, ADD_REQUIREMENTS)
    assert (exchanges["child"].source, exchanges["child"].requirements) == (ADD, SHORTER)
    assert (
        exchanges["other"].requirements is None and "since it continued session" in exchanges["other"].reason
    )

"""A turn of Codex belongs to one session, whatever resumed or forked rollout repeats it, in any order."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from iccm_assets.capture.claude_code.importer import ImportResult, TranscriptImporter, TranscriptPreview
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.codex_rollouts import RolloutBuilder
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, SUB, SUB_REQUIREMENTS, ask

SHORTER = "The function add shall return its sum."


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def load(engine, settings):
    def load_files(*rollouts: RolloutBuilder) -> dict[str, ImportResult]:
        """Import files, each in a run of its own; return the last result of each session."""
        results: dict[str, ImportResult] = {}
        for rollout in rollouts:
            importer = TranscriptImporter(engine, settings, origin="codex")
            results |= {result.session_id: result for result in importer.import_transcript(rollout.read())}
        return results

    return load_files


def parent(**options) -> RolloutBuilder:
    rollout = RolloutBuilder("parent", **options)
    rollout.prompt(ask(ADD))
    rollout.reasoning()
    rollout.answer(ADD_REQUIREMENTS)
    return rollout


def stored(engine: sa.Engine) -> dict[str, list[str]]:
    """The texts of each stored session."""
    with engine.connect() as conn:
        rows = conn.execute(sa.text("select session_id, origin, content from iccm.conversations"))
        return {
            f"{row.session_id} {row.origin}": [message["content"] for message in row.content] for row in rows
        }


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("child_first", [False, True])
def test_a_rollout_that_repeats_another_one_keeps_its_own_turns_only(load, engine, flat, later, child_first):
    first = parent(flat=flat)
    second = first.copy("child", later=later)
    second.prompt("Shorter, please.")
    second.answer(SHORTER)
    results = load(*((second, first) if child_first else (first, second)), second)
    assert stored(engine) == {
        "parent codex": [ask(ADD), ADD_REQUIREMENTS],
        "child codex": ["Shorter, please.", SHORTER],
    }
    assert results["child"].requirements and results["child"].source
    assert load(first, second) == {
        name: ImportResult(**{**vars(result), "state": "unchanged"})
        for name, result in load(first, second).items()
    }


def test_a_chain_of_resumes_has_every_word_once_in_any_order(load, engine):
    first = parent()
    second = first.copy("child", forked_from_id="parent")
    second.prompt(ask(SUB))
    second.answer(SUB_REQUIREMENTS)
    third = second.copy("grandchild", forked_from_id="child")
    third.prompt("Thanks.")
    expected = {
        "parent codex": [ask(ADD), ADD_REQUIREMENTS],
        "child codex": [ask(SUB), SUB_REQUIREMENTS],
        "grandchild codex": ["Thanks."],
    }
    for order in itertools.permutations((first, second, third)):
        load(*order)
        assert stored(engine) == expected, [rollout.session for rollout in order]
        with engine.begin() as conn:
            conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))


def test_a_rollout_that_grew_extends_its_session_and_one_that_did_not_changes_nothing(load, engine):
    rollout = parent()
    assert load(rollout)["parent"].state == "new"
    assert load(rollout)["parent"].state == "unchanged"
    rollout.add_meta("parent")  # as a resumed session writes it
    rollout.prompt("Shorter, please.")
    rollout.answer(SHORTER)
    assert load(rollout)["parent"].state == "changed"
    assert stored(engine) == {"parent codex": [ask(ADD), ADD_REQUIREMENTS, "Shorter, please.", SHORTER]}


def test_what_was_rolled_back_after_an_import_leaves_the_session(load, engine):
    rollout = parent()
    rollout.prompt("Longer, please.")
    rollout.answer("No.")
    load(rollout)
    rollout.event("thread_rolled_back", num_turns=1)
    rollout.prompt("Shorter, please.")
    load(rollout)
    assert stored(engine) == {"parent codex": [ask(ADD), ADD_REQUIREMENTS, "Shorter, please."]}


def test_a_prompt_that_is_sent_again_after_a_rollback_is_read_and_a_fork_of_it_repeats_it(load, engine):
    rollout = parent()
    rollout.prompt("Shorter, please.")
    rollout.answer("No.")
    load(rollout)
    rollout.event("thread_rolled_back", num_turns=1)
    rollout.prompt("Shorter, please.")
    rollout.answer(SHORTER)
    load(rollout)
    fork = parent().copy("fork")  # a fork may leave out what was rolled back
    fork.prompt("Shorter, please.")
    fork.answer(SHORTER)
    fork.prompt("Thanks.")
    load(fork)
    assert stored(engine) == {
        "parent codex": [ask(ADD), ADD_REQUIREMENTS, "Shorter, please.", SHORTER],
        "fork codex": ["Thanks."],
    }


def test_two_sessions_that_begin_with_the_same_words_are_two(load, engine):
    first = parent()
    second = RolloutBuilder("other")
    second.prompt(ask(ADD))
    second.reasoning(secret="gOTHER")
    second.answer(ADD_REQUIREMENTS)
    load(first, second)
    assert stored(engine) == {
        "parent codex": [ask(ADD), ADD_REQUIREMENTS],
        "other codex": [ask(ADD), ADD_REQUIREMENTS],
    }


def test_a_dry_run_shows_what_an_import_stores(settings):
    first = parent()
    second = first.copy("child")
    second.prompt("Shorter, please.")
    second.answer(SHORTER)
    preview = TranscriptPreview(settings)
    for rollout in (second, first):
        preview.add_transcript(rollout.read())
    shown = {session.session_id: session.exchange for session in preview.sessions()}
    assert (shown["parent"].source, shown["parent"].requirements) == (ADD, ADD_REQUIREMENTS)
    assert (shown["child"].source, shown["child"].requirements) == (ADD, SHORTER)


def test_nothing_of_an_erased_session_returns_in_a_fork_of_it(load, engine, settings):
    first = parent()
    second = first.copy("child", forked_from_id="parent")
    second.prompt("Shorter, please.")
    load(first)
    erase(engine, DataSubject("session", "parent"), actor="test")
    assert load(second)["child"].state == "erased"
    assert not any("child" in name for name in stored(engine))

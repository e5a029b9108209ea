"""No source is paired with requirements of another one, or with talk."""

# ruff: noqa: E501 (a sample per line is easier to compare than a wrapped text)
from __future__ import annotations

import pytest

from iccm_assets.capture.extraction import Exchange, extract_exchange, extract_exchanges
from iccm_assets.capture.injected_text import remove_injected_text
from iccm_assets_tests.factories.exchanges import ADD_ANSWER, FENCED_SUB, SUB_ANSWER, TWO_MODULES, talk
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD

THREE = "def add(a, b, c):\n    return a + b + c"
THREE_ANSWER = "`add` shall return the sum of `a`, `b` and `c`."


def show(text: str, action: str) -> dict[str, str]:
    """A file in a message."""
    return {"type": "file", "path": "add.py", "text": text, "action": action}


def test_requirements_of_an_earlier_module_go_with_its_source() -> None:
    answer = "`add` shall return the sum of `a` and `b`, also of floats."
    messages = [*TWO_MODULES, *talk("Back to the first: mention floats", answer)]
    assert extract_exchange(messages, {}) == Exchange(ADD, answer)
    assert [item.source for item in extract_exchanges(messages, {})] == [
        "def sub(a, b):\n    return a - b",
        ADD,
    ]


def test_what_follows_an_earlier_module_changes_that_one() -> None:
    messages = [
        *TWO_MODULES,
        *talk("Shorter add, please", "`add` shall add.", "In a sentence", "It shall return the sum."),
    ]
    assert extract_exchange(messages, {}) == Exchange(ADD, "It shall return the sum.")


def test_an_item_that_begins_with_reads_is_an_item() -> None:
    answer = "1. Reads a file.\n2. Must return its sum."
    messages = talk(FENCED_ADD, answer, "Change requirement 1: two files", "1. Reads two files.")
    assert extract_exchange(messages, {}).requirements == answer.replace("a file", "two files")


def test_requirements_without_a_name_go_with_the_last_module() -> None:
    messages = [*TWO_MODULES, *talk("Shorter", "It shall return the difference.")]
    assert extract_exchange(messages, {}).source == "def sub(a, b):\n    return a - b"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Thanks. How do I deploy?", "You should run make. The server will restart."),
        ("Thanks!", "The next release will be out on Monday. The package has to be published first."),
        ("How do I go on?", "Plan:\n1. Read the module\n2. Extract the helper\n3. Run the tests"),
        (f"Is this slow?\n{FENCED_SUB}", "No. `sub` will be fast; the function should take constant time."),
        (f"Why does this fail?\n{FENCED_SUB}", "`sub` must not be called with text. The caller should check it first."),
        (f"Review this:\n{FENCED_SUB}", "- `sub` should have type hints.\n- The parameter `a` should be renamed."),
        (f"And?\n{FENCED_SUB}", "Code review:\n- `sub` should have type hints.\n- The parameter `a` should be renamed."),
    ],
)  # fmt: skip
def test_talk_after_the_requirements_replaces_nothing(question: str, answer: str) -> None:
    assert extract_exchange(talk(FENCED_ADD, ADD_ANSWER, question, answer), {}) == Exchange(ADD, ADD_ANSWER)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Shorter", "The function should return the total of a and b."),
        ("Fix the wording", "`add` should return the total of both arguments."),
        ("Is that all?", "- `add` should take `a` and `b`.\n- `add` should fail for text."),
        ("Everyday words, please", "`add` must give the total."),
        ("How should it behave for text?", "It must give the total; for text it must fail with TypeError."),
    ],
)
def test_new_requirements_in_everyday_words_replace_the_former(question: str, answer: str) -> None:
    assert extract_exchange(talk(FENCED_ADD, ADD_ANSWER, question, answer), {}) == Exchange(ADD, answer)


@pytest.mark.parametrize(
    "code",
    [
        "port = 80\n\ndef serve():\n    return port",
        "test: int = 80\n\ndef serve():\n    return test",
        '"""Run the server."""\n\ndef serve():\n    return 80',
        "# Test server\ndef serve():\n    return 80",
    ],
)
def test_code_alone_asks_for_requirements(code: str) -> None:
    answer = "`serve` must return the port."
    assert extract_exchange(talk(code, answer), {}) == Exchange(code, answer)


def test_a_file_that_a_tool_edits_counts_in_its_last_version() -> None:
    edited = [{"type": "text", "text": "Done."}, show(THREE, "written")]
    messages = talk([{"type": "text", "text": "A third argument"}, show(ADD, "attached")], edited)
    messages += talk("Requirements of add.py", THREE_ANSWER)
    assert extract_exchange(messages, {}) == Exchange(THREE, THREE_ANSWER)
    messages = talk(
        [{"type": "text", "text": "Requirements"}, show(ADD, "attached")], ADD_ANSWER, "A third", edited
    )
    assert extract_exchange(messages, {}) == Exchange(ADD, ADD_ANSWER)
    messages += talk("Update the requirements", THREE_ANSWER)
    assert extract_exchange(messages, {}) == Exchange(THREE, THREE_ANSWER)


def test_a_file_that_only_a_tool_writes_is_no_source() -> None:
    implemented = [
        {"type": "text", "text": "Done."},
        show("def add(*numbers):\n    return sum(numbers)", "written"),
    ]
    messages = talk(FENCED_ADD, ADD_ANSWER, "Implement it", implemented, "Shorter", "`add` shall add.")
    assert extract_exchange(messages, {}) == Exchange(ADD, "`add` shall add.")


@pytest.mark.parametrize(
    "text",
    [
        f"{FENCED_ADD}\n```\n[server]\nport = 80\n```",
        f"```\n[tool.x]\na=1\n# note\n[b]\nc: 2\n```\n{FENCED_ADD}",
        f"{FENCED_ADD} write the requirements",
        f"<ide_selection>The user selected the lines 1 to 2 from /w/add.py:\n{ADD}\n\nThis may or may not be related to the current task.</ide_selection>",
    ],
)  # fmt: skip
def test_nothing_around_the_code_becomes_a_part_of_it(text: str) -> None:
    assert extract_exchange(talk(text, ADD_ANSWER), {}) == Exchange(ADD, ADD_ANSWER)


@pytest.mark.parametrize(
    "first_line",
    [
        "Context from the previous session:",
        "Summary of previous work:",
        "1. Primary Request and Intent:",
        "The following is a recap of the earlier conversation.",
        "Here's what we did so far in this session:",
        "[Conversation compacted]",
        "Session handoff: continue from here.",
    ],
)
def test_summaries_in_other_words_are_not_the_users(first_line: str) -> None:
    assert not remove_injected_text(f"{first_line}\n{FENCED_SUB}").strip()
    messages = talk(
        FENCED_ADD, "Which style?", f"{first_line}\n{FENCED_SUB}", "Ok.", "Short", "It shall return it."
    )
    assert extract_exchange(messages, {}).source == ADD
    assert extract_exchange(talk(FENCED_SUB, SUB_ANSWER), {}).requirements == SUB_ANSWER

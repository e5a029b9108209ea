"""How far answers are compared with earlier exchanges before each one counts as a whole text (C3)."""

from __future__ import annotations

import pytest

from iccm_assets.capture.extraction import Exchange, extract_exchange
from iccm_assets_tests.factories.exchanges import ADD_ANSWER, SUB, TWO_MODULES, talk
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD

LIMIT = "iccm_assets.capture.extraction._MAX_COMPARED"
FIRST = "1. `add` shall take `a` and `b`."
NUMBERED = f"{FIRST}\n2. `add` shall return `a` plus `b`."
EXACT = "2. `add` shall return the exact sum."
PRINT = "2. `add` shall print the sum."


@pytest.mark.parametrize(("spare", "requirements"), [(1, f"{FIRST}\n{PRINT}"), (0, PRINT)])
def test_items_are_merged_while_less_than_the_limit_was_compared(monkeypatch, spare, requirements):
    monkeypatch.setattr(LIMIT, len(NUMBERED) + spare)
    messages = talk(FENCED_ADD, NUMBERED, "Make 2 exact.", EXACT, "Print, please.", PRINT)
    assert extract_exchange(messages, {}) == Exchange(ADD, requirements)


@pytest.mark.parametrize(("length", "merged"), [(1_500_000, True), (2_200_000, False)])
def test_two_million_characters_are_compared(length, merged):
    long = f"1. `add` shall take {'numbers ' * (length // 8)}.\n2. `add` shall return `a` plus `b`."
    messages = talk(FENCED_ADD, long, "Make 2 exact.", EXACT, "Print, please.", PRINT)
    assert extract_exchange(messages, {}) == Exchange(
        ADD, long.replace("return `a` plus `b`", "print the sum") if merged else PRINT
    )


@pytest.mark.parametrize(("spare", "source"), [(1, SUB), (0, ADD)])
def test_an_earlier_module_is_found_while_less_than_the_limit_was_compared(monkeypatch, spare, source):
    monkeypatch.setattr(LIMIT, len(ADD) + len(SUB) + spare)
    messages = [
        *TWO_MODULES,
        *talk("Shorter add", "`add` shall add.", "Shorter sub", "`sub` shall subtract."),
    ]
    assert extract_exchange(messages, {}) == Exchange(source, "`sub` shall subtract.")


@pytest.mark.parametrize(("spare", "is_refused"), [(1, True), (0, False)])
def test_talk_is_refused_while_less_than_the_limit_was_compared(monkeypatch, spare, is_refused):
    question, remark = "Thanks. How do I deploy?", "You should run make. The server will restart."
    monkeypatch.setattr(LIMIT, len(f"{ADD}\n{ADD_ANSWER}{question}") + spare)
    messages = talk(FENCED_ADD, ADD_ANSWER, question, remark, "And then?", remark)
    assert extract_exchange(messages, {}) == Exchange(ADD, ADD_ANSWER if is_refused else remark)


@pytest.mark.parametrize(
    ("answer", "is_refused"),
    [
        ("The caller must return both values whenever we send somebody twice.", False),
        ("The caller must return both values whenever we send somebody else twice.", True),
    ],
)
def test_everyday_words_replace_requirements_with_which_they_share_a_fifth(answer, is_refused):
    messages = talk(FENCED_ADD, ADD_ANSWER, "Shorter", answer)
    assert extract_exchange(messages, {}) == Exchange(ADD, ADD_ANSWER if is_refused else answer)


@pytest.mark.parametrize(("named", "changed"), [(1, 1), (0, 20)])
def test_an_answer_changes_one_of_the_last_twenty_modules(named, changed):
    sources = [f"def f{number}():\n    return {number}" for number in range(21)]
    turns = [
        (f"```python\n{text}\n```", f"`f{number}` shall return it.") for number, text in enumerate(sources)
    ]
    answer = f"`f{named}` shall return its number."
    messages = talk(*(text for turn in turns for text in turn), "Shorter", answer)
    assert extract_exchange(messages, {}) == Exchange(sources[changed], answer)

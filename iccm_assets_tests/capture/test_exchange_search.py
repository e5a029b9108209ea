"""Which exchange a given source, text or digest belongs to, and what a turn's answers are (C3)."""

from __future__ import annotations

import pytest

from iccm_assets.capture.extraction import (
    Exchange,
    extract_exchange,
    extract_exchanges,
    find_source,
    find_sources,
    sha256_of_text,
)
from iccm_assets_tests.factories.exchanges import ADD_ANSWER, FENCED_SUB, SUB, SUB_ANSWER, TWO_MODULES, talk
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD

MUL = "def mul(a, b):\n    return a * b"
OPEN = [*TWO_MODULES, *talk(f"```python\n{MUL}\n```")]


def answers(*texts: str) -> list[dict[str, object]]:
    """A question and a turn of several answers."""
    return [*talk(FENCED_ADD), *({"role": "assistant", "content": text} for text in texts)]


@pytest.mark.parametrize(
    ("messages", "requirements", "source"),
    [
        (TWO_MODULES, ADD_ANSWER.replace(" ", "\n "), ADD),
        (talk(FENCED_ADD, "It shall sum.", FENCED_SUB, SUB_ANSWER), "It shall\n sum.", ADD),
        (TWO_MODULES, "It shall work.", SUB),
        (TWO_MODULES, "`add` shall work.", ADD),
        (OPEN, "It shall work.", MUL),
        (OPEN, "`mul` shall work.", MUL),
        (OPEN, "`sub` shall work.", SUB),
        (talk("no code"), "It shall work.", None),
    ],
)
def test_a_given_text_belongs_to_the_exchange_that_gave_it_or_whose_source_it_names(
    messages, requirements, source
):
    exchange = extract_exchange(messages, {"requirements": requirements})
    assert (exchange.source, exchange.requirements) == (source, requirements)


@pytest.mark.parametrize(
    ("messages", "source", "requirements"),
    [
        (TWO_MODULES, ADD.replace("    ", "\t"), ADD_ANSWER),
        (TWO_MODULES, "\nreturn a + b\n\n", ADD_ANSWER),
        (TWO_MODULES, "another = 1", SUB_ANSWER),
        (OPEN, MUL, None),
        (OPEN, f"\n\n{MUL}\n\n", None),
        (OPEN, "another = 1", SUB_ANSWER),
        (talk("no code"), ADD, None),
    ],
)
def test_a_given_source_belongs_to_the_last_exchange_that_shows_it(messages, source, requirements):
    exchange = extract_exchange(messages, {"source_code": source})
    assert (exchange.source, exchange.requirements) == (source, requirements)


def test_what_a_follow_up_shows_belongs_to_the_exchange_that_it_continues():
    follow_up = talk("It is called as x = add(1, 2). Shorter, please.", "`add` shall add.")
    messages = [*talk(FENCED_ADD, ADD_ANSWER), *follow_up, *talk(FENCED_SUB, SUB_ANSWER)]
    assert extract_exchange(messages, {"source_code": "x = add(1, 2)"}).requirements == "`add` shall add."


@pytest.mark.parametrize(
    ("messages", "metadata", "reason"),
    [
        ([], {}, "no source code, no requirements (there is no answer)"),
        (talk(FENCED_ADD, " \n"), {}, "no requirements (there is no answer)"),
        (talk("It?", "It shall be 1."), {}, "no source code"),
        (talk(FENCED_ADD), {"requirements": "It shall be 1."}, ""),
        (
            talk(FENCED_ADD, "Fine."),
            {"source_code": ADD},
            "no requirements (it does not say what software has to do)",
        ),
    ],
)
def test_what_an_exchange_lacks_is_said(messages, metadata, reason):
    assert extract_exchange(messages, metadata).reason == reason


def test_an_answer_to_another_question_about_new_code_is_no_requirements():
    answer = "`sub` must not be called with text. The caller should check it first."
    exchange = extract_exchange(talk(f"Why does this fail?\n{FENCED_SUB}", answer), {})
    assert exchange == Exchange(SUB, None, "no requirements (it answers no request for requirements)")


@pytest.mark.parametrize(("length", "is_chosen"), [(45, True), (44, False), (30, False), (60, True)])
def test_the_last_answer_of_a_turn_counts_if_it_has_half_the_length_of_the_longest(length, is_chosen):
    first = "`add` shall return the sum of its two numbers".ljust(89, "s") + "."
    second = "`add` shall return a".ljust(length - 1, "a") + "."
    assert (len(first), len(second)) == (90, length)
    assert extract_exchange(answers(first, second), {}).requirements == (second if is_chosen else first)


def test_a_message_of_spaces_ends_no_turn():
    short = "`add` shall add."
    messages = [*answers(ADD_ANSWER), *talk(" \n", short)]
    assert extract_exchange(messages, {}).requirements == ADD_ANSWER
    messages = [*answers(ADD_ANSWER), *talk("Shorter", short)]
    assert extract_exchange(messages, {}).requirements == short


@pytest.mark.parametrize("source", ["\n  x = 1  \n\n", "\n  x = 1  \n", "  x = 1  ", "x = 1"])
def test_a_digest_is_found_with_other_line_breaks_around_the_source(source):
    metadata = {"request_sources": ["\n  x = 1  \n\n", 5]}
    assert find_source([], metadata, sha256_of_text(source)) == source
    assert find_source([], metadata, None) is None and find_source([], {}, sha256_of_text(source)) is None


@pytest.mark.parametrize(
    ("messages", "source"),
    [
        (talk("  x = 1  "), "x = 1\n"),
        (talk(f"Look:\n{FENCED_ADD}"), ADD),
        (talk("[Conversation compacted]\nx = 1"), "[Conversation compacted]\nx = 1"),
        (talk([{"type": "file", "path": "notes.txt", "text": "no code", "action": "attached"}]), "no code"),
    ],
)
def test_a_digest_is_found_in_every_text_of_a_message(messages, source):
    assert find_source(messages, {}, sha256_of_text(source)) == source


def test_a_source_is_found_that_only_a_tool_wrote_for_an_answer():
    three = "def add(a, b, c):\n    return a + b + c"
    files = [
        [{"type": "text", "text": text}, {"type": "file", "path": "add.py", "text": code, "action": action}]
        for text, code, action in (("A third argument", ADD, "attached"), ("Done.", three, "written"))
    ]
    messages = talk(*files, "Requirements of add.py", "`add` shall return the sum of `a`, `b` and `c`.")
    assert extract_exchange(messages, {}).source == three
    assert find_source(messages, {}, sha256_of_text(three)) == three


def test_a_conversation_is_read_only_until_all_digests_are_found(monkeypatch):
    read = []

    def digest(text: str) -> str:
        read.append(text)
        return sha256_of_text(text)

    monkeypatch.setattr("iccm_assets.capture.extraction.sha256_of_text", digest)
    metadata = {"source_code": "x = 1", "request_sources": ["y = 2", "z = 3"]}
    sources = {sha256_of_text(text): text for text in ("x = 1", "y = 2")}
    assert find_sources(TWO_MODULES, metadata, {*sources, None}) == sources
    assert set(read) == {"x = 1", "x = 1\n", "y = 2", "y = 2\n"}


PART = "What about this line?\n```python\n    return a {} b\n```"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        # The code of an earlier exchange, shown again, begins a new one; a part of the last code does not.
        (
            [*TWO_MODULES, *talk(FENCED_ADD, "`add` shall add.")],
            [(ADD, ADD_ANSWER), (SUB, SUB_ANSWER), (ADD, "`add` shall add.")],
        ),
        (
            [*TWO_MODULES, *talk(PART.format("-"), "`sub` shall subtract.")],
            [(ADD, ADD_ANSWER), (SUB, "`sub` shall subtract.")],
        ),
        (
            talk(FENCED_ADD, ADD_ANSWER, "Shorter", "`add` shall add.", PART.format("+"), "`add` shall sum."),
            [(ADD, "`add` shall sum.")],
        ),
        (
            talk("It?", "It shall be 1.", FENCED_ADD, ADD_ANSWER),
            [(None, "It shall be 1."), (ADD, ADD_ANSWER)],
        ),
        # Of the answers of a turn the last one changes items, those of the last exchange.
        (
            [
                *talk(
                    FENCED_ADD, ADD_ANSWER, FENCED_SUB, "1. `sub` shall take two.\n2. `sub` shall subtract."
                ),
                *talk("Make 2 exact.", "Sure."),
                *answers("2. `sub` shall subtract exactly.")[1:],
            ],
            [(ADD, ADD_ANSWER), (SUB, "1. `sub` shall take two.\n2. `sub` shall subtract exactly.")],
        ),
    ],
)
def test_each_answer_belongs_to_the_code_that_it_is_about(messages, expected):
    exchanges = extract_exchanges(messages, {})
    assert [(exchange.source, exchange.requirements) for exchange in exchanges] == expected


def test_a_given_text_is_the_last_of_the_exchanges():
    exchanges = extract_exchanges(TWO_MODULES, {"requirements": "It shall work."})
    assert exchanges == [
        Exchange(ADD, ADD_ANSWER),
        Exchange(SUB, SUB_ANSWER),
        Exchange(SUB, "It shall work."),
    ]

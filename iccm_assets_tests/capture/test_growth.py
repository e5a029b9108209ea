"""Extraction takes time in proportion to the length of a text, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iccm_assets.capture.extraction import extract_exchange, find_source
from iccm_assets.capture.requirement_changes import merge_changes
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds
from iccm_assets_tests.factories.hostile_texts import HOSTILE_TEXTS
from iccm_assets_tests.factories.sources import FENCED_ADD

pytestmark = [pytest.mark.usefixtures("frozen_heap"), pytest.mark.slow]

SIZE = 16_384  # characters
ITEMS = "1. a shall b.\n2. c shall d.\n3. e shall f."
ANSWER = {"role": "assistant", "content": "`add` shall return a sum."}
FILE = {"type": "file", "path": "a.py", "action": "read"}
PARSERS: dict[str, Callable[[str], object]] = {
    "source": lambda text: extract_exchange([{"role": "user", "content": text}, ANSWER], {}),
    "requirements": lambda text: extract_exchange(
        [{"role": "user", "content": FENCED_ADD}, {"role": "assistant", "content": text}], {}
    ),
    "file": lambda text: extract_exchange([{"role": "tool", "content": [{**FILE, "text": text}]}], {}),
    "change": lambda text: merge_changes(ITEMS, text, "requirement 2"),
    "changed text": lambda text: merge_changes(text, "2. c shall d.\n9. x shall e.", text),
    "source by digest": lambda text: find_source([{"role": "user", "content": text}], {}, "0" * 64),
}  # fmt: skip


def talk(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)
    ]


# Conversations of many turns, by their size in characters.
CONVERSATIONS: dict[str, Callable[[int], object]] = {
    "modules": lambda size: talk(
        *(
            text
            for i in range(size // 80)
            for text in (f"```python\ndef f{i}(a):\n    return a\n```", f"`f{i}` shall return a.")
        )
    ),
    "code without an answer": lambda size: talk(
        *(
            text
            for i in range(size // 60)
            for text in (f"```python\ndef f{i}(a):\n    return {i}\n```", "Go on.")
        )
    ),
    "follow-ups with code": lambda size: talk(
        "```python\n" + "def f(a):\n    return a\n" * (size // 50) + "```",
        "`f` shall return a.",
        *(
            text
            for i in range(size // 100)
            for text in (f"```python\nprint(f({i}))\n```", f"`f` shall return {i}.")
        ),
    ),
    "changed items": lambda size: talk(
        FENCED_ADD,
        "".join(f"{i}. a shall {i}.\n" for i in range(size // 40)),
        *(text for i in range(size // 60) for text in ("change item 2", f"2. It shall return {i}.")),
    ),
    "chat": lambda size: talk(
        FENCED_ADD,
        "".join(f"{i}. a shall {i}.\n" for i in range(size // 40)),
        *(text for i in range(size // 40) for text in ("and item 2?", "Fine.")),
    ),
    "many files": lambda size: (
        [
            {"role": "tool", "content": [{**FILE, "path": f"f{i}.py", "text": f"def f{i}():\n    pass\n"}]}
            for i in range(size // 50)
        ]
        + [{"role": "user", "content": "f1.py " * (size // 20)}, ANSWER]
    ),
}


def assert_growth(parse: Callable[[Any], object], build: Callable[[int], object], what: str) -> None:
    def seconds(size: int) -> float:
        built = build(size)
        return cpu_seconds(lambda: parse(built))

    assert_linear(seconds, SIZE, what, floor=0.02)


@pytest.mark.parametrize("parser", PARSERS)
def test_four_times_the_size_takes_at_most_five_times_as_long(parser: str) -> None:
    for name, build in HOSTILE_TEXTS.items():
        assert_growth(PARSERS[parser], build, name)


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("metadata", [{}, {"source_code": "x = 1"}, {"requirements": "f shall x."}])
def test_four_times_the_turns_take_at_most_five_times_as_long(kind: str, metadata: dict[str, str]) -> None:
    suite = {"kind": "cases", "cases": [{"call": "f", "args": [1]}] * 200}
    assert_growth(lambda messages: extract_exchange(messages, metadata, suite), CONVERSATIONS[kind], kind)


def test_the_growth_test_finds_quadratic_time() -> None:
    with pytest.raises(AssertionError, match="4 times as much: text"):
        assert_growth(
            lambda text: [text.count("#", i) for i in range(len(text))], lambda size: "x" * size, "text"
        )


@pytest.mark.parametrize(
    "name", ["'`'", "'```\\n'", "'<code>'", "'<system-reminder>\\n'", "many items", "deep list"]
)
def test_a_mebibyte_is_read_in_seconds(name: str) -> None:
    text = HOSTILE_TEXTS[name](1 << 20)
    assert (
        max(
            cpu_seconds(lambda parser=parser: PARSERS[parser](text))
            for parser in ("source", "requirements", "change")
        )
        < 10
    )

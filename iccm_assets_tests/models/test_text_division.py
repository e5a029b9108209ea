"""Long texts are divided into units and overlapping windows."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.models.text_division import (
    MAX_UNIT_PIECES,
    MIN_WINDOW_PIECES,
    DividedText,
    divide_text,
)
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds

pytestmark = pytest.mark.usefixtures("frozen_heap")

SENTENCES = [
    f"The function step_{n} shall return the rows whose field is larger than {n}." for n in range(60)
]


def divide(text: str) -> DividedText:
    """Divide by words, as if each were a word piece."""
    return divide_text(text, np.array([match.start() for match in re.finditer(r"\S+", text)], dtype=np.intp))


def test_windows_are_whole_sentences_and_the_next_one_starts_within() -> None:
    windows = divide(" ".join(SENTENCES)).windows()
    assert windows[0] == " ".join(SENTENCES[:4])
    assert windows[1] == " ".join(SENTENCES[1:5])
    assert windows[-1] == " ".join(SENTENCES[-4:])


def test_a_change_of_one_sentence_changes_only_the_windows_around_it() -> None:
    changed = [*SENTENCES[:30], "It shall do something else and say so in a long sentence.", *SENTENCES[31:]]
    before, after = (divide(" ".join(each)).windows() for each in (SENTENCES, changed))
    assert len(set(before) - set(after)) == 4
    assert len(set(after) - set(before)) <= 5


def test_lists_tables_and_text_without_sentences_have_windows_of_bounded_size() -> None:
    for text in (
        "\n".join(f"- item {n}" for n in range(300)),
        "word " * 2000,
        "\n\n".join("x y z " * 50 for _ in range(10)),
        "数える。" * 300,
    ):
        divided = divide(text) if " " in text else divide_text(text, np.arange(len(text)))
        sizes = [len(re.findall(r"\S+", window)) for window in divided.windows()]
        assert len(sizes) > 5
        assert max(sizes) < MIN_WINDOW_PIECES + 2 * MAX_UNIT_PIECES


@given(
    st.lists(st.sampled_from(["a", "bc.", "d\n", "e", "f!", "\n\n", "ghi", ". "]), min_size=60, max_size=400)
)
def test_windows_cover_the_text_in_order_and_overlap(words: list[str]) -> None:
    text = " ".join(words)
    divided = divide(text)
    bounds = list(divided._window_bounds())
    assert bounds[0][0] == 0 and bounds[-1][1] == len(divided.pieces)
    assert all(first < following < last for (first, last), (following, _) in pairwise(bounds))
    assert "".join(text[a:b] for a, b in pairwise(divided.edges)) == text
    assert all(sum(divided.pieces[a:b]) < MIN_WINDOW_PIECES + 2 * MAX_UNIT_PIECES for a, b in bounds)


@pytest.mark.parametrize("shape", ["a. ", ".", " ", ". . "])
def test_dividing_takes_linear_time(shape: str) -> None:
    def seconds(size: int) -> float:
        text = shape * (size // len(shape))
        return cpu_seconds(lambda: divide_text(text, np.arange(0, len(text), 2)).windows())

    assert_linear(seconds, 1 << 18)

"""What differs between two near-duplicates: numbers, negations, opposite words."""

from __future__ import annotations

import pytest

from iccm_assets.curation.opposites import find_example_differences, find_text_differences
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds

pytestmark = pytest.mark.usefixtures("frozen_heap")


@pytest.mark.parametrize(
    ("text", "other", "differences"),
    [
        ("It shall return 3.", "It shall return 4.", ("numbers",)),
        ("It shall return 3.", "It shall return -3.", ("numbers",)),
        ("It shall return 1,000.", "It shall return 1000.", ()),
        ("It shall return 2.50.", "It shall return 2.5.", ()),
        ("It shall return three rows.", "It shall return 3 rows.", ()),
        ("step_1 shall return utf8.", "step_2 shall return utf16.", ()),
        ("It shall raise.", "It shall not raise.", ("negations",)),
        ("It shall raise.", "It must never raise.", ("negations",)),
        ("It doesn't raise.", "It does not raise.", ()),
        ("It shall be less than x.", "It shall be greater than x.", ("opposites",)),
        ("It shall be at most x.", "It shall be at least x.", ("opposites",)),
        ("It shall be less than x.", "It shall be below x.", ()),
        ("a plus b", "a minus b", ("opposites",)),
        ("sorted in ascending order", "sorted in descending order", ("opposites",)),
        ("the first item", "the last item", ("opposites",)),
        ("a less than 3", "a more than 4, never", ("numbers", "negations", "opposites")),
        ("", "", ()),
    ],
)
def test_the_differences_are_named(text: str, other: str, differences: tuple[str, ...]) -> None:
    assert find_text_differences(text, other) == differences
    assert find_text_differences(other, text) == differences


def test_the_same_program_under_other_names_has_no_differences() -> None:
    text, other = "f shall return 3.", "g shall return 4."
    assert find_example_differences("def f(): return 3", text, "def g(): return 4", other) == ("numbers",)
    assert find_example_differences("def f(): return 3", text, "def g(): return 3", other) == ()
    assert find_example_differences("not python", text, "Not  Python", other) == ()
    assert find_example_differences("not python", text, "other text", other) == ("numbers",)


@pytest.mark.parametrize("shape", ["1", "1,", "1,111", "1.", "a't", "-", "not "])
def test_comparing_takes_linear_time(shape: str) -> None:
    def seconds(size: int) -> float:
        text = shape * (size // len(shape)) + "x"
        return cpu_seconds(lambda: find_text_differences(text, text))

    assert_linear(seconds, 250_000, floor=0.02)

"""The builtin orchestra: agreement on good text, disagreement on vague text, never a crash (O2)."""

from __future__ import annotations

import statistics
from contextlib import suppress
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iccm_assets.errors import IccmError
from iccm_assets.simulation.developers.dialogue import make_vague
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import generate_example
from iccm_assets.simulation.language.quick_score import score_requirements
from iccm_assets.simulation.reconstructors import RECONSTRUCTORS, ReconstructionError
from iccm_assets.simulation.reconstructors.signature import check_syntax

TEXT = (
    "The function `rate` shall take `weight`. When `weight` is less than 3, it shall return 5. "
    "Otherwise it shall return 9."
)


def outcome(reconstructor: str, text: str, *args: object) -> object:
    namespace: dict[str, object] = {}
    exec(RECONSTRUCTORS[reconstructor](text), namespace)
    try:
        return namespace["rate"](*args)
    except Exception as error:
        return type(error).__name__


def test_the_three_reconstructors_write_different_code() -> None:
    assert len(RECONSTRUCTORS) >= 3
    assert len({reconstructor(TEXT) for reconstructor in RECONSTRUCTORS.values()}) == len(RECONSTRUCTORS)
    assert {outcome(name, TEXT, 2) for name in RECONSTRUCTORS} == {5}


def test_an_unreadable_sentence_stops_only_the_strict_reconstructor() -> None:
    odd = TEXT.replace("Otherwise", "It is raining. Otherwise")
    assert outcome("strict", odd, 2) == "NotImplementedError"
    assert outcome("literal", odd, 2) == outcome("lenient", odd, 2) == 5


def test_a_missing_constant_is_zero_for_literal_and_a_typical_number_for_lenient() -> None:
    odd = TEXT.replace("less than 3", "less than a certain limit")
    assert outcome("literal", odd, 2) == 9
    assert outcome("lenient", odd, 2) == 5


def test_about_moves_the_boundary_only_for_lenient() -> None:
    odd = TEXT.replace("less than 3", "less than about 3")
    assert outcome("lenient", odd, 3) == 5
    assert outcome("literal", odd, 3) == 9


def test_pythons_warnings_about_written_code_reach_no_terminal(recwarn: pytest.WarningsRecorder) -> None:
    code = "def f(x):\n    return None[x] if x is 1 else x\n"
    assert check_syntax(code) == code
    assert [str(warning.message) for warning in recwarn] == []


def test_an_unspecified_case_is_refused_ignored_or_guessed() -> None:
    open_end = TEXT.split(" Otherwise")[0]
    assert outcome("strict", open_end, 9) == "NotImplementedError"
    assert outcome("literal", open_end, 9) is None
    assert outcome("lenient", open_end, 9) == 5


def test_a_misspelled_name_is_repaired_only_by_lenient() -> None:
    odd = TEXT.replace("When `weight`", "When `wieght`")
    assert outcome("strict", odd, 2) == "NotImplementedError"
    assert outcome("literal", odd, 2) == "TypeError"
    assert outcome("lenient", odd, 2) == 5


def test_vague_requirements_score_low_with_high_variance_and_good_ones_perfectly() -> None:
    rng = Random(11)
    vague, good = [], []
    for family in FAMILIES:
        for _ in range(6):
            drawn = generate_example(family, rng)
            good.append(score_requirements(drawn.requirements, drawn.test_suite))
            vague.append(score_requirements(make_vague(drawn.requirements, rng), drawn.test_suite))
    assert set(good) == {(1.0, 0.0)}
    assert statistics.fmean(rate for rate, _ in vague) < 0.6
    assert statistics.fmean(spread for _, spread in vague) > 0.06
    unnoticed = [score for score in vague if score[0] > 0.75 and score[1] < 0.04]
    assert len(unnoticed) <= len(vague) // 50  # what was left out cannot matter: an earlier case covers it


CLASS = (
    "The class `Jar` shall take `most`. It shall set its `most` to `most`. It shall set its `level` to 0. "
    "The method `fill` shall take `amount`. When its `level` plus `amount` is more than its `most`, it shall "
    "raise ValueError. It shall set its `level` to its `level` plus `amount`. It shall return its `level`."
)


def used(reconstructor: str, text: str, *amounts: int) -> list[object]:
    namespace: dict[str, object] = {}
    exec(RECONSTRUCTORS[reconstructor](text), namespace)
    outcomes: list[object] = []
    try:
        jar = namespace["Jar"](5)
    except Exception as error:
        return [type(error).__name__]
    for amount in amounts:
        try:
            outcomes.append(jar.fill(amount))
        except Exception as error:
            outcomes.append(type(error).__name__)
    return outcomes


@pytest.mark.parametrize("reconstructor", RECONSTRUCTORS)
def test_every_reconstructor_writes_a_class_that_keeps_its_state(reconstructor: str) -> None:
    assert used(reconstructor, CLASS, 2, 3, 1) == [2, 5, "ValueError"]


def test_an_attribute_that_was_never_set_is_refused_empty_or_guessed() -> None:
    odd = CLASS.replace("more than its `most`", "more than its `mosst`")
    assert used("strict", odd, 2) == ["NotImplementedError"]
    assert used("literal", odd, 2) == ["TypeError"]
    assert used("lenient", odd, 2, 9) == [2, "ValueError"]


def test_an_unreadable_sentence_of_a_class_is_refused_or_left_out() -> None:
    odd = CLASS.replace("It shall return its `level`.", "It gives the level back somehow.")
    assert used("strict", odd, 2) == ["NotImplementedError"]
    assert used("literal", odd, 2) == used("lenient", odd, 2) == [None]


@pytest.mark.parametrize(
    "text", ["", "hello", "The function shall return 3.", "The function `def` shall take `x`."]
)
@pytest.mark.parametrize("reconstructor", RECONSTRUCTORS)
def test_text_that_names_no_function_is_an_error_not_code(reconstructor: str, text: str) -> None:
    with pytest.raises(ReconstructionError):
        RECONSTRUCTORS[reconstructor](text)


_PIECES = st.sampled_from((
    "The function `f` shall take `x`", " and `y`", ". ", "When ", "`x` ", "is less than ", "is ", "3", "'a'",
    ", ", "it shall ", "return ", "raise ValueError", "Otherwise ", "for ", "item", "`class`", "'", "`", "\n",
    "about ", "the total ", "each item of `x`", " that ", "\x00", "\u2028", "9" * 40, "-",
))  # fmt: skip


@given(st.text(max_size=200) | st.lists(_PIECES, max_size=25).map("".join))
@example("The function `f` shall take `x` and `x`. It shall return `x`.")
@example("The function `f` shall take `class`. It shall return `class`.")
@example("The function `f` shall take `x`. It shall raise NoSuchError.")
@example("The function `f` shall take `x`. It shall return `x`" + " plus 1" * 5000 + ".")
@example("The function `f` shall take `x`. It shall return " + "9" * 6000 + ".")
def test_no_text_crashes_a_reconstructor(text: str) -> None:
    for reconstructor in RECONSTRUCTORS.values():
        with suppress(IccmError):
            compile(reconstructor(text), "<reader>", "exec")

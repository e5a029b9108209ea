"""The requirements language: parsing and rendering are inverse (X1)."""

from __future__ import annotations

import pytest
from hypothesis import given

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.grammar import RequirementsError, parse, render, sentences
from iccm_assets.simulation.language.interpreter import RaisedError, Unspecified, call_function
from iccm_assets_tests.factories.document_strategies import documents

LADDER = (
    "The function `rate` shall take `weight` and return the parcel tariff. "
    "When `weight` is less than 0, it shall raise ValueError. "
    "When `weight` is at most 3, it shall return 5. Otherwise it shall return `weight` plus 2 times 4."
)


@given(documents)
def test_parsing_a_rendered_document_gives_the_document_back(document: ast.FunctionDocument) -> None:
    back = parse(render(document))
    assert back == document
    assert repr(back) == repr(document)  # 1 == True == 1.0 in Python, but not here


def test_a_text_means_what_it_says() -> None:
    document = parse(LADDER)
    assert call_function(document, [-1]) == RaisedError("ValueError")
    assert call_function(document, [3]) == 5
    assert call_function(document, [4]) == 24  # from left to right: (4 + 2) * 4


def test_an_unspecified_case_has_no_defined_outcome() -> None:
    assert isinstance(call_function(parse(LADDER.rsplit(" Otherwise", 1)[0]), [9]), Unspecified)


def test_a_full_stop_inside_quotes_or_a_number_ends_no_sentence() -> None:
    assert sentences("It shall return 'a. b'. It shall return 2.5.") == (
        "It shall return 'a. b'.",
        "It shall return 2.5.",
    )


def test_line_breaks_and_double_spaces_do_not_matter() -> None:
    assert parse(LADDER.replace(". ", ".\n\n").replace(" shall ", "  shall ")) == parse(LADDER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "It shall return 3.",
        "The function `f` shall take `x`.",
        LADDER.replace("less", "fewer"),
        "\x00\ud800",
    ],
)
def test_text_outside_the_language_raises_requirements_error(text: str) -> None:
    with pytest.raises(RequirementsError):
        parse(text)


def test_negative_numbers_and_no_parameters_are_written_plainly() -> None:
    document = ast.FunctionDocument(
        "f",
        (),
        (ast.Always(ast.Return(ast.Chain(ast.NumberLiteral(-3), (ast.Step("plus", ast.Parameter("x")),)))),),
    )
    assert render(document) == "The function `f` shall take nothing. It shall return -3 plus `x`."

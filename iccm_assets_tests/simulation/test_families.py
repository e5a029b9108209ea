"""Every family: source code, interpreter and reconstructors agree (X1)."""

from __future__ import annotations

import builtins
import json
import keyword
import re
from random import Random

import pytest

from iccm_assets.simulation.language import ast, vocabulary
from iccm_assets.simulation.language.families import BASE_FAMILIES, FAMILIES, NEW_FAMILIES
from iccm_assets.simulation.language.generator import (
    draw_program,
    generate_example,
    rewrite,
    structural_signature,
)
from iccm_assets.simulation.language.grammar import parse, render
from iccm_assets.simulation.language.quick_score import measure_pass_rate, score_requirements
from iccm_assets.simulation.language.suite_generator import EDGE_VALUES, generate_mutants
from iccm_assets.simulation.reconstructors import RECONSTRUCTORS


def test_there_are_enough_families_and_none_is_both_base_and_new() -> None:
    assert len(BASE_FAMILIES) >= 12
    assert len(NEW_FAMILIES) >= 5
    assert set(BASE_FAMILIES).isdisjoint(NEW_FAMILIES)
    assert all(len(family.styles) >= 3 for family in FAMILIES.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_source_interpreter_and_all_reconstructors_pass_the_suite(family: str) -> None:
    rng = Random(f"agree {family}")
    for _ in range(10):
        example = generate_example(family, rng)
        assert 6 <= len(example.test_suite["cases"]) <= 10
        assert parse(example.requirements) == example.document
        assert measure_pass_rate(example.source_code, example.test_suite) == 1.0, example.source_code
        for name, reader in RECONSTRUCTORS.items():
            assert measure_pass_rate(reader(example.requirements), example.test_suite) == 1.0, (
                name,
                example.requirements,
            )


@pytest.mark.parametrize("family", ["codes", "guards"])
def test_a_suite_has_a_case_for_each_result_and_each_error(family: str) -> None:
    rng = Random(f"branches {family}")
    for _ in range(40):
        example = generate_example(family, rng, cases=6)
        whens = [part for part in example.document.statements if isinstance(part, ast.When)]
        named = {part.outcome.error for part in whens if isinstance(part.outcome, ast.Raise)}
        returned = {
            part.outcome.value.base.value
            for part in whens
            if isinstance(part.outcome, ast.Return)
            and isinstance(part.outcome.value, ast.Chain)
            and isinstance(part.outcome.value.base, ast.NumberLiteral | ast.TextLiteral)
        }
        cases = example.test_suite["cases"]
        assert len(cases) <= 10
        assert named <= {case.get("raises") for case in cases}, example.source_code
        assert returned <= {case.get("expect") for case in cases if isinstance(case.get("expect"), int | str)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_constant_or_branch_fails_somewhere(family: str) -> None:
    rng = Random(f"wrong {family}")
    rates = []
    for _ in range(8):
        example = generate_example(family, rng)
        others = list(generate_mutants(example.document))
        rates += [
            score_requirements(render(other), example.test_suite)[0]
            for other in rng.sample(others, min(8, len(others)))
        ]
    caught = sum(rate < 1.0 for rate in rates) / len(rates)
    assert caught > 0.6, caught  # the rest mean the same: a joiner of one test, a swap that does not matter


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_example_and_another_seed_another(family: str) -> None:
    assert generate_example(family, Random(3)) == generate_example(family, Random(3))
    assert generate_example(family, Random(3)) != generate_example(family, Random(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_requirements_use_no_name_or_constant_that_the_code_does_not_show(family: str) -> None:
    rng = Random(f"visible {family}")
    for _ in range(25):
        item = draw_program(family, rng)
        shown = re.findall(r"`(\w+)`|'([^']*)'|\b(\d+)\b", item.requirements)
        assert all(word in item.source_code for words in shown for word in words)


@pytest.mark.parametrize("families", [BASE_FAMILIES, NEW_FAMILIES])
def test_there_are_classes_with_state_among_base_and_new_families(families: tuple[str, ...]) -> None:
    drafts = [draw_program(family, Random(1)).typed_document for family in families]
    assert [draft for draft in drafts if isinstance(draft.document, ast.ClassDocument)]


@pytest.mark.parametrize("family", FAMILIES)
def test_suites_contain_edge_cases_and_errors_of_the_family(family: str) -> None:
    """Empty, negative, huge and unicode inputs appear, and errors where the requirements mention any."""
    rng = Random(f"edges {family}")
    for _ in range(10):
        example = generate_example(family, rng)
        cases = json.dumps(example.test_suite["cases"], ensure_ascii=False)
        edges = {json.dumps(value, ensure_ascii=False) for values in EDGE_VALUES.values() for value in values}
        inputs = re.findall(r'"args": (\[.*?\])(?=, "(?:expect|raises|steps)")', cases)
        takes_nothing = '"args": []' in cases and isinstance(example.document, ast.ClassDocument)
        assert takes_nothing or any(edge in arguments for arguments in inputs for edge in edges), cases
        if "raise" in example.requirements and not isinstance(example.document, ast.ClassDocument):
            assert '"raises"' in cases or family in {"pricing", "forms"}, example.requirements


def test_rewriting_keeps_the_requirements_and_signatures_ignore_names() -> None:
    rng = Random(5)
    item = draw_program("tiers", rng)
    again = rewrite(item, rng)
    assert again.requirements == item.requirements
    assert structural_signature(again.document) == structural_signature(item.document)
    assert item.document.name not in structural_signature(item.document)


def test_no_word_is_a_keyword_or_hides_a_builtin_that_code_calls() -> None:
    called = set(
        ["len", "max", "min", "sum", "sorted", "list", "dict", "any", "all", "bool", "reversed", "enumerate"]
    )
    assert called <= set(dir(builtins))
    params = {*vocabulary.MEASURES, *vocabulary.LIST_WORDS, *vocabulary.TEXT_WORDS}
    params |= {word for nouns in vocabulary.DOMAINS.values() for word in nouns}
    params |= {f"{word}s" for nouns in vocabulary.DOMAINS.values() for word in nouns}
    assert not {word for word in params if keyword.iskeyword(word) or word in called}

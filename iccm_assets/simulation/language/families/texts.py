"""Base families about texts and truth values: cleaning, checks, forms."""

from __future__ import annotations

from random import Random

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.families.common import (
    ERROR,
    INDENT,
    ORDERINGS,
    Family,
    TypedDocument,
    compare,
    draft_function,
    draw_distinct,
    draw_number,
    get_returned,
    increasing_numbers,
    py_condition,
    py_edit,
    py_guards,
    py_outcome,
    py_ternary,
    py_test,
    py_value,
    py_when,
    return_constant,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import PUNCTUATION, Vocabulary


def _edit(kind: ast.EditKind, *constants: str | int) -> ast.Edit:
    nodes = (
        ast.TextLiteral(value) if isinstance(value, str) else ast.NumberLiteral(value) for value in constants
    )
    return ast.Edit(kind, tuple(nodes))


def _cleaning(rng: Random, words: Vocabulary) -> TypedDocument:
    """A text is cleaned in several steps."""
    name = words.text_name()
    mark, other = rng.sample(PUNCTUATION, 2)
    case = _edit(rng.choice(("in lower case", "in lower case", "in upper case", "capitalised")))
    end = rng.choice(("in front", "at the end"))
    affix = words.label() + rng.choice((mark, other, ""))
    pool = [
        _edit("stripped"),
        case,
        _edit("replaced", rng.choice((" ", mark, mark)), rng.choice(("", other, other))),
        _edit("cut", rng.randint(2, 24)),
        _edit(end, affix),  # type: ignore[arg-type]
    ]
    edits = tuple(rng.sample(pool, rng.choice((2, 2, 3, 3, 4))))
    guards = []
    if rng.random() < 0.3:
        outcome = ERROR if rng.random() < 0.5 else return_constant(words.label())
        guards = [when_test(ast.IsEmpty(ast.Chain(ast.Parameter(name))), outcome)]
    ending = ast.Always(ast.Return(ast.EditedText(ast.Parameter(name), edits)))
    return draft_function(words, (name,), (*guards, ending), ("str",), "str")


def _write_cleaning(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines, whens = py_guards(document, rng)
    for part in whens:
        lines += py_when(part, rng)
    *edits, last = get_returned(document, ast.EditedText).edits
    code = document.params[0]
    variable = rng.choice(("text", "out", "result")) if style == "renamed" else code
    for edit in edits:
        code = py_edit(code, edit)
        if style != "chained":
            lines.append(f"{variable} = {code}")
            code = variable
    return [*lines, f"return {py_edit(code, last)}"]


def _forms(rng: Random, words: Vocabulary) -> TypedDocument:
    """A text is changed in one way or another, depending on what it looks like."""
    name = words.text_name()
    count = rng.choice((1, 1, 2))
    pool = [
        _edit(rng.choice(("stripped", "in lower case", "in upper case", "capitalised"))),
        _edit("replaced", rng.choice((" ", *PUNCTUATION)), rng.choice(("", *PUNCTUATION))),
        _edit("cut", rng.randint(1, 20)),
        _edit("in front", words.label() + rng.choice(PUNCTUATION)),
        _edit("at the end", rng.choice(PUNCTUATION) + words.label()),
    ]
    outcomes = [
        ast.Return(ast.EditedText(ast.Parameter(name), (edit,))) for edit in rng.sample(pool, count + 1)
    ]
    tests = draw_distinct(lambda: _text_test(rng, words, name), count)
    whens = [
        when_test(test, ERROR if rng.random() < 0.12 else outcome)
        for test, outcome in zip(tests, outcomes, strict=False)
    ]
    return draft_function(words, (name,), (*whens, ast.Otherwise(outcomes[-1])), ("str",), "str")


def _write_forms(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines, whens = py_guards(document, rng)
    last = document.statements[-1]
    assert isinstance(last, ast.Otherwise)
    if style == "ternary" and not any(isinstance(part.outcome, ast.Raise) for part in whens):
        return [*lines, py_ternary(whens, last.outcome, rng, "({}) if {}")]
    variable, otherwise = document.params[0], py_value(last.outcome)
    for part in whens:
        condition = py_condition(part.condition, rng)
        if style == "renamed" and part is whens[-1] and not isinstance(part.outcome, ast.Raise):
            return [*lines, f"if {condition}:", f"{INDENT}{variable} = {py_value(part.outcome)}", "else:",
                    f"{INDENT}{variable} = {otherwise}", f"return {variable}"]  # fmt: skip
        lines += [f"if {condition}:", INDENT + py_outcome(part.outcome, rng)]
    return [*lines, f"return {otherwise}"]


def _number_test(rng: Random, name: str) -> ast.Test:
    if rng.random() < 0.3:
        low, high = increasing_numbers(rng, 2)
        return ast.IsBetween(ast.Chain(ast.Parameter(name)), ast.NumberLiteral(low), ast.NumberLiteral(high))
    return compare(ast.Parameter(name), rng.choice((*ORDERINGS, "is not")), draw_number(rng, 1))


def _text_test(rng: Random, words: Vocabulary, name: str) -> ast.Test:
    if rng.random() < 0.4:
        return compare(
            ast.Parameter(name), rng.choice(("is longer than", "is shorter than")), rng.randint(2, 20)
        )
    op = rng.choice(("starts with", "ends with", "contains", "is"))
    constant = words.label() if op == "is" else rng.choice((rng.choice(PUNCTUATION), words.label()[:3]))
    return compare(ast.Parameter(name), op, constant)


def _checks(rng: Random, words: Vocabulary) -> TypedDocument:
    """Returns whether the arguments pass two or three tests."""
    kinds = tuple(rng.choice(("int", "int", "str")) for _ in range(rng.choice((2, 2, 3))))
    params = tuple(words.number_name() if kind == "int" else words.text_name() for kind in kinds)
    tests = tuple(
        _number_test(rng, name) if kind == "int" else _text_test(rng, words, name)
        for name, kind in zip(params, kinds, strict=True)
    )
    condition = ast.Condition(tests, rng.choice(("and", "or")))
    statements = (ast.Always(ast.Return(ast.ConditionValue(condition))),)
    return draft_function(words, params, statements, kinds, "bool")


def _write_checks(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    condition = get_returned(document, ast.ConditionValue).condition
    needs_all = condition.joiner == "and"
    tests = [py_test(test, rng) for test in condition.tests]
    if style == "any":
        return [f"return {'all' if needs_all else 'any'}([{', '.join(tests)}])"]
    if style == "early":
        form = "if not ({}):" if needs_all else "if {}:"
        lines = [
            line for test in tests[:-1] for line in (form.format(test), f"{INDENT}return {not needs_all}")
        ]
        return [*lines, f"return {tests[-1]}"]
    tests = [f"({test})" if " and " in test and not needs_all else test for test in tests]
    code = f" {condition.joiner} ".join(tests)
    if style == "if":
        return [f"if {code}:", f"{INDENT}return True", "return False"]
    return [f"return {code}"]


CLEANING = Family("cleaning", _cleaning, _write_cleaning, ("chained", "stepwise", "renamed"))
CHECKS = Family("checks", _checks, _write_checks, ("plain", "if", "early", "any"))
FORMS = Family("forms", _forms, _write_forms, ("plain", "ternary", "renamed"))

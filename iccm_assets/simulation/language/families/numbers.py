"""Base families about numbers: tiers, limits, pricing, codes, bands."""

from __future__ import annotations

from collections.abc import Sequence
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
    draw_step,
    get_returned,
    increasing_numbers,
    negative_guard,
    py_atom,
    py_branches,
    py_chain,
    py_guards,
    py_value,
    return_constant,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import Vocabulary

BRANCHES = ("if", "elif", "ternary", "result", "else")


def _results(rng: Random, words: Vocabulary, count: int) -> list[int | str]:
    """Draw different results, all texts or all numbers."""
    if rng.random() < 0.5:
        return [*draw_distinct(words.label, count)]
    return [*draw_distinct(lambda: draw_number(rng), count)]


def _tiers(rng: Random, words: Vocabulary) -> TypedDocument:
    """A number falls into one of several tiers."""
    name = words.number_name()
    count = rng.choice((1, 2, 2, 3))
    steps = increasing_numbers(rng, count)
    rising = rng.random() < 0.6
    op = rng.choice(("is less than", "is at most") if rising else ("is more than", "is at least"))
    if not rising:
        steps.reverse()
    results = _results(rng, words, count + 1)
    guards = negative_guard(rng, name) if rising else ()
    tests = [compare(ast.Parameter(name), op, step) for step in steps]
    return _draft_branches(rng, words, name, tests, results, 0.9, guards)


def _bands(rng: Random, words: Vocabulary) -> TypedDocument:
    """A number lies in one of several bands, or in none."""
    name = words.number_name()
    count = rng.choice((1, 2, 2, 3))
    ends = increasing_numbers(rng, 2 * count)
    bands = list(zip(ends[::2], ends[1::2], strict=True))
    if rng.random() < 0.3:
        bands.reverse()
    results = _results(rng, words, count + 1)
    left = ast.Chain(ast.Parameter(name))
    tests = [ast.IsBetween(left, ast.NumberLiteral(low), ast.NumberLiteral(high)) for low, high in bands]
    return _draft_branches(rng, words, name, tests, results, 0.7)


def _codes(rng: Random, words: Vocabulary) -> TypedDocument:
    """A text code stands for a number or another text."""
    name = words.text_name()
    count = rng.choice((2, 3, 3, 4))
    keys = draw_distinct(words.label, count)
    results: list[int | str] = [*draw_distinct(lambda: draw_number(rng), count + 1)]
    if rng.random() < 0.25:
        labels = draw_distinct(words.label, 2 * count + 1)
        results = [*[label for label in labels if label not in keys][: count + 1]]
    tests = [compare(ast.Parameter(name), "is", key) for key in keys]
    return _draft_branches(rng, words, name, tests, results, 0.65, kind="str")


def _draft_branches(
    rng: Random,
    words: Vocabulary,
    name: str,
    tests: Sequence[ast.Test],
    results: list[int | str],
    chance: float,
    guards: tuple[ast.Statement, ...] = (),
    kind: str = "int",
) -> TypedDocument:
    """Each test has its result; ``chance`` is that of a last result instead of an error."""
    statements = [
        *guards,
        *(when_test(test, return_constant(result)) for test, result in zip(tests, results, strict=False)),
    ]
    statements.append(ast.Otherwise(return_constant(results[-1]) if rng.random() < chance else ERROR))
    return draft_function(words, (name,), statements, (kind,), type(results[0]).__name__)


def _limits(rng: Random, words: Vocabulary) -> TypedDocument:
    """A scaled number is clamped between limits."""
    name = words.number_name()
    low, high = (ast.NumberLiteral(value) for value in increasing_numbers(rng, 2))
    steps = [draw_step(rng, ("times",), 2, 9)] if rng.random() < 0.75 else []
    if rng.random() < 0.75 or not steps:
        steps.append(draw_step(rng, ("plus", "minus"), 1, 40))
    if rng.random() < 0.3:
        steps.reverse()
    ends = rng.choice(("both", "both", "low", "high"))
    chain = ast.Chain(ast.Parameter(name), tuple(steps))
    value = ast.Clamp(chain, low if ends != "high" else None, high if ends != "low" else None)
    guards = negative_guard(rng, name)
    return draft_function(words, (name,), (*guards, ast.Always(ast.Return(value))), ("int",), "int")


def _write_limits(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines, _ = py_guards(document, rng)
    limited = get_returned(document, ast.Clamp)
    low, high = limited.low, limited.high
    code = py_chain(limited.value)
    if style == "minmax":
        if high:
            code = f"min({high.value}, {code})" if rng.random() < 0.5 else f"min({code}, {high.value})"
        return [*lines, f"return max({low.value}, {code})" if low else f"return {code}"]
    variable = rng.choice(("value", "result", "raw"))
    lines.append(f"{variable} = {code}")
    limits = [(end.value, clamp, sign) for end, clamp, sign in ((low, "max", "<"), (high, "min", ">")) if end]
    if style == "ternary":
        code = variable
        for limit, _, sign in reversed(limits):
            code = f"{limit} if {variable} {sign} {limit} else {code}"
        return [*lines, f"return {code}"]
    for limit, clamp, sign in limits:
        if style == "steps":
            lines.append(f"{variable} = {clamp}({variable}, {limit})")
        else:
            lines += [f"if {variable} {sign} {limit}:", f"{INDENT}return {limit}"]
    return [*lines, f"return {variable}"]


def _pricing(rng: Random, words: Vocabulary) -> TypedDocument:
    """Two numbers are combined, differently when one of them passes a threshold."""
    params = words.number_name(), words.number_name()

    def formula() -> ast.Return:
        base, operand = params if rng.random() < 0.6 else params[::-1]
        steps: list[ast.Step] = []
        if rng.random() < 0.7:
            steps.append(ast.Step(rng.choice(("times", "times", "plus", "minus")), ast.Parameter(operand)))
        if not steps or rng.random() < 0.7:
            steps.append(draw_step(rng, ("plus", "minus", "times"), 2, 30))
        if rng.random() < 0.2:
            steps.reverse()
        return ast.Return(ast.Chain(ast.Parameter(base), tuple(steps)))

    whens = [*negative_guard(rng, rng.choice(params), 0.25)]
    for _ in range(rng.choice((1, 1, 2))):
        test = compare(ast.Parameter(rng.choice(params)), rng.choice(ORDERINGS), draw_number(rng, 2))
        whens.append(when_test(test, formula()))
    for _ in range(20):
        last = formula()
        if last not in [part.outcome for part in whens]:
            break
    return draft_function(words, params, (*whens, ast.Otherwise(last)), ("int", "int"), "int")


def _write_codes(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    if style != "dict":
        return py_branches(document, style, rng)
    *branches, last = document.statements
    assert isinstance(last, ast.Otherwise)
    table = ", ".join(map(_dict_item, branches))
    lines, name = [f"table = {{{table}}}"], document.params[0]
    if isinstance(last.outcome, ast.Return):
        return [*lines, f"return table.get({name}, {py_value(last.outcome)})"]
    return [*lines, f"if {name} not in table:", f"{INDENT}raise ValueError", f"return table[{name}]"]


def _dict_item(statement: ast.Statement) -> str:
    assert isinstance(statement, ast.When)
    (test,) = statement.condition.tests
    assert isinstance(test, ast.Compare)
    return f"{py_atom(test.right)}: {py_value(statement.outcome)}"


TIERS = Family("tiers", _tiers, py_branches, BRANCHES)
LIMITS = Family("limits", _limits, _write_limits, ("minmax", "steps", "ternary", "if"))
PRICING = Family("pricing", _pricing, py_branches, BRANCHES)
CODES = Family("codes", _codes, _write_codes, ("dict", "dict", "if", "elif"))
BANDS = Family("bands", _bands, py_branches, BRANCHES)

"""Base families about numbers: tiers, limits, pricing, codes, bands."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    ERROR,
    INDENT,
    Draft,
    Family,
    compare,
    distinct,
    give,
    ladder,
    negative_guard,
    number,
    py_branches,
    py_chain,
    py_guards,
)  # fmt: skip
from iccm_assets.reference.words import Lexicon

BRANCHES = ("if", "elif", "ternary", "result", "else")


def _tiers(rng: Random, words: Lexicon) -> Draft:
    """A number falls into one of several tiers."""
    name = words.number_name()
    count = rng.choice((1, 2, 2, 3))
    steps = ladder(rng, count)
    rising = rng.random() < 0.6
    op = rng.choice(("is less than", "is at most") if rising else ("is more than", "is at least"))
    if not rising:
        steps.reverse()
    texts = rng.random() < 0.5
    results: list[int | str] = list(_labels(words, count + 1)) if texts else list(distinct(rng, count + 1))
    statements: list[ast.Statement] = [*negative_guard(rng, name)] if rising else []
    statements += [
        ast.When(compare(ast.Name(name), op, step), give(out))
        for step, out in zip(steps, results, strict=False)
    ]
    statements.append(ast.Otherwise(give(results[-1]) if rng.random() < 0.9 else ERROR))
    document = ast.Document(words.function_name(), (name,), tuple(statements), words.purpose())
    return Draft(document, ("int",), "str" if texts else "int")


def _labels(words: Lexicon, count: int) -> list[str]:
    labels: list[str] = []
    while len(labels) < count:
        label = words.label()
        if label not in labels:
            labels.append(label)
    return labels


def _bands(rng: Random, words: Lexicon) -> Draft:
    """A number lies in one of several bands, or in none."""
    name = words.number_name()
    count = rng.choice((1, 2, 2, 3))
    ends = ladder(rng, 2 * count)
    bands = list(zip(ends[::2], ends[1::2], strict=True))
    if rng.random() < 0.3:
        bands.reverse()
    texts = rng.random() < 0.5
    results: list[int | str] = list(_labels(words, count + 1)) if texts else list(distinct(rng, count + 1))
    statements: list[ast.Statement] = [
        ast.When(
            ast.Condition((ast.Between(ast.Chain(ast.Name(name)), ast.Number(low), ast.Number(high)),)),
            give(out),
        )
        for (low, high), out in zip(bands, results, strict=False)
    ]
    statements.append(ast.Otherwise(give(results[-1]) if rng.random() < 0.7 else ERROR))
    document = ast.Document(words.function_name(), (name,), tuple(statements), words.purpose())
    return Draft(document, ("int",), "str" if texts else "int")


def _limits(rng: Random, words: Lexicon) -> Draft:
    """A scaled number is kept between limits."""
    name = words.number_name()
    low, high = ladder(rng, 2)
    steps: list[ast.Step] = []
    if rng.random() < 0.75:
        steps.append(ast.Step("times", ast.Number(rng.randint(2, 9))))
    if rng.random() < 0.75 or not steps:
        steps.append(ast.Step(rng.choice(("plus", "minus")), ast.Number(rng.randint(1, 40))))
    if rng.random() < 0.3:
        steps.reverse()
    ends = rng.choice(("both", "both", "low", "high"))
    value = ast.Limited(
        ast.Chain(ast.Name(name), tuple(steps)),
        ast.Number(low) if ends != "high" else None,
        ast.Number(high) if ends != "low" else None,
    )
    statements: tuple[ast.Statement, ...] = (*negative_guard(rng, name), ast.Always(ast.Return(value)))
    return Draft(ast.Document(words.function_name(), (name,), statements, words.purpose()), ("int",), "int")


def _write_limits(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines, _ = py_guards(document, rng)
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Limited)
    )
    limited = last.outcome.value
    low, high = limited.low, limited.high
    code = py_chain(limited.value)
    if style == "minmax":
        code = (
            f"min({high.value}, {code})"
            if high and rng.random() < 0.5
            else f"min({code}, {high.value})"
            if high
            else code
        )
        return [*lines, f"return max({low.value}, {code})" if low else f"return {code}"]
    var = rng.choice(("value", "result", "raw"))
    lines.append(f"{var} = {code}")
    if style == "steps":
        lines += [f"{var} = max({var}, {low.value})"] if low else []
        lines += [f"{var} = min({var}, {high.value})"] if high else []
        return [*lines, f"return {var}"]
    if style == "ternary":
        code = f"{high.value} if {var} > {high.value} else {var}" if high else var
        return [*lines, f"return {low.value} if {var} < {low.value} else {code}" if low else f"return {code}"]
    for limit, sign in ((low, "<"), (high, ">")):
        if limit:
            lines += [f"if {var} {sign} {limit.value}:", f"{INDENT}return {limit.value}"]
    return [*lines, f"return {var}"]


def _pricing(rng: Random, words: Lexicon) -> Draft:
    """Two numbers are combined, differently when one of them passes a threshold."""
    first, second = words.number_name(), words.number_name()

    def formula() -> ast.Return:
        one, two = (first, second) if rng.random() < 0.6 else (second, first)
        steps = (
            [ast.Step(rng.choice(("times", "times", "plus", "minus")), ast.Name(two))]
            if rng.random() < 0.7
            else []
        )
        if not steps or rng.random() < 0.7:
            steps.append(ast.Step(rng.choice(("plus", "minus", "times")), ast.Number(rng.randint(2, 30))))
        if rng.random() < 0.2:
            steps.reverse()
        return ast.Return(ast.Chain(ast.Name(one), tuple(steps)))

    ops = ("is less than", "is at most", "is more than", "is at least")
    statements: list[ast.Statement] = [*negative_guard(rng, rng.choice((first, second)), 0.25)]
    seen: list[ast.Return] = []
    for _ in range(rng.choice((1, 1, 2))):
        statements.append(
            ast.When(
                compare(ast.Name(rng.choice((first, second))), rng.choice(ops), number(rng, 2)), formula()
            )
        )
    for _ in range(20):
        last = formula()
        seen = [
            part.outcome
            for part in statements
            if isinstance(part, ast.When) and isinstance(part.outcome, ast.Return)
        ]
        if last not in seen:
            break
    statements.append(ast.Otherwise(last))
    document = ast.Document(words.function_name(), (first, second), tuple(statements), words.purpose())
    return Draft(document, ("int", "int"), "int")


def _codes(rng: Random, words: Lexicon) -> Draft:
    """A text code stands for a number or another text."""
    name = words.text_name()
    count = rng.choice((2, 3, 3, 4))
    keys = _labels(words, count)
    results: list[int | str] = list(distinct(rng, count + 1))
    if rng.random() < 0.25:
        results = []
        results += [label for label in _labels(words, 2 * count + 1) if label not in keys][: count + 1]
    statements: list[ast.Statement] = [
        ast.When(compare(ast.Name(name), "is", key), give(result))
        for key, result in zip(keys, results, strict=False)
    ]
    statements.append(ast.Otherwise(give(results[-1]) if rng.random() < 0.65 else ERROR))
    gives = "str" if isinstance(results[0], str) else "int"
    return Draft(
        ast.Document(words.function_name(), (name,), tuple(statements), words.purpose()), ("str",), gives
    )


def _write_codes(document: ast.Document, style: str, rng: Random) -> list[str]:
    if style != "dict":
        return py_branches(document, style, rng)
    table = {}
    for part in document.statements[:-1]:
        assert (
            isinstance(part, ast.When)
            and isinstance(part.outcome, ast.Return)
            and isinstance(part.outcome.value, ast.Chain)
        )
        test = part.condition.tests[0]
        table[test.right.value] = part.outcome.value.base.value  # type: ignore[union-attr]
    last = document.statements[-1]
    assert isinstance(last, ast.Otherwise)
    name = document.params[0]
    lines = [f"table = {table!r}"]
    if isinstance(last.outcome, ast.Return):
        assert isinstance(last.outcome.value, ast.Chain)
        return [*lines, f"return table.get({name}, {py_chain(last.outcome.value)})"]
    return [*lines, f"if {name} not in table:", f"{INDENT}raise ValueError", f"return table[{name}]"]


TIERS = Family("tiers", _tiers, py_branches, BRANCHES)
LIMITS = Family("limits", _limits, _write_limits, ("minmax", "steps", "ternary", "if"))
PRICING = Family("pricing", _pricing, py_branches, BRANCHES)
CODES = Family("codes", _codes, _write_codes, ("dict", "dict", "if", "elif"))
BANDS = Family("bands", _bands, py_branches, BRANCHES)

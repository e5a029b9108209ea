"""New families, which only production sees.

These are cycle (remainders), ledger (running totals), shares (division), rules (two tests decide) and ends
(the first or last element of a list).
"""

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
    draw_step,
    get_returned,
    negative_guard,
    py_all_whens,
    py_branches,
    py_chain,
    py_ternary,
    py_test,
    py_value,
    py_when,
    return_constant,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import Vocabulary

_OPPOSITES = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


def _cycle(rng: Random, words: Vocabulary) -> TypedDocument:
    """A number modulo a constant: the remainder decides, or is the result."""
    name = words.number_name()
    size = rng.randint(3, 30)
    modulo = ast.Step("modulo", ast.NumberLiteral(size))
    whens = [*negative_guard(rng, name, 0.4)]
    if rng.random() < 0.5:
        steps = [modulo]
        if rng.random() < 0.7:
            steps.insert(0, draw_step(rng, ("plus", "minus", "times"), 2, 40))
        if rng.random() < 0.5:
            steps.append(draw_step(rng, ("plus", "times"), 2, 40))
        ending = ast.Always(ast.Return(ast.Chain(ast.Parameter(name), tuple(steps))))
        return draft_function(words, (name,), (*whens, ending), ("int",), "int")
    remainders = rng.sample(range(min(size, 5)), rng.choice((1, 2, 2)))
    results = [words.label() for _ in remainders]
    op = rng.choice(("is", "is", "is less than"))
    left = ast.Chain(ast.Parameter(name), (modulo,))
    for remainder, result in zip(sorted(remainders), results, strict=True):
        whens.append(when_test(compare(left, op, remainder + (op != "is")), return_constant(result)))
    last = ast.Otherwise(return_constant(words.label()))
    return draft_function(words, (name,), (*whens, last), ("int",), "str")


def _write_cycle(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    if isinstance(document.statements[-1], ast.Otherwise):
        return py_branches(document, style, rng)
    lines = py_all_whens(document, rng)
    code = py_chain(get_returned(document, ast.Chain))
    if style in {"if", "ternary"}:
        return [*lines, f"return {code}"]
    variable = rng.choice(("result", "spot", "turn"))
    return [*lines, f"{variable} = {code}", f"return {variable}"]


def _ledger(rng: Random, words: Vocabulary) -> TypedDocument:
    """A running total over a list."""
    name = words.list_name()
    statements: list[ast.Statement] = [ast.InitTotal(ast.NumberLiteral(draw_number(rng)))]

    def amount() -> ast.Chain:
        roll = rng.random()
        if roll < 0.4:
            return ast.Chain(ast.NumberLiteral(rng.randint(1, 20)))
        return ast.Chain(ast.CurrentItem(), (draw_step(rng, ("times",), 2, 9),) if roll < 0.7 else ())

    split = rng.random() < 0.6
    tests = (compare(ast.CurrentItem(), rng.choice(ORDERINGS), draw_number(rng)),) if split else ()
    moves = [rng.choice(("add", "add", "subtract")) for _ in range(2)]
    first = amount()
    if not split and isinstance(first.base, ast.NumberLiteral):
        first = ast.Chain(ast.CurrentItem(), (ast.Step("times", first.base),))
    statements.append(ast.ForEach(ast.Parameter(name), tests, moves[0], first))  # type: ignore[arg-type]
    if split and rng.random() < 0.7:
        statements.append(ast.ForEach(None, (), moves[1], amount()))  # type: ignore[arg-type]
    if rng.random() < 0.4:
        side = rng.choice(("at least", "at most"))
        limit = rng.choice((0, draw_number(rng))) if side == "at least" else 100 + draw_number(rng)
        statements.append(ast.ClampTotal(side, ast.NumberLiteral(limit)))  # type: ignore[arg-type]
    steps = (draw_step(rng, ("plus", "times", "minus"), 2, 12),) if rng.random() < 0.25 else ()
    ending = ast.Always(ast.Return(ast.Chain(ast.RunningTotal(), steps)))
    return draft_function(words, (name,), (*statements, ending), ("list[int]",), "int")


def _write_ledger(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    total = rng.choice(("total", "balance", "acc", "sum_so_far"))
    item = rng.choice(("x", "item", "v", "move"))
    loops = [part for part in document.statements if isinstance(part, ast.ForEach)]
    limits = [part for part in document.statements if isinstance(part, ast.ClampTotal)]
    start = document.statements[0]
    assert isinstance(start, ast.InitTotal)
    lines = _write_moves(loops, item, total, style == "continue" and not limits, rng)
    for limit in limits:
        value = limit.limit.value
        clamp, sign = ("max", "<") if limit.side == "at least" else ("min", ">")
        if style == "minmax":
            lines.append(f"{total} = {clamp}({total}, {value})")
        else:
            lines += [f"if {total} {sign} {value}:", f"{INDENT}{total} = {value}"]
    opening = [f"{total} = {start.value.value}", f"for {item} in {document.params[0]}:"]
    ending = f"return {py_chain(get_returned(document, ast.Chain), item, total)}"
    return [*opening, *(INDENT + line for line in lines), ending]


def _write_moves(
    loops: list[ast.ForEach], item: str, total: str, may_continue: bool, rng: Random
) -> list[str]:
    moves = [f"{total} {'+' if loop.op == 'add' else '-'}= {py_chain(loop.amount, item)}" for loop in loops]
    if not loops[0].tests:
        return moves[:1]
    test = " and ".join(py_test(test, rng, item) for test in loops[0].tests)
    if may_continue and len(moves) == 1:
        left, sign, right = test.split()
        return [f"if {left} {_OPPOSITES[sign]} {right}:", f"{INDENT}continue", moves[0]]
    otherwise = ["else:", INDENT + moves[1]] if len(moves) > 1 else []
    return [f"if {test}:", INDENT + moves[0], *otherwise]


def _shares(rng: Random, words: Vocabulary) -> TypedDocument:
    """A number is divided, by a constant or by another number."""
    params = [words.number_name()]
    steps = [draw_step(rng, ("divided by",), 2, 20)]
    whens = [*negative_guard(rng, params[0], 0.4)]
    if rng.random() < 0.5:
        divisor = ast.Parameter(words.number_name())
        params.append(divisor.name)
        steps = [ast.Step("divided by", divisor)]
        outcome = ERROR if rng.random() < 0.6 else return_constant(draw_number(rng))
        whens = [when_test(compare(divisor, "is", 0), outcome)]
    if rng.random() < 0.5:
        steps.insert(0, draw_step(rng, ("plus", "minus", "times"), 2, 40))
    if rng.random() < 0.5:
        steps.append(draw_step(rng, ("plus", "minus", "times"), 2, 40))
    ending = ast.Always(ast.Return(ast.Chain(ast.Parameter(params[0]), tuple(steps))))
    return draft_function(words, params, (*whens, ending), ("int",) * len(params), "int")


def _write_shares(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines = py_all_whens(document, rng)
    code = py_chain(get_returned(document, ast.Chain))
    if style == "plain":
        return [*lines, f"return {code}"]
    variable = rng.choice(("share", "part", "result") if style == "named" else ("value", "out"))
    return [*lines, f"{variable} = {code}", f"return {variable}"]


def _rules(rng: Random, words: Vocabulary) -> TypedDocument:
    """Two numbers together decide, two tests to a rule."""
    params = (words.number_name(), words.number_name())
    ops = (*ORDERINGS, "is", "is not")
    *labels, last = draw_distinct(words.label, 3)

    def condition() -> ast.Condition:
        tests = tuple(compare(ast.Parameter(name), rng.choice(ops), draw_number(rng, 1)) for name in params)
        return ast.Condition(tests, rng.choice(("and", "or")))

    whens = [ast.When(condition(), return_constant(label)) for label in labels[: rng.choice((1, 2, 2))]]
    return draft_function(
        words, params, (*whens, ast.Otherwise(return_constant(last))), ("int", "int"), "str"
    )


def _ends(rng: Random, words: Vocabulary) -> TypedDocument:
    """The first or the last element of a list."""
    name, other = words.list_name(), words.number_name()
    kind = rng.choice(("int", "str"))
    default = return_constant(draw_number(rng) if kind == "int" else words.label())
    outcome = ast.Raise(rng.choice(("ValueError", "IndexError"))) if rng.random() < 0.6 else default
    guard = when_test(ast.IsEmpty(ast.Chain(ast.Parameter(name))), outcome)
    ends = [ast.Return(ast.EndItem(end, ast.Parameter(name))) for end in rng.sample(("first", "last"), 2)]  # type: ignore[arg-type]
    if rng.random() < 0.6:
        test = compare(ast.Parameter(other), rng.choice(ORDERINGS), draw_number(rng))
        statements = (guard, when_test(test, ends[0]), ast.Otherwise(ends[1]))
        return draft_function(words, (name, other), statements, (f"list[{kind}]", "int"), kind)
    return draft_function(words, (name,), (guard, ast.Always(ends[0])), (f"list[{kind}]",), kind)


def _write_ends(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    first, *middle, last = document.statements
    assert isinstance(first, ast.When) and isinstance(last, ast.Always | ast.Otherwise)
    lines, ending = py_when(first, rng), f"return {py_value(last.outcome)}"
    for part in middle:
        assert isinstance(part, ast.When)
        if style == "ternary":
            return [*lines, py_ternary([part], last.outcome, rng)]
        lines += py_when(part, rng)
    if not middle:
        return [*lines, ending]
    return [*lines, "else:", INDENT + ending] if style == "else" else [*lines, ending]


CYCLE = Family("cycle", _cycle, _write_cycle, ("if", "ternary", "result", "elif"))
LEDGER = Family("ledger", _ledger, _write_ledger, ("plain", "minmax", "continue"))
SHARES = Family("shares", _shares, _write_shares, ("plain", "named", "stored"))
RULES = Family("rules", _rules, py_branches, ("if", "elif", "ternary", "result", "else"))
ENDS = Family("ends", _ends, _write_ends, ("plain", "ternary", "else"))

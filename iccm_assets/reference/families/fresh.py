"""New families, which only production sees: cycle (remainders), ledger (running totals), shares (division),
rules (two tests decide), ends (the first or last element)."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    ERROR,
    INDENT,
    Draft,
    Family,
    compare,
    give,
    negative_guard,
    number,
    py_atom,
    py_branches,
    py_chain,
    py_condition,
    py_guards,
    py_outcome,
    py_test,
    py_value,
)  # fmt: skip
from iccm_assets.reference.words import Lexicon


def _cycle(rng: Random, words: Lexicon) -> Draft:
    """A number goes round: its remainder decides, or is the answer."""
    name = words.number_name()
    size = rng.randint(3, 30)
    statements: list[ast.Statement] = [*negative_guard(rng, name, 0.4)]
    if rng.random() < 0.5:
        steps = [ast.Step("modulo", ast.Number(size))]
        if rng.random() < 0.7:
            steps.insert(0, ast.Step(rng.choice(("plus", "minus", "times")), ast.Number(rng.randint(2, 40))))
        if rng.random() < 0.5:
            steps.append(ast.Step(rng.choice(("plus", "times")), ast.Number(rng.randint(2, 40))))
        statements.append(ast.Always(ast.Return(ast.Chain(ast.Name(name), tuple(steps)))))
        gives = "int"
    else:
        rests = rng.sample(range(min(size, 5)), rng.choice((1, 2, 2)))
        results = [words.label() for _ in rests]
        op = rng.choice(("is", "is", "is less than"))
        rests = sorted(rest + (op != "is") for rest in rests)
        left = ast.Chain(ast.Name(name), (ast.Step("modulo", ast.Number(size)),))
        for rest, result in zip(rests, results, strict=True):
            test = ast.Compare(left, op, ast.Number(rest))  # type: ignore[arg-type]
            statements.append(ast.When(ast.Condition((test,)), ast.Return(ast.Chain(ast.Text(result)))))
        statements.append(ast.Otherwise(ast.Return(ast.Chain(ast.Text(words.label())))))
        gives = "str"
    return Draft(
        ast.Document(words.function_name(), (name,), tuple(statements), words.purpose()), ("int",), gives
    )


def _write_cycle(document: ast.Document, style: str, rng: Random) -> list[str]:
    last = document.statements[-1]
    if isinstance(last, ast.Otherwise):
        return py_branches(document, style, rng)
    lines, _ = py_guards(document, rng)
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Chain)
    )
    if style in {"if", "ternary"}:
        return [*lines, f"return {py_chain(last.outcome.value)}"]
    var = rng.choice(("result", "spot", "turn"))
    return [*lines, f"{var} = {py_chain(last.outcome.value)}", f"return {var}"]


def _ledger(rng: Random, words: Lexicon) -> Draft:
    """A total runs along a list."""
    name = words.list_name()
    statements: list[ast.Statement] = [ast.Start(ast.Number(number(rng)))]

    def amount() -> ast.Chain:
        roll = rng.random()
        if roll < 0.4:
            return ast.Chain(ast.Number(rng.randint(1, 20)))
        steps = (ast.Step("times", ast.Number(rng.randint(2, 9))),) if roll < 0.7 else ()
        return ast.Chain(ast.Item(), steps)

    split = rng.random() < 0.6
    tests: tuple[ast.Test, ...] = ()
    if split:
        op = rng.choice(("is less than", "is at most", "is more than", "is at least"))
        tests = (ast.Compare(ast.Chain(ast.Item()), op, ast.Number(number(rng))),)  # type: ignore[arg-type]
    moves = [rng.choice(("add", "add", "subtract")) for _ in range(2)]
    first = amount()
    if not split and isinstance(first.base, ast.Number):
        first = ast.Chain(ast.Item(), (ast.Step("times", first.base),))
    statements.append(ast.Each(ast.Name(name), tests, moves[0], first))  # type: ignore[arg-type]
    if split and rng.random() < 0.7:
        statements.append(ast.Each(None, (), moves[1], amount()))  # type: ignore[arg-type]
    if rng.random() < 0.4:
        side = rng.choice(("at least", "at most"))
        limit = rng.choice((0, number(rng))) if side == "at least" else 100 + number(rng)
        statements.append(ast.Keep(side, ast.Number(limit)))  # type: ignore[arg-type]
    steps = (
        (ast.Step(rng.choice(("plus", "times", "minus")), ast.Number(rng.randint(2, 12))),)
        if rng.random() < 0.25
        else ()
    )
    statements.append(ast.Always(ast.Return(ast.Chain(ast.Total(), steps))))
    document = ast.Document(words.function_name(), (name,), tuple(statements), words.purpose())
    return Draft(document, ("list[int]",), "int")


def _write_ledger(document: ast.Document, style: str, rng: Random) -> list[str]:
    total = rng.choice(("total", "balance", "acc", "sum_so_far"))
    item = rng.choice(("x", "item", "v", "move"))
    start = next(part for part in document.statements if isinstance(part, ast.Start))
    eaches = [part for part in document.statements if isinstance(part, ast.Each)]
    keeps = [part for part in document.statements if isinstance(part, ast.Keep)]
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Chain)
    )
    assert eaches[0].source is not None
    lines = [f"{total} = {start.value.value}", f"for {item} in {eaches[0].source.name}:"]
    moves = [f"{total} {'+' if each.op == 'add' else '-'}= {py_chain(each.amount, item)}" for each in eaches]
    if eaches[0].tests:
        test = " and ".join(py_test(one, rng, item) for one in eaches[0].tests)
        if style == "continue" and len(eaches) == 1 and not keeps:
            opposite = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
            left, sign, right = test.split()
            lines += [
                f"{INDENT}if {left} {opposite[sign]} {right}:",
                f"{INDENT * 2}continue",
                f"{INDENT}{moves[0]}",
            ]
        else:
            lines += [f"{INDENT}if {test}:", f"{INDENT * 2}{moves[0]}"]
            lines += [f"{INDENT}else:", f"{INDENT * 2}{moves[1]}"] if len(moves) > 1 else []
    else:
        lines.append(f"{INDENT}{moves[0]}")
    for keep in keeps:
        pick, sign = ("max", "<") if keep.side == "at least" else ("min", ">")
        if style == "minmax":
            lines.append(f"{INDENT}{total} = {pick}({total}, {keep.limit.value})")
        else:
            lines += [
                f"{INDENT}if {total} {sign} {keep.limit.value}:",
                f"{INDENT * 2}{total} = {keep.limit.value}",
            ]
    return [*lines, f"return {py_chain(last.outcome.value, item, total)}"]


def _shares(rng: Random, words: Lexicon) -> Draft:
    """A number is divided, by a constant or by another number."""
    name = words.number_name()
    steps = [ast.Step("divided by", ast.Number(rng.randint(2, 20)))]
    params: tuple[str, ...] = (name,)
    statements = [*negative_guard(rng, name, 0.4)]
    if rng.random() < 0.5:
        other = words.number_name()
        params = (name, other)
        steps = [ast.Step("divided by", ast.Name(other))]
        nothing = ast.When(
            compare(ast.Name(other), "is", 0), ERROR if rng.random() < 0.6 else give(number(rng))
        )
        statements = [nothing]
    if rng.random() < 0.5:
        steps.insert(0, ast.Step(rng.choice(("plus", "minus", "times")), ast.Number(rng.randint(2, 40))))
    if rng.random() < 0.5:
        steps.append(ast.Step(rng.choice(("plus", "minus", "times")), ast.Number(rng.randint(2, 40))))
    ending = ast.Always(ast.Return(ast.Chain(ast.Name(name), tuple(steps))))
    document = ast.Document(words.function_name(), params, (*statements, ending), words.purpose())
    return Draft(document, tuple("int" for _ in params), "int")


def _write_shares(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines = []
    for part in document.statements[:-1]:
        assert isinstance(part, ast.When)
        lines += [f"if {py_condition(part.condition, rng)}:", INDENT + py_outcome(part.outcome, rng)]
    last = document.statements[-1]
    assert isinstance(last, ast.Always)
    code = py_value(last.outcome)
    if style == "plain":
        return [*lines, f"return {code}"]
    var = rng.choice(("share", "part", "result") if style == "named" else ("value", "out"))
    return [*lines, f"{var} = {code}", f"return {var}"]


def _rules(rng: Random, words: Lexicon) -> Draft:
    """Two numbers together decide, two tests to a rule."""
    params = (words.number_name(), words.number_name())
    ops = ("is less than", "is at most", "is more than", "is at least", "is", "is not")
    labels: list[str] = []
    while len(labels) < 3:
        label = words.label()
        labels += [label] if label not in labels else []

    def condition() -> ast.Condition:
        tests = tuple(
            ast.Compare(ast.Chain(ast.Name(name)), rng.choice(ops), ast.Number(number(rng, 1)))  # type: ignore[arg-type]
            for name in params
        )
        return ast.Condition(tests, rng.choice(("and", "or")))

    statements: list[ast.Statement] = [
        ast.When(condition(), give(label)) for label in labels[: rng.choice((1, 2, 2))]
    ]
    statements.append(ast.Otherwise(give(labels[-1])))
    document = ast.Document(words.function_name(), params, tuple(statements), words.purpose())
    return Draft(document, ("int", "int"), "str")


def _ends(rng: Random, words: Lexicon) -> Draft:
    """The first or the last element of a list."""
    name, other = words.list_name(), words.number_name()
    kind = rng.choice(("int", "str"))
    empty = ast.Condition((ast.Empty(ast.Chain(ast.Name(name))),))
    instead = give(number(rng)) if kind == "int" else give(words.label())
    outcome = ast.Raise(rng.choice(("ValueError", "IndexError"))) if rng.random() < 0.6 else instead
    statements: list[ast.Statement] = [ast.When(empty, outcome)]
    order = [ast.Return(ast.EndItem(end, ast.Name(name))) for end in rng.sample(("first", "last"), 2)]  # type: ignore[arg-type]
    params: tuple[str, ...] = (name,)
    if rng.random() < 0.6:
        params = (name, other)
        op = rng.choice(("is less than", "is at most", "is more than", "is at least"))
        statements += [ast.When(compare(ast.Name(other), op, number(rng)), order[0]), ast.Otherwise(order[1])]
    else:
        statements.append(ast.Always(order[0]))
    document = ast.Document(words.function_name(), params, tuple(statements), words.purpose())
    return Draft(document, (f"list[{kind}]", "int")[: len(params)], kind)


def _write_ends(document: ast.Document, style: str, rng: Random) -> list[str]:
    def value(outcome: ast.Outcome) -> str:
        assert isinstance(outcome, ast.Return) and isinstance(outcome.value, ast.EndItem)
        return f"{py_atom(outcome.value.source)}[{'-1' if outcome.value.end == 'last' else '0'}]"

    first, *rest = document.statements
    assert isinstance(first, ast.When)
    lines = [f"if {py_condition(first.condition, rng)}:", INDENT + py_outcome(first.outcome, rng)]
    if len(rest) == 1:
        assert isinstance(rest[0], ast.Always)
        return [*lines, f"return {value(rest[0].outcome)}"]
    middle, last = rest
    assert isinstance(middle, ast.When) and isinstance(last, ast.Otherwise)
    test = py_condition(middle.condition, rng)
    if style == "ternary":
        return [*lines, f"return {value(middle.outcome)} if {test} else {value(last.outcome)}"]
    if style == "else":
        return [*lines, f"if {test}:", f"{INDENT}return {value(middle.outcome)}",
                "else:", f"{INDENT}return {value(last.outcome)}"]  # fmt: skip
    return [*lines, f"if {test}:", f"{INDENT}return {value(middle.outcome)}", f"return {value(last.outcome)}"]


CYCLE = Family("cycle", _cycle, _write_cycle, ("if", "ternary", "result", "elif"))
LEDGER = Family("ledger", _ledger, _write_ledger, ("plain", "minmax", "continue"))
SHARES = Family("shares", _shares, _write_shares, ("plain", "named", "stored"))
RULES = Family("rules", _rules, py_branches, ("if", "elif", "ternary", "result", "else"))
ENDS = Family("ends", _ends, _write_ends, ("plain", "ternary", "else"))

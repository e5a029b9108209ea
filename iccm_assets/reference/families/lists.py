"""Base families about lists: sieve, tally."""

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
    number,
    py_outcome,
    py_steps,
    py_test,
)  # fmt: skip
from iccm_assets.reference.words import MARKS, Lexicon

_ITEM_NAMES = ("x", "item", "v", "one", "n", "e")


def _item_test(rng: Random, words: Lexicon, texts: bool) -> ast.Test:
    item = ast.Chain(ast.Item())
    if not texts:
        op = rng.choice(("is less than", "is at most", "is more than", "is at least", "is not"))
        return ast.Compare(item, op, ast.Number(number(rng)))  # type: ignore[arg-type]
    if rng.random() < 0.4:
        return ast.Compare(
            item, rng.choice(("is longer than", "is shorter than")), ast.Number(rng.randint(2, 12))
        )
    op = rng.choice(("starts with", "ends with", "contains", "is not"))
    constant = words.label() if op == "is not" else rng.choice((rng.choice(MARKS), words.label()[:3]))
    return ast.Compare(item, op, ast.Text(constant))  # type: ignore[arg-type]


def _guard(rng: Random, name: str, outcomes: tuple[int, ...]) -> list[ast.Statement]:
    """Sometimes a rule of its own for an empty or an over-long list."""
    if rng.random() < 0.7:
        return []
    if rng.random() < 0.5:
        outcome = ERROR if rng.random() < 0.5 or not outcomes else give(rng.choice(outcomes))
        return [ast.When(ast.Condition((ast.Empty(ast.Chain(ast.Name(name))),)), outcome)]
    return [ast.When(compare(ast.Name(name), "is longer than", rng.randint(3, 7)), ERROR)]


def _sieve(rng: Random, words: Lexicon) -> Draft:
    """Some elements of a list, changed and ordered."""
    name = words.list_name()
    texts = rng.random() < 0.35
    tests: tuple[ast.Test, ...] = (_item_test(rng, words, texts),)
    if rng.random() < 0.2:
        tests += (_item_test(rng, words, texts),)
    steps: tuple[ast.Step, ...] = ()
    if not texts and rng.random() < 0.55:
        steps = (ast.Step(rng.choice(("times", "plus", "minus")), ast.Number(rng.randint(2, 20))),)
    pool = [
        ast.Edit("sorted"),
        ast.Edit("reversed"),
        ast.Edit("without repeats"),
        ast.Edit("cut", (ast.Number(rng.randint(1, 5)),)),
    ]
    edits = tuple(rng.sample(pool, rng.choice((0, 1, 1, 2))))
    value = ast.Items(ast.Name(name), tests, steps, edits)
    statements = (*_guard(rng, name, ()), ast.Always(ast.Return(value)))
    kind = "list[str]" if texts else "list[int]"
    return Draft(ast.Document(words.function_name(), (name,), statements, words.purpose()), (kind,), kind)


def _guard_lines(document: ast.Document, rng: Random) -> list[str]:
    whens = [part for part in document.statements if isinstance(part, ast.When)]
    return [
        line
        for when in whens
        for line in (f"if {py_test(when.condition.tests[0], rng)}:", INDENT + py_outcome(when.outcome, rng))
    ]


def _write_sieve(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines = _guard_lines(document, rng)
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Items)
    )
    items = last.outcome.value
    item = rng.choice(_ITEM_NAMES)
    test = " and ".join(py_test(one, rng, item) for one in items.tests)
    value = py_steps(item, items.steps)
    if style == "inline" and items.edits:
        code = f"[{value} for {item} in {items.source.name} if {test}]"
        for edit in items.edits:
            code = _list_edit(code, edit)
        return [*lines, f"return {code}"]
    out = rng.choice(("out", "kept", "result", "found"))
    if style == "loop":
        lines += [
            f"{out} = []",
            f"for {item} in {items.source.name}:",
            f"{INDENT}if {test}:",
            f"{INDENT * 2}{out}.append({value})",
        ]
    else:
        code = f"[{value} for {item} in {items.source.name} if {test}]"
        if not items.edits:
            return [*lines, f"return {code}"]
        lines.append(f"{out} = {code}")
    code = out
    for edit in items.edits[:-1]:
        lines.append(f"{out} = {_list_edit(out, edit)}")
    return [*lines, f"return {_list_edit(out, items.edits[-1]) if items.edits else out}"]


def _list_edit(code: str, edit: ast.Edit) -> str:
    match edit.kind:
        case "sorted":
            return f"sorted({code})"
        case "reversed":
            return f"{code}[::-1]"
        case "without repeats":
            return f"list(dict.fromkeys({code}))"
    return f"{code}[:{edit.args[0].value}]"


def _tally(rng: Random, words: Lexicon) -> Draft:
    """One number out of a list."""
    name = words.list_name()
    kind = rng.choice(("count", "count", "sum", "sum", "largest", "smallest"))
    texts = kind == "count" and rng.random() < 0.5
    tests: tuple[ast.Test, ...] = (_item_test(rng, words, texts),)
    if rng.random() < 0.3:
        tests += (_item_test(rng, words, texts),)
    default = ast.Number(rng.choice((0, 0, number(rng)))) if kind in {"largest", "smallest"} else None
    value = ast.Aggregate(kind, ast.Items(ast.Name(name), tests), default)  # type: ignore[arg-type]
    statements = (*_guard(rng, name, (0, number(rng))), ast.Always(ast.Return(value)))
    kinds = ("list[str]" if texts else "list[int]",)
    return Draft(ast.Document(words.function_name(), (name,), statements, words.purpose()), kinds, "int")


def _write_tally(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines = _guard_lines(document, rng)
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Aggregate)
    )
    aggregate = last.outcome.value
    item = rng.choice(_ITEM_NAMES)
    source = aggregate.items.source.name
    test = " and ".join(py_test(one, rng, item) for one in aggregate.items.tests)
    picked = f"[{item} for {item} in {source} if {test}]"
    var = rng.choice(("found", "kept", "result"))
    head = [f"for {item} in {source}:", f"{INDENT}if {test}:"]
    if aggregate.kind in {"count", "sum"}:
        counted = aggregate.kind == "count"
        if style == "loop":
            gain = "1" if counted else item
            return [*lines, f"{var} = 0", *head, f"{INDENT * 2}{var} += {gain}", f"return {var}"]
        if style == "list":
            return [*lines, f"{var} = {picked}", f"return {'len' if counted else 'sum'}({var})"]
        code = f"sum(1 for {item} in {source} if {test})" if counted else f"sum({picked[1:-1]})"
        return [*lines, f"return {code}"]
    assert aggregate.default is not None
    default = aggregate.default.value
    pick = "max" if aggregate.kind == "largest" else "min"
    if style == "loop":
        sign = ">" if pick == "max" else "<"
        body = [
            f"{INDENT * 2}if {var} is None or {item} {sign} {var}:",
            f"{INDENT * 3}{var} = {item}",
        ]
        return [*lines, f"{var} = None", *head, *body, f"return {default} if {var} is None else {var}"]
    if style == "list":
        return [*lines, f"{var} = {picked}", f"return {pick}({var}) if {var} else {default}"]
    return [*lines, f"return {pick}(({picked[1:-1]}), default={default})"]


SIEVE = Family("sieve", _sieve, _write_sieve, ("plain", "inline", "loop"))
TALLY = Family("tally", _tally, _write_tally, ("plain", "list", "loop"))

"""Base families about lists: sieve, tally."""

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
    draw_number,
    draw_step,
    get_returned,
    py_all_whens,
    py_list_edit,
    py_steps,
    py_test,
    return_constant,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import PUNCTUATION, Vocabulary

_ITEM_NAMES = ("x", "item", "v", "one", "n", "e")


def _item_test(rng: Random, words: Vocabulary, texts: bool) -> ast.Test:
    if not texts:
        return compare(ast.CurrentItem(), rng.choice((*ORDERINGS, "is not")), draw_number(rng))
    if rng.random() < 0.4:
        return compare(
            ast.CurrentItem(), rng.choice(("is longer than", "is shorter than")), rng.randint(2, 12)
        )
    op = rng.choice(("starts with", "ends with", "contains", "is not"))
    constant = words.label() if op == "is not" else rng.choice((rng.choice(PUNCTUATION), words.label()[:3]))
    return compare(ast.CurrentItem(), op, constant)


def _item_tests(rng: Random, words: Vocabulary, texts: bool, chance: float) -> tuple[ast.Test, ...]:
    """Draw one test, or with this chance two."""
    test = _item_test(rng, words, texts)
    return (test, _item_test(rng, words, texts)) if rng.random() < chance else (test,)


def _guard(rng: Random, name: str, results: tuple[int, ...]) -> list[ast.Statement]:
    """Draw, sometimes, a special outcome for an empty list or an error for a long one."""
    if rng.random() < 0.7:
        return []
    if rng.random() < 0.5:
        outcome = ERROR if rng.random() < 0.5 or not results else return_constant(rng.choice(results))
        return [when_test(ast.IsEmpty(ast.Chain(ast.Parameter(name))), outcome)]
    return [when_test(compare(ast.Parameter(name), "is longer than", rng.randint(3, 7)), ERROR)]


def _sieve(rng: Random, words: Vocabulary) -> TypedDocument:
    """Some elements of a list, changed and ordered."""
    name = words.list_name()
    texts = rng.random() < 0.35
    tests = _item_tests(rng, words, texts, 0.2)
    steps = (draw_step(rng, ("times", "plus", "minus"), 2, 20),) if not texts and rng.random() < 0.55 else ()
    cut = ast.Edit("cut", (ast.NumberLiteral(rng.randint(1, 5)),))
    pool = [ast.Edit("sorted"), ast.Edit("reversed"), ast.Edit("without repeats"), cut]
    edits = tuple(rng.sample(pool, rng.choice((0, 1, 1, 2))))
    value = ast.ListComp(ast.Parameter(name), tests, steps, edits)
    statements = (*_guard(rng, name, ()), ast.Always(ast.Return(value)))
    kind = "list[str]" if texts else "list[int]"
    return draft_function(words, (name,), statements, (kind,), kind)


def _write_sieve(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines = py_all_whens(document, rng)
    items = get_returned(document, ast.ListComp)
    item = rng.choice(_ITEM_NAMES)
    test = " and ".join(py_test(test, rng, item) for test in items.tests)
    value = py_steps(item, items.steps)
    code = f"[{value} for {item} in {items.source.name} if {test}]"
    edits = list(items.edits)
    if style == "inline" and edits:
        for edit in edits:
            code = py_list_edit(code, edit)
        return [*lines, f"return {code}"]
    variable = rng.choice(("out", "kept", "result", "found"))
    if style == "loop":
        lines += [f"{variable} = []", f"for {item} in {items.source.name}:", f"{INDENT}if {test}:"]
        lines.append(f"{INDENT * 2}{variable}.append({value})")
    elif edits:
        lines.append(f"{variable} = {code}")
    else:
        return [*lines, f"return {code}"]
    lines += [f"{variable} = {py_list_edit(variable, edit)}" for edit in edits[:-1]]
    return [*lines, f"return {py_list_edit(variable, edits[-1]) if edits else variable}"]


def _tally(rng: Random, words: Vocabulary) -> TypedDocument:
    """One number computed from a list."""
    name = words.list_name()
    kind = rng.choice(("count", "count", "sum", "sum", "largest", "smallest"))
    texts = kind == "count" and rng.random() < 0.5
    tests = _item_tests(rng, words, texts, 0.3)
    default = (
        ast.NumberLiteral(rng.choice((0, 0, draw_number(rng)))) if kind in {"largest", "smallest"} else None
    )
    value = ast.Aggregate(kind, ast.ListComp(ast.Parameter(name), tests), default)  # type: ignore[arg-type]
    statements = (*_guard(rng, name, (0, draw_number(rng))), ast.Always(ast.Return(value)))
    return draft_function(words, (name,), statements, ("list[str]" if texts else "list[int]",), "int")


def _write_tally(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    lines = py_all_whens(document, rng)
    aggregate = get_returned(document, ast.Aggregate)
    item = rng.choice(_ITEM_NAMES)
    test = " and ".join(py_test(test, rng, item) for test in aggregate.items.tests)
    loop = f"for {item} in {aggregate.items.source.name}"
    variable = rng.choice(("found", "kept", "result"))
    write = _write_total if aggregate.default is None else _write_extreme
    return [*lines, *write(aggregate, style, item, loop, test, variable)]


def _write_total(
    aggregate: ast.Aggregate, style: str, item: str, loop: str, test: str, variable: str
) -> list[str]:
    function, gain = ("len", "1") if aggregate.kind == "count" else ("sum", item)
    if style == "loop":
        body = [f"{INDENT}if {test}:", f"{INDENT * 2}{variable} += {gain}"]
        return [f"{variable} = 0", f"{loop}:", *body, f"return {variable}"]
    if style == "list":
        return [f"{variable} = [{item} {loop} if {test}]", f"return {function}({variable})"]
    return [f"return sum({gain} {loop} if {test})"]


def _write_extreme(
    aggregate: ast.Aggregate, style: str, item: str, loop: str, test: str, variable: str
) -> list[str]:
    function, sign = ("max", ">") if aggregate.kind == "largest" else ("min", "<")
    default = aggregate.default.value if aggregate.default else None
    if style == "loop":
        return [
            f"{variable} = None",
            f"{loop}:",
            f"{INDENT}if {test}:",
            f"{INDENT * 2}if {variable} is None or {item} {sign} {variable}:",
            f"{INDENT * 3}{variable} = {item}",
            f"return {default} if {variable} is None else {variable}",
        ]
    if style == "list":
        code = f"{function}({variable}) if {variable} else {default}"
        return [f"{variable} = [{item} {loop} if {test}]", f"return {code}"]
    return [f"return {function}(({item} {loop} if {test}), default={default})"]


SIEVE = Family("sieve", _sieve, _write_sieve, ("plain", "inline", "loop"))
TALLY = Family("tally", _tally, _write_tally, ("plain", "list", "loop"))

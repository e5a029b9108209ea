"""Families of small classes with state: gauges and stacks (base), queues (new)."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Literal

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.families.common import (
    INDENT,
    Family,
    TypedDocument,
    compare,
    draw_number,
    draw_step,
    negative_guard,
    py_atom,
    py_chain,
    py_outcome,
    py_test,
    py_when,
    return_constant,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import (
    DRAIN_VERBS,
    FILL_VERBS,
    READ_VERBS,
    RESET_VERBS,
    Vocabulary,
)

_OPERATORS = {"plus": "+", "minus": "-", "times": "*"}


def _returns(value: ast.Expression | ast.Attribute | ast.Length) -> ast.Always:
    return ast.Always(
        ast.Return(ast.Chain(value) if isinstance(value, ast.Attribute | ast.Length) else value)
    )


def _set(
    target: ast.Attribute, value: ast.Expression | ast.Parameter | ast.NumberLiteral
) -> ast.ActionStatement:
    is_atom = isinstance(value, ast.Parameter | ast.NumberLiteral)
    return ast.ActionStatement(ast.SetAttribute(target, ast.Chain(value) if is_atom else value))  # type: ignore[arg-type]


def _error(rng: Random, *others: str) -> ast.Raise:
    return ast.Raise(rng.choice(("ValueError", "ValueError", *others)))


def _draft(
    words: Vocabulary, params: list[str], statements: list[ast.Statement], methods: list[ast.FunctionDocument]
) -> TypedDocument:
    name, purpose = words.class_name(), words.purpose()
    document = ast.ClassDocument(name, tuple(params), tuple(statements), tuple(methods), purpose)
    kinds = [tuple("int" for _ in names) for names in (params, *(method.params for method in methods))]
    return TypedDocument(document, kinds[0], "", tuple(kinds[1:]))


def _gauges(rng: Random, words: Vocabulary) -> TypedDocument:
    """A number that methods raise and lower, inside limits."""
    level = ast.Attribute(words.number_name())
    params: list[str] = []
    statements: list[ast.Statement] = []
    if rng.random() < 0.5:
        params.append(words.number_name())
        statements += [*negative_guard(rng, params[0], 0.4), _set(level, ast.Parameter(params[0]))]
    else:
        statements.append(_set(level, ast.NumberLiteral(draw_number(rng))))
    cap = ast.Attribute(words.number_name()) if rng.random() >= 0.7 else None
    if cap:
        params.append(cap.name)
        statements.append(_set(cap, ast.Parameter(cap.name)))
    methods = [_fill_gauge(rng, words, level, cap)]
    choices = rng.sample(("drain", "look", "reset"), rng.choice((1, 1, 2)))
    if "drain" in choices:
        methods.append(_drain_gauge(rng, words, level))
    if "look" in choices:
        value = ast.Chain(level, (draw_step(rng, ("times", "plus", "minus"), 2, 40),))
        methods.append(ast.FunctionDocument(words.method_name(READ_VERBS), (), (_returns(value),)))
    if "reset" in choices:
        reset = _set(level, ast.NumberLiteral(rng.choice((0, 0, draw_number(rng)))))
        methods.append(ast.FunctionDocument(words.method_name(RESET_VERBS), (), (reset,)))
    return _draft(words, params, statements, methods)


def _fill_gauge(
    rng: Random, words: Vocabulary, level: ast.Attribute, cap: ast.Attribute | None
) -> ast.FunctionDocument:
    amount = words.number_name()
    gain = ast.Step("plus", ast.Parameter(amount))
    filled = ast.Chain(level, (gain,))
    statements: list[ast.Statement] = [*negative_guard(rng, amount, 0.4)]
    if cap or rng.random() < 0.3:
        limit = cap or ast.NumberLiteral(20 + draw_number(rng))
        statements.append(when_test(compare(filled, "is more than", limit), _error(rng, "OverflowError")))
        statements.append(_set(level, filled))
    elif rng.random() < 0.5:
        statements.append(_set(level, ast.Clamp(filled, None, ast.NumberLiteral(20 + draw_number(rng)))))
    else:
        times = (draw_step(rng, ("times",), 2, 9),) if rng.random() < 0.3 else ()
        statements.append(_set(level, ast.Chain(level, (gain, *times))))
    if rng.random() < 0.7:
        statements.append(_returns(level))
    return ast.FunctionDocument(words.method_name(FILL_VERBS), (amount,), tuple(statements))


def _drain_gauge(rng: Random, words: Vocabulary, level: ast.Attribute) -> ast.FunctionDocument:
    amount = ast.Parameter(words.number_name())
    drained = ast.Chain(level, (ast.Step("minus", amount),))
    guards = []
    if rng.random() < 0.6:
        guards.append(when_test(compare(amount, "is more than", level), _error(rng, "RuntimeError")))
        change = _set(level, drained)
    else:
        low = ast.NumberLiteral(rng.choice((0, 0, draw_number(rng))))
        change = _set(level, ast.Clamp(drained, low, None))
    return ast.FunctionDocument(
        words.method_name(DRAIN_VERBS), (amount.name,), (*guards, change, _returns(level))
    )


def _container(rng: Random, words: Vocabulary, end: Literal["first", "last"]) -> TypedDocument:
    """A list that is filled at its end and emptied from this end."""
    items = ast.Attribute(words.list_name())
    creation: list[ast.Statement] = [_set(items, ast.EmptyList())]
    params: list[str] = []
    capacity: ast.Attribute | ast.NumberLiteral = ast.NumberLiteral(rng.randint(1, 4))
    if rng.random() < 0.5:
        capacity = ast.Attribute(words.number_name())
        params.append(capacity.name)
        creation.append(_set(capacity, ast.Parameter(capacity.name)))
        creation[:0] = negative_guard(rng, capacity.name, 0.3)
    value = words.number_name()
    push: list[ast.Statement] = [*negative_guard(rng, value, 0.25)]
    if params or rng.random() < 0.5:
        full = compare(ast.Length(items), "is at least", capacity)
        push.append(when_test(full, _error(rng, "OverflowError", "IndexError")))
    steps = (draw_step(rng, ("times", "plus"), 2, 20),) if rng.random() < 0.3 else ()
    push.append(ast.ActionStatement(ast.Append(ast.Chain(ast.Parameter(value), steps), items)))
    if rng.random() < 0.5:
        push.append(_returns(ast.Length(items)))
    outcome = _error(rng, "IndexError") if rng.random() < 0.8 else return_constant(draw_number(rng))
    empty = when_test(ast.IsEmpty(ast.Chain(items)), outcome)
    pop = (empty, _returns(ast.EndItem(end, items, True)))
    methods = [
        ast.FunctionDocument(words.method_name(FILL_VERBS), (value,), tuple(push)),
        ast.FunctionDocument(words.method_name(DRAIN_VERBS), (), pop),
    ]
    if rng.random() < 0.5:
        methods.append(ast.FunctionDocument(words.method_name(READ_VERBS), (), _look(rng, items, end, empty)))
    return _draft(words, params, creation, methods)


def _look(
    rng: Random, items: ast.Attribute, end: Literal["first", "last"], empty: ast.When
) -> tuple[ast.Statement, ...]:
    roll = rng.random()
    if roll < 0.35:
        return (_returns(ast.Length(items)),)
    if roll < 0.7:
        return (empty, _returns(ast.EndItem(end, items)))
    test = compare(ast.CurrentItem(), rng.choice(("is more than", "is less than")), draw_number(rng))
    kind = rng.choice(("count", "sum"))
    return (_returns(ast.Aggregate(kind, ast.ListComp(items, (test,)))),)  # type: ignore[arg-type]


# ---- Python


def _write(document: ast.ClassDocument, style: str, rng: Random) -> list[str]:
    lines = [f"class {document.name}:"]
    if document.purpose:
        lines += [f'{INDENT}"""{rng.choice(("The {}.", "Keeps the {}."))}"""'.format(document.purpose), ""]
    constructor = ast.FunctionDocument("__init__", document.params, document.statements)
    for method in (constructor, *document.methods):
        lines += [""] if method is not constructor else []
        lines.append(f"{INDENT}def {method.name}({', '.join(('self', *method.params))}):")
        for statement in method.statements:
            lines += [INDENT * 2 + line for line in _statement(statement, style, rng)]
    return lines


def _statement(statement: ast.Statement, style: str, rng: Random) -> list[str]:
    match statement:
        case ast.When():
            return py_when(statement, rng)
        case ast.Always(outcome):
            return _ending(outcome, style, rng)
        case ast.ActionStatement(ast.Append(value, target)):
            name, code = py_atom(target), py_chain(value)
            return [f"{name} += [{code}]" if style == "short" else f"{name}.append({code})"]
        case ast.ActionStatement(ast.SetAttribute(target, value)):
            return _assignment(target, value, style)
    raise AssertionError(statement)


def _assignment(target: ast.Attribute, value: ast.Expression, style: str) -> list[str]:
    name = py_atom(target)
    match value:
        case ast.EmptyList():
            return [f"{name} = []"]
        case ast.Chain(base, (ast.Step(op, operand),)) if base == target and style == "short":
            return [f"{name} {_OPERATORS[op]}= {py_atom(operand)}"]
        case ast.Chain():
            return [f"{name} = {py_chain(value)}"]
        case ast.Clamp(chain, low, high):
            limit = low or high
            assert limit is not None
            if style != "checked":
                return [f"{name} = {'max' if low else 'min'}({py_chain(chain)}, {limit.value})"]
            check = f"if {name} {'<' if low else '>'} {limit.value}:"
            return [*_assignment(target, chain, "short"), check, f"{INDENT}{name} = {limit.value}"]
    raise AssertionError(value)


def _ending(outcome: ast.Outcome, style: str, rng: Random) -> list[str]:
    assert isinstance(outcome, ast.Return)
    match outcome.value:
        case ast.EndItem(end, source, True):
            name, index = py_atom(source), "-1" if end == "last" else "0"
            if style == "checked":
                variable = rng.choice(("found", "one", "value"))
                return [f"{variable} = {name}[{index}]", f"del {name}[{index}]", f"return {variable}"]
            return [f"return {name}.pop({'' if end == 'last' else index})"]
        case ast.Aggregate(kind, items):
            test = py_test(items.tests[0], rng, "x")
            value = "1" if kind == "count" else "x"
            return [f"return sum({value} for x in {py_atom(items.source)} if {test})"]
    return [py_outcome(outcome, rng)]


STYLES = ("plain", "short", "checked")
GAUGES = Family("gauges", _gauges, _write, STYLES)
STACKS = Family("stacks", partial(_container, end="last"), _write, STYLES)
QUEUES = Family("queues", partial(_container, end="first"), _write, STYLES)

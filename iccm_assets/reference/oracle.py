"""Interpreter of the requirements language: runs a document on values without writing any Python (X1).

It is the authority for the expected values of test suites: reconstructors and source code are checked
against it, never the other way round.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iccm_assets.reference import document as ast

Value = Any  # int, float, str, bool or a list of them

_OPERATORS: dict[str, Callable[[Value, Value], Value]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.floordiv,
    "modulo": operator.mod,
    "is less than": operator.lt,
    "is at most": operator.le,
    "is more than": operator.gt,
    "is at least": operator.ge,
    "is": operator.eq,
    "is not": operator.ne,
    "is longer than": lambda left, right: len(left) > right,
    "is shorter than": lambda left, right: len(left) < right,
    "starts with": lambda left, right: left.startswith(right),
    "ends with": lambda left, right: left.endswith(right),
    "contains": lambda left, right: right in left,
}
_EDITS: dict[str, Callable[..., Value]] = {
    "stripped": str.strip,
    "in lower case": str.lower,
    "in upper case": str.upper,
    "capitalised": str.capitalize,
    "replaced": str.replace,
    "cut": lambda value, size: value[:size],
    "in front": lambda value, affix: str(affix) + value,
    "at the end": lambda value, affix: value + str(affix),
    "sorted": sorted,
    "reversed": lambda value: value[::-1],
    "without repeats": lambda value: list(dict.fromkeys(value)),
}
_INDEX = {"first": 0, "last": -1}
_AGGREGATES: dict[str, Callable[..., Value]] = {"count": len, "sum": sum, "largest": max, "smallest": min}


@dataclass(frozen=True)
class Raised:
    """Outcome of a call that raises this exception."""

    error: str


@dataclass(frozen=True)
class Undefined:
    """Outcome of a call that the document does not specify."""


# Parameters by name; the keys <item>, <total> and <attributes> cannot collide with a parameter.
_Environment = dict[str, Value]


def run_object(
    document: ast.ClassDocument, args: Sequence[Value], calls: Sequence[tuple[str, Sequence[Value]]]
) -> Raised | list[Value | Raised]:
    """Create an object and call its methods in turn; ``Raised`` if the constructor raises."""
    attributes: dict[str, Value] = {}
    created = run(ast.Document(document.name, document.params, document.statements), args, attributes)
    if isinstance(created, Raised):
        return created
    methods = {method.name: method for method in document.methods}
    outcomes = []
    for name, call_args in calls:
        outcome = run(methods[name], call_args, attributes) if name in methods else Raised("AttributeError")
        outcomes.append(None if isinstance(outcome, Undefined) else copy.deepcopy(outcome))
    return outcomes


def run(
    document: ast.Document, args: Sequence[Value], own: dict[str, Value] | None = None
) -> Value | Raised | Undefined:
    """Return the outcome of one call: a value, ``Raised`` or ``Undefined``.

    The call reads and changes the object's attributes in place.
    """
    env = _Environment(zip(document.params, args, strict=True))
    env["<attributes>"] = {} if own is None else own
    try:
        return _run_statements(document.statements, env)
    except (TypeError, ZeroDivisionError, AttributeError, KeyError, IndexError) as error:
        return Raised(type(error).__name__)


def _run_statements(statements: Sequence[ast.Statement], env: _Environment) -> Value | Raised | Undefined:
    loop_is_done = False
    for statement in statements:
        if isinstance(statement, ast.When | ast.WhenDo) and not _condition(statement.condition, env):
            continue
        match statement:
            case ast.When() | ast.Otherwise() | ast.Always():
                outcome = statement.outcome
                return Raised(outcome.error) if isinstance(outcome, ast.Raise) else _value(outcome.value, env)
            case ast.Do(action) | ast.WhenDo(_, action):
                _perform(action, env)
            case ast.Start(value):
                env["<total>"] = value.value
            case ast.Each(ast.Name(name)) if not loop_is_done:
                loop_is_done = True
                _loop(statements, env[name], env)
    return Undefined()


def _perform(action: ast.Action, env: _Environment) -> None:
    attributes = env["<attributes>"]
    if isinstance(action, ast.Append):
        attributes[action.target.name].append(_value(action.value, env))
    else:
        attributes[action.target.name] = _value(action.value, env)


def _loop(statements: Sequence[ast.Statement], items: Sequence[Value], env: _Environment) -> None:
    """One pass over the list: of all ``ForEach`` statements the first that matches an item applies."""
    for item in items:
        env["<item>"] = item
        for statement in statements:
            if isinstance(statement, ast.Each) and _all(statement.tests, env):
                amount = _value(statement.amount, env)
                env["<total>"] += amount if statement.op == "add" else -amount
                break
        for statement in statements:
            if isinstance(statement, ast.Keep):
                clamp = max if statement.side == "at least" else min
                env["<total>"] = clamp(env["<total>"], statement.limit.value)


def _value(expression: ast.Expression, env: _Environment) -> Value:
    match expression:
        case ast.Chain(base, steps):
            return _calculate(_atom(base, env), steps, env)
        case ast.Edited(base, edits):
            return _edited(_atom(base, env), edits)
        case ast.Items():
            return _items(expression, env)
        case ast.Aggregate():
            return _aggregate(expression, env)
        case ast.Whether(condition):
            return _condition(condition, env)
        case ast.Limited(chain, low, high):
            return _clamp(_value(chain, env), low, high)
        case ast.EndItem(end, source, removed):
            values, index = _atom(source, env), _INDEX[end]
            return values.pop(index) if removed else values[index]
        case ast.EmptyList():
            return []


def _clamp(number: Value, low: ast.Number | None, high: ast.Number | None) -> Value:
    number = min(number, high.value) if high else number
    return max(number, low.value) if low else number


def _aggregate(aggregate: ast.Aggregate, env: _Environment) -> Value:
    values = _items(aggregate.items, env)
    if values or aggregate.kind in {"count", "sum"}:
        return _AGGREGATES[aggregate.kind](values)
    return None if aggregate.default is None else aggregate.default.value


def _items(items: ast.Items, env: _Environment) -> Value:
    values = []
    for item in _atom(items.source, env):
        env["<item>"] = item
        if _all(items.tests, env):
            values.append(_calculate(item, items.steps, env))
    return _edited(values, items.edits)


def _edited(value: Value, edits: tuple[ast.Edit, ...]) -> Value:
    for edit in edits:
        value = _EDITS[edit.kind](value, *(constant.value for constant in edit.args))
    return value


def _condition(condition: ast.Condition, env: _Environment) -> bool:
    if condition.joiner == "and":
        return _all(condition.tests, env)
    return any(_test(test, env) for test in condition.tests)


def _all(tests: tuple[ast.Test, ...], env: _Environment) -> bool:
    return all(_test(test, env) for test in tests)


def _test(test: ast.Test, env: _Environment) -> bool:
    left = _value(test.left, env)
    match test:
        case ast.Empty():
            return len(left) == 0
        case ast.Between(_, low, high):
            return bool(_atom(low, env) <= left <= _atom(high, env))
        case ast.Compare(_, op, right):
            return bool(_OPERATORS[op](left, _atom(right, env)))


def _calculate(value: Value, steps: tuple[ast.Step, ...], env: _Environment) -> Value:
    for step in steps:
        value = _OPERATORS[step.op](value, _atom(step.operand, env))
    return value


def _atom(atom: ast.Atom, env: _Environment) -> Value:
    match atom:
        case ast.Number(value) | ast.Text(value) | ast.Truth(value):
            return value
        case ast.Name(name):
            return env[name]
        case ast.Item():
            return env["<item>"]
        case ast.Total():
            return env["<total>"]
        case ast.Own(name):
            return env["<attributes>"][name]
        case ast.Size(source):
            return len(_atom(source, env))

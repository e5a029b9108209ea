"""Interpreter of the requirements language: runs a document on values without writing any Python (X1).

It is the authority for the expected values of test suites: reconstructors and source code are checked
against it, never the other way round.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iccm_assets.simulation.language import ast

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
class RaisedError:
    """Outcome of a call that raises this exception."""

    error: str


@dataclass(frozen=True)
class Unspecified:
    """Outcome of a call that the document does not specify."""


# Parameters by name; the keys <item>, <total> and <attributes> cannot collide with a parameter.
_Environment = dict[str, Value]


def copy_value(value: Value) -> Value:
    """Copy a value and the lists in it; everything else in one is immutable."""
    return [copy_value(item) for item in value] if isinstance(value, list) else value


def call_methods(
    document: ast.ClassDocument, args: Sequence[Value], calls: Sequence[tuple[str, Sequence[Value]]]
) -> RaisedError | list[Value | RaisedError]:
    """Create an object and call its methods in turn; ``RaisedError`` if the constructor raises."""
    attributes: dict[str, Value] = {}
    created = call_function(
        ast.FunctionDocument(document.name, document.params, document.statements), args, attributes
    )
    if isinstance(created, RaisedError):
        return created
    methods = {method.name: method for method in document.methods}
    outcomes = []
    for name, call_args in calls:
        outcome = (
            call_function(methods[name], call_args, attributes)
            if name in methods
            else RaisedError("AttributeError")
        )
        outcomes.append(None if isinstance(outcome, Unspecified) else copy_value(outcome))
    return outcomes


def call_function(
    document: ast.FunctionDocument, args: Sequence[Value], attributes: dict[str, Value] | None = None
) -> Value | RaisedError | Unspecified:
    """Return the outcome of one call: a value, ``RaisedError`` or ``Unspecified``.

    The call reads and changes the object's attributes in place.
    """
    env = _Environment(zip(document.params, args, strict=True))
    env["<attributes>"] = {} if attributes is None else attributes
    try:
        return _run_statements(document.statements, env)
    except (TypeError, ZeroDivisionError, AttributeError, KeyError, IndexError) as error:
        return RaisedError(type(error).__name__)


def _run_statements(
    statements: Sequence[ast.Statement], env: _Environment
) -> Value | RaisedError | Unspecified:
    loop_is_done = False
    for statement in statements:
        if isinstance(statement, ast.When | ast.ConditionalAction) and not _condition(
            statement.condition, env
        ):
            continue
        match statement:
            case ast.When() | ast.Otherwise() | ast.Always():
                outcome = statement.outcome
                return (
                    RaisedError(outcome.error)
                    if isinstance(outcome, ast.Raise)
                    else _value(outcome.value, env)
                )
            case ast.ActionStatement(action) | ast.ConditionalAction(_, action):
                _perform(action, env)
            case ast.InitTotal(value):
                env["<total>"] = value.value
            case ast.ForEach(ast.Parameter(name)) if not loop_is_done:
                loop_is_done = True
                _loop(statements, env[name], env)
    return Unspecified()


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
            if isinstance(statement, ast.ForEach) and _all(statement.tests, env):
                amount = _value(statement.amount, env)
                env["<total>"] += amount if statement.op == "add" else -amount
                break
        for statement in statements:
            if isinstance(statement, ast.ClampTotal):
                clamp = max if statement.side == "at least" else min
                env["<total>"] = clamp(env["<total>"], statement.limit.value)


def _value(expression: ast.Expression, env: _Environment) -> Value:
    match expression:
        case ast.Chain(base, steps):
            return _calculate(_atom(base, env), steps, env)
        case ast.EditedText(base, edits):
            return _edited(_atom(base, env), edits)
        case ast.ListComp():
            return _items(expression, env)
        case ast.Aggregate():
            return _aggregate(expression, env)
        case ast.ConditionValue(condition):
            return _condition(condition, env)
        case ast.Clamp(chain, low, high):
            return _clamp(_value(chain, env), low, high)
        case ast.EndItem(end, source, removed):
            values, index = _atom(source, env), _INDEX[end]
            return values.pop(index) if removed else values[index]
        case ast.EmptyList():
            return []


def _clamp(number: Value, low: ast.NumberLiteral | None, high: ast.NumberLiteral | None) -> Value:
    number = min(number, high.value) if high else number
    return max(number, low.value) if low else number


def _aggregate(aggregate: ast.Aggregate, env: _Environment) -> Value:
    values = _items(aggregate.items, env)
    if values or aggregate.kind in {"count", "sum"}:
        return _AGGREGATES[aggregate.kind](values)
    return None if aggregate.default is None else aggregate.default.value


def _items(items: ast.ListComp, env: _Environment) -> Value:
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
        case ast.IsEmpty():
            return len(left) == 0
        case ast.IsBetween(_, low, high):
            return bool(_atom(low, env) <= left <= _atom(high, env))
        case ast.Compare(_, op, right):
            return bool(_OPERATORS[op](left, _atom(right, env)))


def _calculate(value: Value, steps: tuple[ast.Step, ...], env: _Environment) -> Value:
    for step in steps:
        value = _OPERATORS[step.op](value, _atom(step.operand, env))
    return value


def _atom(atom: ast.Atom, env: _Environment) -> Value:
    match atom:
        case ast.NumberLiteral(value) | ast.TextLiteral(value) | ast.BoolLiteral(value):
            return value
        case ast.Parameter(name):
            return env[name]
        case ast.CurrentItem():
            return env["<item>"]
        case ast.RunningTotal():
            return env["<total>"]
        case ast.Attribute(name):
            return env["<attributes>"][name]
        case ast.Length(source):
            return len(_atom(source, env))

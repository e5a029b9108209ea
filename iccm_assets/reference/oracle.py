"""What a document means: runs it directly on values, without writing any Python (X1).

The oracle is the authority for expected values in test suites; readers and source code are checked
against it, never the other way round.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from iccm_assets.reference import document as ast

Value = Any  # int, float, str, bool or a list of them

ARITHMETIC: dict[str, Callable[[Value, Value], Value]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.floordiv,
    "modulo": operator.mod,
}
COMPARISONS: dict[str, Callable[[Value, Value], bool]] = {
    "is less than": operator.lt,
    "is at most": operator.le,
    "is more than": operator.gt,
    "is at least": operator.ge,
    "is": operator.eq,
    "is not": operator.ne,
    "is longer than": lambda left, right: len(left) > right,
    "is shorter than": lambda left, right: len(left) < right,
    "starts with": lambda left, right: cast(bool, left.startswith(right)),
    "ends with": lambda left, right: cast(bool, left.endswith(right)),
    "contains": lambda left, right: right in left,
}


@dataclass(frozen=True)
class Raised:
    """The function raises this exception."""

    error: str


@dataclass(frozen=True)
class Undefined:
    """The document does not say what happens here."""


class _Names(dict[str, Value]):
    """Parameters by name; ``item``, ``total`` and the object are kept under names no parameter can have."""


def run_object(
    document: ast.ClassDocument, args: Sequence[Value], calls: Sequence[tuple[str, Sequence[Value]]]
) -> Raised | list[Value | Raised]:
    """What creating an object does when it raises, else the outcome of each method call in turn."""
    own: dict[str, Value] = {}
    made = run(ast.Document(document.name, document.params, document.statements), args, own)
    if isinstance(made, Raised):
        return made
    methods = {method.name: method for method in document.methods}
    outcomes = []
    for name, given in calls:
        outcome = run(methods[name], given, own) if name in methods else Raised("AttributeError")
        outcomes.append(None if isinstance(outcome, Undefined) else copy.deepcopy(outcome))
    return outcomes


def run(
    document: ast.Document, args: Sequence[Value], own: dict[str, Value] | None = None
) -> Value | Raised | Undefined:
    """The outcome of one call: a value, ``Raised`` or ``Undefined``; ``own`` has the object's attributes."""
    env = _Names(zip(document.params, args, strict=True))
    env["<own>"] = {} if own is None else own
    looped = False
    try:
        for statement in document.statements:
            match statement:
                case ast.When(condition, outcome):
                    if _holds(condition, env):
                        return _outcome(outcome, env)
                case ast.Otherwise(outcome) | ast.Always(outcome):
                    return _outcome(outcome, env)
                case ast.Do(action):
                    _act(action, env)
                case ast.WhenDo(condition, action):
                    if _holds(condition, env):
                        _act(action, env)
                case ast.Start(value):
                    env["<total>"] = value.value
                case ast.Each(ast.Name(name)) if not looped:
                    looped = True
                    _loop(document, env[name], env)
    except (TypeError, ZeroDivisionError, AttributeError, KeyError, IndexError) as error:
        return Raised(type(error).__name__)
    return Undefined()


def _act(action: ast.Action, env: _Names) -> None:
    if isinstance(action, ast.Append):
        env["<own>"][action.target.name].append(_chain(action.value, env))
    else:
        env["<own>"][action.target.name] = _expression(action.value, env)


def _loop(document: ast.Document, items: Sequence[Value], env: _Names) -> None:
    eaches = [statement for statement in document.statements if isinstance(statement, ast.Each)]
    keeps = [statement for statement in document.statements if isinstance(statement, ast.Keep)]
    for item in items:
        env["<item>"] = item
        for each in eaches:
            if all(_test(test, env) for test in each.tests):
                amount = _chain(each.amount, env)
                env["<total>"] += amount if each.op == "add" else -amount
                break
        for keep in keeps:
            pick = max if keep.side == "at least" else min
            env["<total>"] = pick(env["<total>"], keep.limit.value)


def _outcome(outcome: ast.Outcome, env: _Names) -> Value | Raised:
    return Raised(outcome.error) if isinstance(outcome, ast.Raise) else _expression(outcome.value, env)


def _expression(expression: ast.Expression, env: _Names) -> Value:
    match expression:
        case ast.Chain():
            return _chain(expression, env)
        case ast.Edited(ast.Name(name), edits):
            value = env[name]
            for edit in edits:
                value = edit_text(value, edit)
            return value
        case ast.Items():
            return _items(expression, env)
        case ast.Aggregate():
            return _aggregate(expression, env)
        case ast.Whether(condition):
            return _holds(condition, env)
        case ast.Limited(value, low, high):
            number = _chain(value, env)
            number = min(number, high.value) if high else number
            return max(number, low.value) if low else number
        case ast.EndItem(end, source, taken):
            values, at = _atom(source, env), -1 if end == "last" else 0
            return values.pop(at) if taken else values[at]
        case ast.EmptyList():
            return []
    raise AssertionError(expression)


def _aggregate(aggregate: ast.Aggregate, env: _Names) -> Value:
    found = _items(aggregate.items, env)
    if aggregate.kind == "count":
        return len(found)
    if aggregate.kind == "sum":
        return sum(found)
    if not found:
        return None if aggregate.default is None else aggregate.default.value
    return max(found) if aggregate.kind == "largest" else min(found)


def _items(items: ast.Items, env: _Names) -> list[Value]:
    found = []
    for item in _atom(items.source, env):
        env["<item>"] = item
        if all(_test(test, env) for test in items.tests):
            found.append(_steps(item, items.steps, env))
    for edit in items.edits:
        found = edit_list(found, edit)
    return found


def edit_text(value: str, edit: ast.Edit) -> str:
    """One text edit applied."""
    args: list[Any] = [arg.value for arg in edit.args]
    match edit.kind:
        case "stripped":
            return value.strip()
        case "in lower case":
            return value.lower()
        case "in upper case":
            return value.upper()
        case "capitalised":
            return value.capitalize()
        case "replaced":
            return value.replace(args[0], args[1])
        case "cut":
            return value[: args[0]]
        case "in front":
            return str(args[0]) + value
        case "at the end":
            return value + str(args[0])
    raise AssertionError(edit)


def edit_list(value: list[Value], edit: ast.Edit) -> list[Value]:
    """One list edit applied."""
    match edit.kind:
        case "sorted":
            return sorted(value)
        case "reversed":
            return value[::-1]
        case "without repeats":
            return list(dict.fromkeys(value))
        case "cut":
            return value[: int(cast(ast.Number, edit.args[0]).value)]
    raise AssertionError(edit)


def _holds(condition: ast.Condition, env: _Names) -> bool:
    results = (_test(test, env) for test in condition.tests)
    return all(results) if condition.joiner == "and" else any(results)


def _test(test: ast.Test, env: _Names) -> bool:
    left = _chain(test.left, env)
    match test:
        case ast.Empty():
            return len(left) == 0
        case ast.Between(_, low, high):
            return bool(_atom(low, env) <= left <= _atom(high, env))
        case ast.Compare(_, op, right):
            return COMPARISONS[op](left, _atom(right, env))


def _chain(chain: ast.Chain, env: _Names) -> Value:
    return _steps(_atom(chain.base, env), chain.steps, env)


def _steps(value: Value, steps: tuple[ast.Step, ...], env: _Names) -> Value:
    for step in steps:
        value = ARITHMETIC[step.op](value, _atom(step.operand, env))
    return value


def _atom(atom: ast.Atom, env: _Names) -> Value:
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
            return env["<own>"][name]
        case ast.Size(of):
            return len(_atom(of, env))

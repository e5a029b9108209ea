"""Count what a suite checks, without running it. (D5)

A suite of ``cases`` checks its distinct cases. A test of pytest checks what it asserts, once per parameter
set and per element of a literal list that it loops over; one without an assertion counts once.
"""

from __future__ import annotations

import ast
import marshal
import math
from collections.abc import Iterator
from dataclasses import dataclass

from iccm_assets.suites.source_edits import FunctionNode, SourceText
from iccm_assets.suites.suite_values import EncodedValue
from iccm_assets.suites.test_suites import Case, Expectation, Suite
from iccm_assets.suites.value_differences import format_value

MAX_CONSTANT_LENGTH = 10_000
_ITERATORS = frozenset(("items", "keys", "values", "enumerate", "zip", "sorted", "list"))


def count_checks(suite: Suite) -> int:
    """Count the distinct checks of a suite."""
    if suite.kind == "cases":
        return len({marshal.dumps(case.inputs(), 2) for case in suite.cases})
    tests = {case.test.rpartition("::")[2] for case in suite.cases}
    texts = (SourceText.parse(text) for name, text in suite.files.items() if name.endswith(".py"))
    return sum(_count_in_file(text.tree, tests) for text in texts if text)


def find_constants(suite: Suite) -> set[str] | None:
    """Find what each repeated call is expected to do, as Python, if it is the same each time; else None.

    An implementation of constants passes such a suite. It passes none in which calls change arguments.
    """
    expectations: dict[tuple[str, ...], list[str]] = {}
    for case in suite.cases if suite.kind == "cases" else ():
        for name, expected in _list_expectations(case):
            if expected.arguments is not None:
                return None
            text = f"raise {expected.raises}" if expected.value is None else _write(expected.value)
            expectations.setdefault(name, []).append(text)
    repeated = [set(expected) for expected in expectations.values() if len(expected) > 1]
    if suite.kind != "cases" or any(len(distinct) > 1 for distinct in repeated):
        return None
    return set().union(*repeated) if repeated or not expectations else None


def _write(value: EncodedValue) -> str:
    return format_value(value, MAX_CONSTANT_LENGTH)


def _list_expectations(case: Case) -> Iterator[tuple[tuple[str, ...], Expectation]]:
    if case.steps is None or case.expected.raises:
        yield (case.call.name,), case.expected
    for call, expected in case.steps or ():
        if expected.value is not None or expected.raises:
            yield (case.call.name, call.name), expected


@dataclass(frozen=True)
class _TestFile:
    """What the statements of a test file refer to: its constants, and its helpers that assert."""

    constants: dict[str, ast.expr]
    helpers: frozenset[str]


def _count_in_file(tree: ast.Module, tests: set[str]) -> int:
    functions = [node for node in ast.walk(tree) if isinstance(node, FunctionNode)]
    file = _describe_file(tree, functions)
    return sum(
        _count_parameter_sets(function, file) * max(1, _count_assertions(function.body, file))
        for function in functions
        if function.name in tests
    )


def _describe_file(tree: ast.Module, functions: list[FunctionNode]) -> _TestFile:
    assignments = [statement for statement in tree.body if isinstance(statement, ast.Assign)]
    asserting = (node.name for node in functions if any(isinstance(part, ast.Assert) for part in node.body))
    names = {
        target.id: statement.value
        for statement in assignments
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return _TestFile(names, frozenset(asserting))


def _count_parameter_sets(function: FunctionNode, file: _TestFile) -> int:
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call) and len(node.args) > 1]
    return math.prod(_length(call.args[1], file) for call in calls if _name(call.func) == "parametrize")


def _count_assertions(body: list[ast.stmt], file: _TestFile) -> int:
    total = 0
    for statement in body:
        inner = [child for name in ("body", "orelse", "finalbody") for child in getattr(statement, name, [])]
        repeated = _length(statement.iter, file) if isinstance(statement, ast.For) else 1
        total += _is_assertion(statement, file) + repeated * _count_assertions(inner, file)
    return total


def _is_assertion(statement: ast.stmt, file: _TestFile) -> bool:
    """Whether a statement asserts: also by a method of unittest, or by a helper of the file."""
    if isinstance(statement, ast.With):
        calls = [item.context_expr for item in statement.items]
    else:
        calls = [statement.value] if isinstance(statement, ast.Expr) else []
    names = [_name(call.func) for call in calls if isinstance(call, ast.Call)]
    return isinstance(statement, ast.Assert) or any(
        name.startswith("assert") or name in ("raises", "warns") or name in file.helpers for name in names
    )


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _length(node: ast.expr, file: _TestFile) -> int:
    """Return how many elements a literal has, also by a name, ``.items()`` or ``enumerate()``; else 1."""
    if isinstance(node, ast.Call):
        is_method = isinstance(node.func, ast.Attribute) and not node.args
        inner = [node.func.value] if is_method else node.args  # type: ignore[attr-defined]
        return _length(inner[0], file) if inner and _name(node.func) in _ITERATORS else 1
    literal = file.constants.get(node.id) if isinstance(node, ast.Name) else node
    if isinstance(literal, ast.List | ast.Tuple | ast.Set):
        return max(1, len(literal.elts))
    return max(1, len(literal.keys)) if isinstance(literal, ast.Dict) else 1

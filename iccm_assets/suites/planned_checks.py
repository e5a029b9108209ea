"""Count what a suite checks, without running it. (D5)

A suite of ``cases`` checks its distinct cases. A test of pytest checks what it asserts, once per parameter
set and per element of a literal list that it loops over; one without an assertion counts once.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from typing import Any

from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.test_suites import Case, Expectation, Suite


def count_checks(suite: Suite) -> int:
    """Count the distinct checks of a suite."""
    if suite.kind == "cases":
        return len({repr(case.inputs()) for case in suite.cases})
    tests = {case.test.rpartition("::")[2] for case in suite.cases}
    texts = (SourceText.parse(text) for name, text in suite.files.items() if name.endswith(".py"))
    return sum(_count_in_file(text.tree, tests) for text in texts if text)


def expects_constants(suite: Suite) -> bool:
    """Whether every function and method is expected to do the same each time, as a constant would."""
    expectations: dict[tuple[str, ...], set[str]] = {}
    for case in suite.cases:
        for name, expected in _list_expectations(case):
            expectations.setdefault(name, set()).add(json.dumps([expected.value, expected.raises]))
    return suite.kind == "cases" and all(len(distinct) == 1 for distinct in expectations.values())


def _list_expectations(case: Case) -> Iterator[tuple[tuple[str, ...], Expectation]]:
    yield (case.call.name,), case.expected
    for call, expected in case.steps or ():
        if expected.value is not None or expected.raises:
            yield (case.call.name, call.name), expected


def _count_in_file(tree: ast.Module, tests: set[str]) -> int:
    constants = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in tests
    ]
    return sum(
        _count_parameter_sets(function, constants) * max(1, _count_assertions(function.body, constants))
        for function in functions
    )


def _count_parameter_sets(function: ast.FunctionDef | ast.AsyncFunctionDef, constants: dict[str, Any]) -> int:
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call) and len(node.args) > 1]
    return math.prod(
        _length(call.args[1], constants) for call in calls if ast.unparse(call.func).endswith("parametrize")
    )


def _count_assertions(body: list[ast.stmt], constants: dict[str, Any]) -> int:
    total = 0
    for statement in body:
        own = _is_assertion(statement)
        inner = [child for name in ("body", "orelse", "finalbody") for child in getattr(statement, name, [])]
        repeated = _length(statement.iter, constants) if isinstance(statement, ast.For) else 1
        total += own + repeated * _count_assertions(inner, constants)
    return total


def _is_assertion(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.With):
        return any(ast.unparse(item.context_expr).startswith("pytest.raises") for item in statement.items)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return getattr(statement.value.func, "attr", "").startswith("assert")
    return isinstance(statement, ast.Assert)


def _length(node: ast.expr, constants: dict[str, Any]) -> int:
    """Return how many elements a literal has, directly or by the name of a constant; 1 where unknown."""
    literal = constants.get(node.id) if isinstance(node, ast.Name) else node
    if isinstance(literal, ast.List | ast.Tuple | ast.Set):
        return max(1, len(literal.elts))
    return max(1, len(literal.keys)) if isinstance(literal, ast.Dict) else 1

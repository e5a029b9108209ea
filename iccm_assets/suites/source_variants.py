"""Variants of a source that are no mutants: stubs, the same code with another text, and with probes.

A *stub* has the names of the source and none of its behaviour. *Probes* record which branches a suite
reaches: both sides of each condition, the body of each loop, each handler and each ``case``, and functions
that have neither these nor functions inside. (D4, D5)
"""

from __future__ import annotations

import ast
import base64
from collections.abc import Iterator, Sequence
from itertools import pairwise

from iccm_assets.sandbox.source_files import split_files
from iccm_assets.suites.source_edits import (
    Edit,
    FunctionNode,
    SourceText,
    is_active,
    is_python,
    list_nodes,
    walk,
)

STUB_RESULTS = ("None", "True", "1", "'x'", "[]", "1.5", "{}")
MAX_OWN_RESULTS, MAX_RESULT_LENGTH = 3, 60
_KEPT_DECORATORS = frozenset(("staticmethod", "classmethod", "property", "dataclass"))
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SUPPRESS = '__import__("contextlib").suppress(Exception)'


def list_results(source: SourceText) -> list[str]:
    """List what stubs return: common constants, and some that the source itself returns."""
    returned = [node.value for node in walk(source.tree) if isinstance(node, ast.Return)]
    own = dict.fromkeys(repr(value.value) for value in returned if isinstance(value, ast.Constant))
    short = [text for text in own if len(text) <= MAX_RESULT_LENGTH and text not in STUB_RESULTS]
    return [*STUB_RESULTS, *short[:MAX_OWN_RESULTS]]


def build_stub(source: SourceText, result: str) -> list[Edit]:
    """Build the source in which every function and method does nothing but return ``result``.

    Module and class level statements stay: a suite that tests only constants passes a stub. One that fails,
    since it calls a function, is ignored.
    """
    edits: list[Edit] = []
    blocks: list[list[ast.stmt]] = [source.tree.body]
    while blocks:
        for statement in blocks.pop():
            edits += _drop_decorators(statement, source)
            if isinstance(statement, FunctionNode):
                own = "None" if statement.name.startswith("__") else result
                start = source.statement_start(statement.body[0])
                edits.append((start, source.span(statement.body[-1])[1], f"return {own}"))
                continue
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
                edits += _suppress_errors(statement, result, source)
            blocks += [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    return edits


def hide_text(source: SourceText) -> list[Edit]:
    """Build a source that does the same and has another text, as an implementation of its own would have."""
    edits: list[Edit] = []
    files = split_files(source.data.decode())
    starts = [source.line_starts[before] for _, _, before in files] or [0]
    ends = [source.line_starts[before - 1] for _, _, before in files[1:]]
    for start, end in zip(starts, [*ends, len(source.data)], strict=True):
        encoded = base64.b64encode(source.data[start:end]).decode()
        code = f"__import__('base64').b64decode('{encoded}')"
        edits.append((start, end, f"exec(compile({code}, __file__, 'exec', dont_inherit=True))\n"))
    return edits


def _drop_decorators(statement: ast.stmt, source: SourceText) -> Iterator[Edit]:
    for decorator in getattr(statement, "decorator_list", []):
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name not in _KEPT_DECORATORS:
            start, end = source.span(decorator)
            yield source.data.rfind(b"@", 0, start), end, ""


def _suppress_errors(statement: ast.stmt, result: str, source: SourceText) -> Iterator[Edit]:
    nodes = list(ast.walk(statement))
    lambdas = [node for node in nodes if isinstance(node, ast.Lambda)]
    if lambdas:
        yield *source.span(lambdas[0].body), result
    start = source.span(statement)[0]
    if source.begins_line(statement) and any(isinstance(node, ast.Call) for node in nodes):
        yield start, start, f"with {_SUPPRESS}: "


def insert_probes(source: SourceText, probe: str) -> tuple[list[Edit], dict[int, int]]:
    """Insert a call of ``probe`` into each branch; returns the edits and the line of each branch's number."""
    edits: list[Edit] = []
    branches: dict[int, int] = {}
    inner: set[int] = set()  # of functions: what runs at import is not what a suite reaches
    for number, node in enumerate(walk(source.tree)):
        first = 2 * number
        if isinstance(node, FunctionNode | ast.Lambda) and id(node) not in inner:
            inner.update(map(id, walk(node)))
        if id(node) not in inner:
            continue
        if isinstance(node, ast.If | ast.IfExp):
            start, end = source.span(node.test)
            # Sorted after what the test itself holds at its end, and before what begins there.
            # The blank: nothing has to stand between a keyword and a parenthesis, as in ``if(a) or b``.
            edits += [(start, start, f" {probe}({first}, ("), (end, end, "))")]
            branches |= {first: node.lineno, first + 1: node.lineno}
        elif body := _branch_body(node):
            edits.append(source.insert_before(body, f"{probe}({first})"))
            branches[first] = body.lineno
    return edits, branches


def list_branch_spans(source: SourceText) -> list[tuple[int, int, int]]:
    """List where the code of a branch starts and ends, in bytes, with the number that its probe records.

    None where calls at import run functions of the source, since nothing records what these reach.
    """
    if _runs_at_import(source.tree):
        return []
    spans: list[tuple[int, int, int]] = []
    for number, node in enumerate(walk(source.tree)):
        first = 2 * number
        blocks: list[tuple[int, list[ast.stmt] | list[ast.expr]]] = []
        if isinstance(node, ast.If):
            blocks = [(first, node.body), (first + 1, node.orelse)]
        elif isinstance(node, ast.IfExp):
            blocks = [(first, [node.body]), (first + 1, [node.orelse])]
        elif _branch_body(node):
            blocks = [(first, getattr(node, "body", []))]
        spans += [
            (source.span(block[0])[0], source.span(block[-1])[1], arm) for arm, block in blocks if block
        ]
    return spans


def find_branch(spans: Sequence[tuple[int, int, int]], start: int, end: int) -> int | None:
    """Return the number of the innermost branch around these bytes; None where there is none."""
    around = [span for span in spans if span[0] <= start and end <= span[1]]
    return min(around, key=lambda span: span[1] - span[0])[2] if around else None


def _runs_at_import(tree: ast.Module) -> bool:
    """Whether the import of a source may run its own functions."""
    own = {node.name for node in list_nodes(tree) if isinstance(node, (*_FUNCTIONS, ast.ClassDef))}
    outer = list[ast.AST](tree.body)
    while outer:
        node = outer.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            if node.name == "__init_subclass__":
                return True
            headers: list[ast.AST] = [*node.decorator_list, *getattr(node, "keywords", [])]
            if any(_names_one(header, own) for header in headers):
                return True
            outer += node.body if isinstance(node, ast.ClassDef) else node.args.defaults
        elif isinstance(node, ast.Call) and _names_one(node, own):
            return True
        elif not isinstance(node, ast.Lambda):
            outer += filter(is_active, ast.iter_child_nodes(node))
    return False


def _names_one(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


COMPARISONS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
FIRST_COMPARISON = 1 << 24  # the numbers of branches are smaller


def insert_all_probes(source: SourceText, probe: str) -> list[Edit]:
    """Insert a call of ``probe`` into each branch, and let it do the comparisons.

    Of a comparison it records which side is larger, by how much, or that both are the same.
    """
    branches, _ = insert_probes(source, probe)
    starts: list[Edit] = []
    ends: list[Edit] = []  # of two that end together the inner one first
    for number, node in enumerate(walk(source.tree)):
        if isinstance(node, ast.Compare) and len(node.ops) <= 2:
            pieces = _split_comparison(node, source, probe, FIRST_COMPARISON + 16 * number)
            starts += pieces[:-1]
            ends += pieces[-1:]
    # Where edits meet, a branch begins before its comparison and ends after it.
    edits = [*reversed(ends), *branches, *starts]
    return edits if is_python(source, edits) else branches


def _split_comparison(node: ast.Compare, source: SourceText, probe: str, arm: int) -> list[Edit]:
    """Return the edits that let ``probe`` compare; none where it cannot be written without a second look."""
    operators = [COMPARISONS.get(type(operator), "") for operator in node.ops]
    operands = [source.span(part) for part in (node.left, *node.comparators)]
    gaps = [(left[1], right[0]) for left, right in pairwise(operands)]
    is_plain = (operands[0][0], operands[-1][1]) == source.span(node) and all(
        operator and source.data[start:end].strip() == operator.encode()
        for operator, (start, end) in zip(operators, gaps, strict=True)
    )
    if not is_plain or (len(operators) == 2 and not isinstance(node.comparators[0], ast.Name | ast.Constant)):
        return []  # an operand has parentheses of its own, or would be evaluated twice
    start, end = operands[0][0], operands[-1][1]
    if len(operators) == 1:
        return [
            (start, start, f" {probe}({arm}, ("),
            (*gaps[0], "), ("),
            (end, end, f"), {operators[0]!r})"),
        ]
    middle = source.data[slice(*operands[1])].decode()
    second = f"{probe}({arm + 8}, ({middle}), ("
    return [
        (start, start, f" ({probe}({arm}, ("),
        (*gaps[0], "), ("),
        (*gaps[1], f"), {operators[0]!r}) and {second}"),
        (end, end, f"), {operators[1]!r}))"),
    ]


def _branch_body(node: ast.AST) -> ast.stmt | None:
    """Return the first statement of a branch with a body of its own, or None."""
    if isinstance(node, FunctionNode):
        is_special = node.name.startswith("__") and node.name != "__init__"
        # Who reaches a function inside has called the one around it, maybe as a decorator at import.
        inner = (part for part in walk(node) if part is not node)
        if is_special or any(isinstance(part, (*_BRANCHES, *_FUNCTIONS)) for part in inner):
            return None
        if all(map(_does_nothing, node.body)):
            return None  # such as an abstract method
    elif isinstance(node, ast.ExceptHandler) and _catches_import_error(node):
        return None  # which side runs is the environment's choice
    elif not isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case):
        return None
    return next(filter(is_active, node.body), node.body[-1])


def find_special_lines(tree: ast.Module) -> frozenset[int]:
    """Find the lines of methods such as ``__iter__``, which cases cannot call; other code may."""
    lines: set[int] = set()
    for node in list_nodes(tree):
        if not isinstance(node, FunctionNode) or not node.name.startswith("__"):
            continue
        if node.name not in ("__init__", "__new__", "__post_init__"):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(lines)


def _does_nothing(statement: ast.stmt) -> bool:
    raises = isinstance(statement, ast.Raise) and statement.exc is not None
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return (
        isinstance(statement, ast.Pass) or is_constant or (raises and "NotImplemented" in ast.dump(statement))
    )


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id in ("ImportError", "ModuleNotFoundError")

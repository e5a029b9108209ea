"""Mutants of a source: the source with one small fault.

Kinds: comparison, boundary, arithmetic, constant, boolean, return, statement (a deleted one). A suite that
tests a source refuses most of them. Deterministic: the same source gives the same mutants. (D5)
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from iccm_assets.suites.signatures import declares_fields
from iccm_assets.suites.source_edits import Edit, SourceText, walk

MAX_NODE_BYTES = 400  # of an expression that is written anew
MAX_GENERATED = 50_000

_COMPARISONS: dict[type[ast.cmpop], tuple[tuple[str, type[ast.cmpop]], ...]] = {
    ast.Lt: (("boundary", ast.LtE), ("comparison", ast.GtE)),
    ast.LtE: (("boundary", ast.Lt), ("comparison", ast.Gt)),
    ast.Gt: (("boundary", ast.GtE), ("comparison", ast.LtE)),
    ast.GtE: (("boundary", ast.Gt), ("comparison", ast.Lt)),
    ast.Eq: (("comparison", ast.NotEq),),
    ast.NotEq: (("comparison", ast.Eq),),
    ast.In: (("comparison", ast.NotIn),),
    ast.NotIn: (("comparison", ast.In),),
    ast.Is: (("comparison", ast.IsNot),),
    ast.IsNot: (("comparison", ast.Is),),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
Change = tuple[str, ast.expr | ast.stmt, str | ast.expr | ast.stmt]  # kind, node, what replaces it


@dataclass(frozen=True)
class Mutant:
    """One fault: its kind, and what replaces the bytes from ``start`` to ``end``."""

    kind: str
    line: int
    start: int
    end: int
    replacement: str | ast.expr | ast.stmt

    @property
    def edit(self) -> Edit:
        """The edit of the source; written only for the few mutants that are selected."""
        new = self.replacement
        text = new if isinstance(new, str) else ast.unparse(new)
        return self.start, self.end, f"({text})" if isinstance(new, ast.expr) else text


def generate_mutants(source: SourceText) -> list[Mutant]:
    """Generate the mutants of a source in the order of its text, at most ``MAX_GENERATED``."""
    mutants: list[Mutant] = []
    for node in walk(source.tree):
        for kind, place, replacement in _change(node, source):
            mutants.append(Mutant(kind, place.lineno, *source.span(place), replacement))
        if len(mutants) >= MAX_GENERATED:
            break
    return mutants


def select_mutants(mutants: Sequence[Mutant], source: SourceText, limit: int, seed: str = "") -> list[Mutant]:
    """Select at most ``limit``, spread evenly over kinds and lines; the source and the seed decide which."""
    rng = Random(hashlib.sha256(seed.encode() + source.data).hexdigest())
    groups: dict[str, list[Mutant]] = {}
    for mutant in rng.sample(mutants, len(mutants)):
        groups.setdefault(mutant.kind, []).append(mutant)
    selected: list[Mutant] = []
    lines: Counter[int] = Counter()
    while groups and len(selected) < limit:
        for kind in sorted(groups):
            mutant = min(groups[kind], key=lambda mutant: lines[mutant.line])
            lines[mutant.line] += 1
            groups[kind].remove(mutant)
            selected.append(mutant)
        groups = {kind: group for kind, group in groups.items() if group}
    return selected[:limit]


def split_mutants(mutants: Sequence[Mutant], source: SourceText) -> tuple[list[Mutant], list[Mutant]]:
    """Split mutants into those that may select the cases of a suite, and those held out to measure it."""
    order = list(range(len(mutants)))
    Random(hashlib.sha256(b"split" + source.data).hexdigest()).shuffle(order)
    held_out = set(order[: len(order) // 2])
    return (
        [mutant for number, mutant in enumerate(mutants) if number not in held_out],
        [mutant for number, mutant in enumerate(mutants) if number in held_out],
    )


def _change(node: ast.AST, source: SourceText) -> Iterator[Change]:
    """Generate the changes of one node."""
    change = _CHANGES.get(type(node))
    if change is not None and isinstance(node, ast.expr | ast.stmt):
        start, end = source.span(node)
        if end - start <= MAX_NODE_BYTES or isinstance(node, ast.stmt):
            yield from change(node, source)
    tests = getattr(node, "test", None) if isinstance(node, ast.If | ast.IfExp | ast.While) else None
    for test in [tests] if tests is not None else getattr(node, "ifs", []):
        start, end = source.span(test)
        if end - start <= MAX_NODE_BYTES:
            yield "boolean", test, ast.UnaryOp(ast.Not(), test)


def _change_comparison(node: ast.Compare, source: SourceText) -> Iterator[Change]:
    for index, operator in enumerate(node.ops):
        for kind, other in _COMPARISONS[type(operator)]:
            operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
            yield kind, node, ast.Compare(node.left, operators, node.comparators)


def _change_operator(node: ast.BinOp, source: SourceText) -> Iterator[Change]:
    if other := _OPERATORS.get(type(node.op)):
        yield "arithmetic", node, ast.BinOp(node.left, other(), node.right)


def _change_unary(node: ast.UnaryOp, source: SourceText) -> Iterator[Change]:
    if isinstance(node.op, ast.Not):
        yield "boolean", node, node.operand
    elif isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "arithmetic", node, node.operand


def _change_boolean(node: ast.BoolOp, source: SourceText) -> Iterator[Change]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield "boolean", node, ast.BoolOp(other, node.values)


def _change_constant(node: ast.Constant, source: SourceText) -> Iterator[Change]:
    value = node.value
    others: list[object] = []
    if isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int | float):
        others = [value + 1, value - 1]
    elif isinstance(value, str):
        others = [value + "x", value[:-1]] if value else ["x"]
    elif isinstance(value, bytes):
        others = [value + b"x"]
    for other in others:
        if other != value:
            yield "constant", node, f"({other!r})"


def _change_call(node: ast.Call, source: SourceText) -> Iterator[Change]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in _FUNCTIONS:
        yield "comparison", function, _FUNCTIONS[function.id]
    elif isinstance(function, ast.Attribute) and not node.args and not node.keywords:
        yield "statement", node, function.value  # the value without, for example, .strip()


def _change_return(node: ast.Return, source: SourceText) -> Iterator[Change]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield "return", node, "return None"


def _change_augmented(node: ast.AugAssign, source: SourceText) -> Iterator[Change]:
    if other := _OPERATORS.get(type(node.op)):
        start, end = source.span(node)
        if end - start <= MAX_NODE_BYTES:
            yield "arithmetic", node, ast.AugAssign(node.target, other(), node.value)
    yield "statement", node, "pass"


def _change_assignment(node: ast.Assign, source: SourceText) -> Iterator[Change]:
    if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
        yield "statement", node, "pass"


def _change_class(node: ast.ClassDef, source: SourceText) -> Iterator[Change]:
    """Leave out each field of a dataclass or named tuple, whose behaviour is what it declares."""
    if declares_fields(node):
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                yield "statement", part, "pass"


def _delete(node: ast.stmt, source: SourceText) -> Iterator[Change]:
    yield "statement", node, "pass"


_CHANGES: dict[type[ast.AST], Callable[..., Iterator[Change]]] = {
    ast.Compare: _change_comparison,
    ast.BinOp: _change_operator,
    ast.UnaryOp: _change_unary,
    ast.BoolOp: _change_boolean,
    ast.Constant: _change_constant,
    ast.Call: _change_call,
    ast.Return: _change_return,
    ast.AugAssign: _change_augmented,
    ast.Assign: _change_assignment,
    ast.ClassDef: _change_class,
    **dict.fromkeys((ast.Expr, ast.Delete, ast.Raise, ast.Break, ast.Continue), _delete),
}

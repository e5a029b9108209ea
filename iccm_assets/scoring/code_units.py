"""Units of code: what a block of Python binds, needs and defines, and which units belong together (O3)."""

from __future__ import annotations

import ast
import builtins
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from iccm_assets.sandbox.python_source import parse_python

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_BUILTIN_NAMES = frozenset(dir(builtins))


# Longer code is no implementation of one text; to parse megabytes takes seconds.
MAX_CODE_CHARACTERS = 1 << 18


class ConflictError(Exception):
    """Units that cannot be one module."""


@dataclass(frozen=True, eq=False)
class CodeUnit:
    """One block of Python: its code, its syntax tree, and the path that the answer gives it, if any."""

    code: str
    tree: ast.Module
    path: str = ""

    @cached_property
    def digest(self) -> str:
        """The code without comments and layout."""
        return _digest(self.tree)

    @cached_property
    def bindings(self) -> dict[str, str]:
        """The names that definitions and assignments bind at the top level, with the digest of each."""
        return {name: _digest(node) for node in _top_level(self.tree) for name in _bound_names(node)}

    @cached_property
    def definitions(self) -> frozenset[str]:
        """The names of functions, classes and lambdas at the top level."""
        return frozenset(name for node in _top_level(self.tree) for name in _defined_names(node))

    @cached_property
    def defines(self) -> bool:
        """Whether it has a function, a class or a lambda anywhere."""
        return any(isinstance(node, (*_DEFINITIONS, ast.Lambda)) for node in ast.walk(self.tree))

    @cached_property
    def imports(self) -> dict[str, str]:
        """The names that imports of the standard library bind at the top level, with their digests."""
        nodes = [node for node in _top_level(self.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        return {
            alias.asname or alias.name.partition(".")[0]: _digest(node)
            for node in nodes
            for alias in node.names
            if _is_standard(node.module if isinstance(node, ast.ImportFrom) else alias.name)
        }

    @cached_property
    def local_imports(self) -> list[ast.ImportFrom]:
        """The imports of names from other modules than those of the standard library."""
        nodes = (node for node in self.tree.body if isinstance(node, ast.ImportFrom))
        return [node for node in nodes if node.level or not _is_standard(node.module)]

    @cached_property
    def future_imports(self) -> list[ast.ImportFrom]:
        """The imports of `__future__`."""
        nodes = (node for node in self.tree.body if isinstance(node, ast.ImportFrom))
        return [node for node in nodes if node.module == "__future__"]

    @cached_property
    def needs(self) -> frozenset[str]:
        """The names that it uses and does not bind anywhere, and those of its local imports."""
        used, bound = set[str](), {*self.bindings, *self.imports}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, _DEFINITIONS):
                bound.add(node.name)
        names = {alias.name for node in self.local_imports for alias in node.names}
        return frozenset((used - bound - _BUILTIN_NAMES) | names)

    @cached_property
    def is_tests(self) -> bool:
        """Whether all it defines are tests and their fixtures."""
        nodes = [node for node in self.tree.body if isinstance(node, _DEFINITIONS)]
        return bool(nodes) and all(_is_test(node) or _is_fixture(node) for node in nodes)

    @cached_property
    def is_outline(self) -> bool:
        """Whether it has functions, and none of them has a body."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS)]
        return bool(nodes) and all(map(_is_empty, nodes))

    @cached_property
    def tests(self) -> frozenset[str]:
        """The names of the tests at the top level."""
        nodes = (node for node in self.tree.body if isinstance(node, _DEFINITIONS))
        return frozenset(node.name for node in nodes if _is_test(node))


def parse_unit(code: str) -> CodeUnit | None:
    """Parse a block of code; None if it is not Python, or too long."""
    if len(code) > MAX_CODE_CHARACTERS:
        return None
    try:
        return CodeUnit(code, parse_python(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def without_outlines(units: Sequence[CodeUnit]) -> list[CodeUnit]:
    """Return the units without those that only outline what others define: signatures with empty bodies."""
    complete = [unit for unit in units if not unit.is_outline]
    defined = frozenset[str]().union(*(unit.definitions for unit in complete))
    return [unit for unit in units if not unit.is_outline or not unit.definitions <= defined]


def find_needed(selected: Sequence[int], units: Sequence[CodeUnit]) -> list[int]:
    """Return the positions of the selected units and of those that bind what they need, in order."""
    providers, importers = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for number, unit in enumerate(units):
        for name in unit.bindings:
            providers[name].append(number)
        for name in unit.imports:
            importers[name].append(number)
    needed, queue, resolved = set(selected), list(selected), set[str]()
    while queue:
        for name in units[queue.pop()].needs - resolved:
            resolved.add(name)
            more = set(providers[name] or importers[name]) - needed
            needed |= more
            queue += more
    return sorted(needed)


def is_connected(units: Sequence[CodeUnit]) -> bool:
    """Whether each unit needs another one or is needed by it, all in one group."""
    neighbors = defaultdict[int, set[int]](set)
    binders = {name: number for number, unit in enumerate(units) for name in unit.bindings}
    for number, unit in enumerate(units):
        for other in (binders[name] for name in unit.needs if name in binders):
            neighbors[number].add(other)
            neighbors[other].add(number)
    reached, queue = {0}, [0]
    while queue:
        more = neighbors[queue.pop()] - reached
        reached |= more
        queue += more
    return len(reached) == len(units)


def join_units(units: Sequence[CodeUnit]) -> str:
    """Return the units as one module, in their order.

    Imports from each other are dropped, and those of `__future__` come first.

    Raises:
        ConflictError: two units bind one name differently, or the module would not be Python.
    """
    if len(units) == 1:
        return units[0].code
    names = _merge_names(units)
    parts = [_without(unit.code, [*_find_mutual(unit, names), *unit.future_imports]) for unit in units]
    futures = dict.fromkeys(ast.unparse(node) for unit in units for node in unit.future_imports)
    code = "\n\n".join(["".join(f"{line}\n" for line in futures), *parts]).lstrip("\n")
    if parse_unit(code) is None:
        raise ConflictError("code blocks that are no module together")
    return code


def _merge_names(units: Sequence[CodeUnit]) -> frozenset[str]:
    """Return the names that the units bind, each in a single way."""
    digests: dict[str, str] = {}
    for name, digest in (item for unit in units for item in {**unit.imports, **unit.bindings}.items()):
        if digests.setdefault(name, digest) != digest:
            raise ConflictError(f"2 different implementations of {name!r}")
    return frozenset(digests)


def _find_mutual(unit: CodeUnit, names: frozenset[str]) -> list[ast.ImportFrom]:
    """Return the imports of a unit from the others, which bind these names."""
    mutual = [node for node in unit.local_imports if all(alias.name in names for alias in node.names)]
    if any(alias.asname for node in mutual for alias in node.names):
        raise ConflictError("code blocks that import from each other under other names")
    return mutual


def _without(code: str, nodes: Sequence[ast.stmt]) -> str:
    lines = code.split("\n")
    for node in nodes:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "\n".join(lines)


def _digest(node: ast.AST) -> str:
    """Return a node and all below it as text, without positions; `ast.dump` fails on deep trees."""
    parts: list[str] = []
    for child in ast.walk(node):
        parts.append(type(child).__name__)
        for name, value in ast.iter_fields(child):
            values = value if isinstance(value, list) else [value]
            parts.append(f"{name}{len(values)}" if isinstance(value, list) else name)
            parts += [_scalar(item) for item in values]
    return " ".join(parts)


def _scalar(value: object) -> str:
    if isinstance(value, ast.AST):
        return "*"
    # The decimal digits of a long integer cost quadratic time, and Python refuses them.
    return f"{type(value).__name__}:{value:x}" if isinstance(value, int) else repr(value)


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those inside of `if`, `try`, `with` and loops."""
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, _DEFINITIONS):
            children = ast.iter_child_nodes(node)
            queue += [
                child
                for child in children
                if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
            ]


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, _DEFINITIONS):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
        return _bound_names(node)
    return []


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, _DEFINITIONS):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        return [name.id for name in names if isinstance(name.ctx, ast.Store)]
    return []


def _is_standard(module: str | None) -> bool:
    return (module or "").partition(".")[0] in sys.stdlib_module_names


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    if isinstance(node, ast.ClassDef):
        return node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)
    return node.name.startswith("test")


def _is_empty(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the body is `pass`, `...`, a docstring, or raises NotImplementedError."""
    return all(
        isinstance(child, ast.Pass)
        or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
        or (isinstance(child, ast.Raise) and "NotImplementedError" in _digest(child))
        for child in node.body
    )


def _is_fixture(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)

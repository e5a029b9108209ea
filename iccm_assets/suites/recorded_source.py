"""What of a source is recorded: not its own tests, and no import that only these or annotations need.

Tests say what the rest should do, and are no behavior of it: nobody writes them again from requirements. What
they call are examples. What they import, such as pytest, or the file that a person tests with, may be
missing where the rest needs nothing of it. (D2, J2)
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from iccm_assets.sandbox.source_files import split_files
from iccm_assets.suites.signatures import find_node_type
from iccm_assets.suites.source_edits import (
    MAX_SOURCE_LENGTH,
    Edit,
    FunctionNode,
    SourceText,
    apply_edits,
)

IS_TEST = "it is a test"
_HINTS = ("test", "Test", "from .")  # what a source has that is changed here
_READS_ANNOTATIONS = frozenset(
    {"get_type_hints", "get_annotations", "__annotations__", "signature", "singledispatch"}
)


@dataclass(frozen=True)
class RecordedSource:
    """The text that is recorded, its lines where they were.

    ``examples`` are the tests as doctests, ``left_out`` says by name that they are tests.
    """

    text: str
    examples: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def leave_out_tests(source_code: str) -> RecordedSource:
    """Return a source without its tests and without what only these import.

    Of relative imports also those go that only annotations need, where these are nodes of lists or trees,
    for which the recorder makes objects of its own.
    """
    is_short = len(source_code) <= MAX_SOURCE_LENGTH
    source = SourceText.parse(source_code) if is_short and any(map(source_code.count, _HINTS)) else None
    if source is None:
        return RecordedSource(source_code)
    try:
        tests = _find_tests(source.tree)
        edits = [_blank(source, source.statement_start(node), node) for node in tests.values()]
        edits += _edit_imports(source, tests)
        text = apply_edits(source, edits) if edits else ""
        if not text or SourceText.parse(text) is None:
            return RecordedSource(source_code)
        return RecordedSource(text, tuple(_write_examples(tests.values())), dict.fromkeys(tests, IS_TEST))
    except (RecursionError, MemoryError):
        return RecordedSource(source_code)  # too deep, which the recorder says


def find_missing_files(tree: ast.Module) -> str:
    """Return what a source imports relatively, such as ``.node``: files beside it; '' if nothing."""
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    paths = ("." * node.level + (node.module or node.names[0].name) for node in relative)
    return ", ".join(dict.fromkeys(paths))


# ---- tests ---------------------------------------------------------------------------------------


def _find_tests(tree: ast.Module) -> dict[str, ast.stmt]:
    """Find the tests of a module, and what else only a test runner calls."""
    tests: dict[str, ast.stmt] = {}
    for node in tree.body:
        is_test = isinstance(node, ast.ClassDef) and _is_test_class(node, tests)
        if is_test or (isinstance(node, FunctionNode) and _is_test_function(node)):
            tests[getattr(node, "name", "")] = node
    return tests


def _is_test_class(node: ast.ClassDef, tests: dict[str, ast.stmt]) -> bool:
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    if any(base.endswith("TestCase") or base in tests for base in bases):
        return True
    names = [part.name for part in node.body if isinstance(part, FunctionNode)]
    return node.name.startswith("Test") and any(name.startswith("test_") for name in names)


def _is_test_function(node: FunctionNode) -> bool:
    """Whether a function is a test or fixture of pytest; what answers something may be called anything."""
    if any(ast.unparse(item).startswith("pytest.") for item in node.decorator_list):
        return True
    if not node.name.startswith("test_"):
        return False
    parts = list(ast.walk(node))
    answers = any(isinstance(part, ast.Return) and part.value is not None for part in parts)
    return not answers and any(map(_is_assertion, parts))


def _is_assertion(node: ast.AST) -> bool:
    called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    return isinstance(node, ast.Assert) or called == "raises" or called.startswith("assert")


def _write_examples(tests: Iterable[ast.stmt]) -> Iterator[str]:
    """Write what each test does as a doctest."""
    for test in tests:
        functions = test.body if isinstance(test, ast.ClassDef) else [test]
        for function in functions:
            if isinstance(function, FunctionNode):
                lines = (ast.unparse(statement).replace("\n", "\n... ") for statement in function.body)
                yield "\n".join(f">>> {line}" for line in lines)


# ---- imports -------------------------------------------------------------------------------------


def _edit_imports(source: SourceText, tests: dict[str, ast.stmt]) -> Iterator[Edit]:
    imports = [node for node in source.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    left_out = set(tests.values())
    tested = _list_names(left_out)
    rest = [node for node in source.tree.body if node not in left_out and not _is_main_block(node)]
    used = _list_names(rest)
    active = _list_names(rest, annotations=False)
    is_alone = not split_files(source.data.decode())
    has_nodes = find_node_type(source.tree) is not None and not active & _READS_ANNOTATIONS
    for node in imports:
        module = node.module if isinstance(node, ast.ImportFrom) else ""
        is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
        bound = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        if bound & active or "*" in bound or module == "__future__":
            continue
        hints = bound & used
        if hints and is_relative and is_alone and has_nodes:
            start, end = source.span(node)
            yield start, end, " = ".join([*sorted(hints), "object"]) + _list_breaks(source, start, end)
        elif not hints and bound & tested:
            yield _blank(source, source.span(node)[0], node)


def _is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _list_names(roots: Iterable[ast.AST], annotations: bool = True) -> set[str]:
    """List the names that statements use, also those in annotations that are texts."""
    names: set[str] = set()
    pending = list(roots)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            if name not in ("annotation", "returns"):
                pending += [child for child in children if isinstance(child, ast.AST)]
            elif annotations and isinstance(value, ast.AST):
                names.update(_list_annotated(value))
    return names


def _list_annotated(annotation: ast.AST) -> Iterator[str]:
    for part in ast.walk(annotation):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield from (word for word in part.value.replace("[", " ").replace("]", " ").split())


def _blank(source: SourceText, start: int, node: ast.stmt) -> Edit:
    """Return the edit that puts nothing in the place of a statement, and leaves its lines."""
    end = source.span(node)[1]
    return start, end, "pass" + _list_breaks(source, start, end)


def _list_breaks(source: SourceText, start: int, end: int) -> str:
    return "\n" * source.data.count(b"\n", start, end)

"""Edits of a source: byte ranges and what replaces them.

Variants of a source (mutants, stubs, probes) are edits of its text, not new trees: only a changed expression
is written anew, lines stay where they are, and only edits travel into the sandbox. (D5)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from iccm_assets.sandbox.python_source import BYTE_ORDER_MARK, parse_python

CACHED_TREES = 4
MAX_SOURCE_LENGTH = 200_000
MAX_INDENT = 400  # bytes; Python allows 100 levels
Edit = tuple[int, int, str]  # start and end in bytes, replacement

# What decides no behaviour, or where positions of nodes are not reliable (Python 3.11, f-strings).
_IGNORED_FIELDS = frozenset(
    ("annotation", "returns", "decorator_list", "type_params", "pattern", "type_comment")
)
_IGNORED_NODES = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)
_IGNORED_TESTS = ("__name__", "TYPE_CHECKING")
_COMPOUND = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceText:
    """A source that is Python: its bytes, where each line begins, and its tree."""

    data: bytes
    line_starts: tuple[int, ...]
    tree: ast.Module

    @classmethod
    def parse(cls, source: str) -> SourceText | None:
        """Parse a source; None where it is not Python, or nested too deep to analyse."""
        text = source.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
        try:
            data, tree = text.encode(), parse_python(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        starts = [0]
        for line in data.split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        return cls(data, tuple(starts), tree)

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return where a node starts and ends, in bytes."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def statement_start(self, statement: ast.stmt) -> int:
        """Return where a statement starts, its first decorator included."""
        decorators = getattr(statement, "decorator_list", [])
        line: int = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        return self.line_starts[line - 1] + statement.col_offset

    def begins_line(self, statement: ast.stmt) -> bool:
        """Whether a statement is the first of its logical line."""
        start = self.line_starts[statement.lineno - 1]
        is_continued = self.data[max(0, start - 2) : start] == b"\\\n"
        blanks = self.data[start : start + statement.col_offset]
        return not is_continued and statement.col_offset <= MAX_INDENT and not blanks.strip(b" \t\f")

    def insert_before(self, statement: ast.stmt, text: str) -> Edit:
        """Return the edit that inserts a simple statement before another one."""
        start = self.statement_start(statement)
        if not isinstance(statement, _COMPOUND):
            return start, start, f"{text}; "
        return start, start, f"{text}\n{self.data[start - statement.col_offset : start].decode()}"


@lru_cache(maxsize=CACHED_TREES)
def list_nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """List what ``ast.walk`` yields. A recording looks at the nodes of one tree some thirty times."""
    return tuple(ast.walk(tree))


def walk(root: ast.AST) -> Iterator[ast.AST]:
    """Walk over the nodes that decide behaviour, in the order of the source.

    Left out are annotations, decorators, docstrings, the text of errors and blocks for ``__main__``.
    """
    return iter(_list_active(root)) if isinstance(root, ast.Module) else _walk(root)


@lru_cache(maxsize=CACHED_TREES)
def _list_active(tree: ast.Module) -> tuple[ast.AST, ...]:
    return tuple(_walk(tree))


def _walk(root: ast.AST) -> Iterator[ast.AST]:
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        children: list[ast.AST] = []
        for name, value in ast.iter_fields(node):
            if name not in _IGNORED_FIELDS and not (name == "exc" and isinstance(node, ast.Raise)):
                children += [
                    item for item in (value if isinstance(value, list) else [value]) if is_active(item)
                ]
        stack += reversed(children)


def is_active(node: object) -> bool:
    """Whether a child node decides behaviour."""
    if not isinstance(node, ast.AST) or isinstance(node, _IGNORED_NODES):
        return False
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return not any(
            isinstance(part, ast.Name) and part.id in _IGNORED_TESTS for part in ast.walk(node.test)
        )
    return True


def apply_edits(source: SourceText, edits: list[Edit]) -> str:
    """Return the text of the source with these ranges replaced."""
    pieces, end = [], 0
    for start, stop, text in sorted(edits, key=lambda edit: edit[:2]):
        pieces += [source.data[end:start], text.encode()]
        end = stop
    return b"".join([*pieces, source.data[end:]]).decode()


def is_python(source: SourceText, edits: list[Edit]) -> bool:
    """Whether the source with these ranges replaced is Python."""
    return SourceText.parse(apply_edits(source, edits)) is not None

"""Calls with arguments that can be read from the texts about a source. (D2)

Arguments are literals, names that an example gave a literal before, objects of the source's classes, and
functions of Python itself that a suite can name.
"""

from __future__ import annotations

import ast
import copy
import doctest
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from iccm_assets.suites.source_edits import SourceText, list_nodes
from iccm_assets.suites.suite_values import FUNCTION, FUNCTION_NAMES, new_object

Arguments = tuple[list[Any], dict[str, Any]]
KnownCalls = dict[str, list[Arguments]]

MAX_TEXT_CHARACTERS = 200_000
MAX_LINE_CHARACTERS = 400
MAX_KNOWN_CALLS = 40  # literal calls of one name
MAX_SEQUENCES, MAX_SEQUENCE = 10, 12  # of one class, and calls of one
MAX_PARTS, MAX_ALL_PARTS = 5000, 200_000  # of the arguments of one call, and of one example
_MADE = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "float": float}

_CALL = re.compile(r"[A-Za-z_][\w.]*\(")


def find_known_calls(source: SourceText, texts: Iterable[str]) -> KnownCalls:
    """Find calls with known arguments: in doctests, docstrings, comments, the source and other texts."""
    classes = frozenset(node.name for node in source.tree.body if isinstance(node, ast.ClassDef))
    calls: KnownCalls = {}
    programs: list[Iterable[tuple[str, Arguments]]] = [
        find_literal_calls(source.tree),
        *(find_literal_calls(*block, classes=classes) for block in _list_blocks(source)),
    ]
    for text in [*_list_texts(source), *texts]:
        text = text[:MAX_TEXT_CHARACTERS]
        programs.append(find_literal_calls(*_parse_all(_list_examples(text)), classes=classes))
        lines = [line for line in text.splitlines() if "(" in line and len(line) < MAX_LINE_CHARACTERS]
        in_lines = itertools.chain.from_iterable(map(_find_calls, lines))
        programs += (find_literal_calls(tree, classes=classes) for tree in _parse_all(in_lines))
    for name, arguments in itertools.chain.from_iterable(programs):
        own = calls.setdefault(name, [])
        if arguments not in own and len(own) < MAX_KNOWN_CALLS:
            own.append(arguments)
    return calls


Steps = list[tuple[str, list[Any] | None, dict[str, Any] | None]]
KnownSequences = dict[str, list[tuple[list[Any], dict[str, Any], Steps]]]


def find_known_sequences(source: SourceText, texts: Iterable[str], classes: Iterable[str]) -> KnownSequences:
    """Find what examples do with an object: its constructor and the calls on it, with known arguments."""
    sequences: KnownSequences = {name: [] for name in classes}
    if not sequences:
        return {}
    blocks = _list_blocks(source)
    for text in [*_list_texts(source), *texts]:
        blocks.append(list(_parse_all(_list_examples(text[:MAX_TEXT_CHARACTERS]))))
    for block in blocks:
        for name, sequence in _follow_objects(block, frozenset(sequences)):
            if sequence not in sequences[name] and len(sequences[name]) < MAX_SEQUENCES:
                sequences[name].append(sequence)
    return sequences


def _list_blocks(source: SourceText) -> list[list[ast.AST]]:
    """List the parts of a source that may use the rest of it, such as what follows ``if __name__ ==``."""
    return [list(node.body) for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.If)]


def _list_examples(text: str) -> list[str]:
    try:
        return [example.source for example in doctest.DocTestParser().get_examples(text)]
    except ValueError:
        return []


def _parse_all(texts: Iterable[str]) -> Iterator[ast.AST]:
    """Parse what is Python, leave out the rest."""
    for text in texts:
        try:
            yield ast.parse(text.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue


def _walk_in_order(trees: Iterable[ast.AST]) -> Iterator[ast.Assign | ast.Call]:
    for tree in trees:
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Call)]
        yield from sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def _follow_objects(
    block: Sequence[ast.AST], classes: frozenset[str]
) -> Iterator[tuple[str, tuple[list[Any], dict[str, Any], Steps]]]:
    objects: dict[str, tuple[str, tuple[list[Any], dict[str, Any], Steps]]] = {}
    reader = _ArgumentReader(classes)
    for node in _walk_in_order(block):
        if isinstance(node, ast.Assign):
            reader.assign(node)
            target, made = node.targets[0], getattr(getattr(node.value, "func", None), "id", "")
            arguments = reader.read_call(node.value) if isinstance(node.value, ast.Call) else None
            if isinstance(target, ast.Name) and made in classes and arguments is not None:
                objects[target.id] = made, (*arguments, [])
        elif isinstance(node.func, ast.Attribute):
            _, (_, _, steps) = objects.get(getattr(node.func.value, "id", ""), ("", ([], {}, [])))
            arguments = reader.read_call(node)
            if arguments is not None and len(steps) < MAX_SEQUENCE:
                steps.append((node.func.attr, *arguments))
    yield from (item for item in objects.values() if item[1][2])


def _list_texts(source: SourceText) -> Iterator[str]:
    for node in list_nodes(source.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    comments = []
    try:
        for token in tokenize.tokenize(io.BytesIO(source.data).readline):
            if token.type == tokenize.COMMENT:
                comments.append(token.string.lstrip("# "))
    except (tokenize.TokenError, SyntaxError):
        pass  # as far as it goes
    yield "\n".join(comments)


def _find_calls(line: str) -> Iterator[str]:
    """Find the texts of calls in a line of prose, such as ``f(2) = 4 and f([1, 2]) returns 3``."""
    end = 0
    for match in _CALL.finditer(line):
        if match.start() < end:
            continue  # inside the last one
        depth = 0
        for place in range(match.end() - 1, len(line)):
            depth += (line[place] in "([{") - (line[place] in ")]}")
            if depth == 0:
                end = place + 1
                yield line[match.start() : end]
                break


def find_literal_calls(
    *trees: ast.AST, classes: frozenset[str] | None = None
) -> Iterator[tuple[str, Arguments]]:
    """Yield the name of each call whose arguments are known, with its arguments.

    With ``classes``, those that can be made, ``trees`` are the parts of one example: a name stands for the
    value that it got before. Without, only literals are known.
    """
    reader = _ArgumentReader(classes or frozenset())
    for node in _walk_in_order(trees):
        if isinstance(node, ast.Assign):
            if classes is not None:
                reader.assign(node)
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments = reader.read_call(node)
        if name and arguments is not None:
            yield name, arguments


class _ArgumentReader:
    """Reads values from the text of an example; nothing of it runs."""

    def __init__(self, classes: frozenset[str]) -> None:
        self.classes = classes
        self.names: dict[str, tuple[Any, int]] = {}  # with the number of parts
        self.parts = 0
        self.all_parts = 0

    def assign(self, node: ast.Assign) -> None:
        """Remember what a name stands for from now on, if that is known."""
        self.parts = 0
        try:
            value = self._read(node.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = ...  # nothing that is known
        for part in (part for target in node.targets for part in ast.walk(target)):
            self.names.pop(getattr(part, "id", ""), None)
        if value is not ... and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            self.names[node.targets[0].id] = value, self.parts

    def read_call(self, node: ast.Call) -> Arguments | None:
        """Return the arguments of a call, None where one is not known."""
        self.parts = 0
        try:
            args = [self._read(argument) for argument in node.args]
            kwargs = {item.arg or "": self._read(item.value) for item in node.keywords}
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
        return None if "" in kwargs else (args, kwargs)

    def _read(self, node: ast.expr) -> Any:
        self._count(1)
        if isinstance(node, ast.Name) and node.id in self.names:
            value, parts = self.names[node.id]
            self._count(parts)
            return copy.deepcopy(value)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            items = [self._read(item) for item in node.elts]
            return (
                items
                if isinstance(node, ast.List)
                else tuple(items)
                if isinstance(node, ast.Tuple)
                else set(items)
            )
        if isinstance(node, ast.Dict):
            keys = [self._read(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self._read, node.values), strict=True))
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in FUNCTION_NAMES:
            return new_object(FUNCTION, [ast.unparse(node)])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._read_made(node.func.id, node)
        return ast.literal_eval(node)

    def _read_made(self, name: str, node: ast.Call) -> Any:
        args = [self._read(argument) for argument in node.args]
        kwargs = {str(item.arg): self._read(item.value) for item in node.keywords}
        if name in self.classes and "None" not in kwargs:
            return new_object(name, args, kwargs)
        if name == "range" and all(type(part) is int for part in args):
            numbers = range(*args)
            self._count(len(numbers))
            return list(numbers)
        if name not in _MADE or kwargs or any(isinstance(part, dict) and ... in part for part in args):
            raise ValueError(name)
        return _MADE[name](*args)

    def _count(self, parts: int) -> None:
        self.parts += parts
        self.all_parts += parts
        if self.parts > MAX_PARTS or self.all_parts > MAX_ALL_PARTS:
            raise ValueError("too large")

"""Calls with literal arguments in the texts about a source. (D2)"""

from __future__ import annotations

import ast
import doctest
import io
import itertools
import re
import tokenize
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from iccm_assets.suites.source_edits import SourceText

Arguments = tuple[list[Any], dict[str, Any]]
KnownCalls = dict[str, list[Arguments]]

MAX_TEXT_CHARACTERS = 200_000
MAX_LINE_CHARACTERS = 400
MAX_KNOWN_CALLS = 40  # literal calls of one name
MAX_SEQUENCES, MAX_SEQUENCE = 10, 12  # of one class, and calls of one

_CALL = re.compile(r"[A-Za-z_][\w.]*\(")


def find_known_calls(source: SourceText, texts: Iterable[str]) -> KnownCalls:
    """Find calls with literal arguments: in doctests, docstrings, comments, the source and other texts."""
    calls: KnownCalls = {}
    trees: list[ast.AST] = [source.tree]
    for text in [*_list_texts(source), *texts]:
        trees += _parse_examples(text[:MAX_TEXT_CHARACTERS])
    for name, arguments in itertools.chain.from_iterable(map(find_literal_calls, trees)):
        own = calls.setdefault(name, [])
        if arguments not in own and len(own) < MAX_KNOWN_CALLS:
            own.append(arguments)
    return calls


Steps = list[tuple[str, list[Any] | None, dict[str, Any] | None]]
KnownSequences = dict[str, list[tuple[list[Any], dict[str, Any], Steps]]]


def find_known_sequences(source: SourceText, texts: Iterable[str], classes: Iterable[str]) -> KnownSequences:
    """Find what examples do with an object: its constructor and the calls on it, with literal arguments."""
    sequences: KnownSequences = {name: [] for name in classes}
    if not sequences:
        return {}
    blocks: list[list[ast.stmt]] = [
        node.body for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.If)
    ]
    for text in [*_list_texts(source), *texts]:
        blocks += _parse_sessions(text[:MAX_TEXT_CHARACTERS])
    for block in blocks:
        for name, sequence in _follow_objects(block, sequences):
            if sequence not in sequences[name] and len(sequences[name]) < MAX_SEQUENCES:
                sequences[name].append(sequence)
    return sequences


def _parse_sessions(text: str) -> Iterator[list[ast.stmt]]:
    """Parse the examples of a doctest as one program, as far as they are Python."""
    statements: list[ast.stmt] = []
    try:
        for example in doctest.DocTestParser().get_examples(text):
            statements += ast.parse(example.source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    yield statements


def _follow_objects(
    block: Sequence[ast.stmt], classes: Container[str]
) -> Iterator[tuple[str, tuple[list[Any], dict[str, Any], Steps]]]:
    objects: dict[str, tuple[str, tuple[list[Any], dict[str, Any], Steps]]] = {}
    walked = (node for statement in block for node in ast.walk(statement))
    nodes = (node for node in walked if isinstance(node, ast.Assign | ast.Call))
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target, made = node.targets[0], getattr(node.value.func, "id", "")
            arguments = _literal_arguments(node.value)
            if isinstance(target, ast.Name) and made in classes and arguments is not None:
                objects[target.id] = made, (*arguments, [])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            _, (_, _, steps) = objects.get(getattr(node.func.value, "id", ""), ("", ([], {}, [])))
            arguments = _literal_arguments(node)
            if arguments is not None and len(steps) < MAX_SEQUENCE:
                steps.append((node.func.attr, *arguments))
    yield from (item for item in objects.values() if item[1][2])


def _list_texts(source: SourceText) -> Iterator[str]:
    for node in ast.walk(source.tree):
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


def _parse_examples(text: str) -> Iterator[ast.AST]:
    """Parse doctests, and single lines that are Python and hold a call."""
    try:
        examples = [example.source for example in doctest.DocTestParser().get_examples(text)]
    except ValueError:
        examples = []
    lines = [line for line in text.splitlines() if "(" in line and len(line) < MAX_LINE_CHARACTERS]
    for code in itertools.chain(examples, *map(_find_calls, lines)):
        try:
            yield ast.parse(code.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue


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


def find_literal_calls(tree: ast.AST) -> Iterator[tuple[str, Arguments]]:
    """Yield the name of each call whose arguments are literals, with its arguments."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments = _literal_arguments(node)
        if name and arguments is not None:
            yield name, arguments


def _literal_arguments(node: ast.Call) -> Arguments | None:
    try:
        args = [ast.literal_eval(argument) for argument in node.args]
        kwargs = {item.arg or "": ast.literal_eval(item.value) for item in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return None if "" in kwargs else (args, kwargs)

"""Collect a test suite from the files of a session: pytest files that a tool wrote, edited or read. (C7)

A file counts if it holds test functions and imports what the source defines, under whatever module name the
session's project has; a generated `conftest.py` gives the implementation these names. Pure.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from iccm_assets.capture.messages import ChatMessage, FilePart
from iccm_assets.errors import TestSuiteError
from iccm_assets.sandbox.pytest_suites import RESERVED_NAMES, collect_tests
from iccm_assets.sandbox.python_source import parse_python
from iccm_assets.suites.test_suites import parse_suite

MAX_FILES = 20
MAX_CHARACTERS = 200_000  # of one file
CONFTEST = "conftest.py"
_ALIASES = """import sys
import types

import implementation

for _name in {names!r}:
    _parts = _name.split(".")
    for _depth in range(1, len(_parts)):
        sys.modules.setdefault(".".join(_parts[:_depth]), types.ModuleType(".".join(_parts[:_depth])))
    sys.modules[_name] = implementation
    if len(_parts) > 1:
        setattr(sys.modules[".".join(_parts[:-1])], _parts[-1], implementation)
"""


def collect_suite(messages: Iterable[ChatMessage], source: str) -> dict[str, object] | None:
    """Return the suite that a session's test files are for a source, or None where there is none."""
    defined = _list_definitions(source)
    if not defined:
        return None
    files: dict[str, str] = {}
    modules: dict[str, None] = {}
    for part in _list_test_files(messages, defined):
        own_modules = list(_find_modules(part.text, defined))
        name = PurePosixPath(part.path.replace("\\", "/")).name
        if own_modules and name not in RESERVED_NAMES and len(files) < MAX_FILES:
            files[name] = part.text
            modules |= dict.fromkeys(own_modules)
    if not files:
        return None
    suite: dict[str, object] = {
        "kind": "pytest",
        "files": {**files, CONFTEST: _ALIASES.format(names=sorted(modules))},
    }
    try:
        parse_suite(suite)
    except TestSuiteError:
        return None
    return suite


def _list_test_files(messages: Iterable[ChatMessage], defined: frozenset[str]) -> list[FilePart]:
    """List the test files that name something of the source, each as it was last shown whole."""
    latest: dict[str, FilePart] = {}
    for message in messages:
        for part in message.files:
            name = PurePosixPath(part.path.replace("\\", "/")).name
            is_near = len(part.text) <= MAX_CHARACTERS and any(word in part.text for word in defined)
            if is_near and _holds_tests(name, part.text):
                latest[part.path] = part
    return list(latest.values())


def _holds_tests(name: str, text: str) -> bool:
    try:
        return bool(collect_tests({name: text}))
    except TestSuiteError:
        return False


def _list_definitions(source: str) -> frozenset[str]:
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def _find_modules(text: str, defined: frozenset[str]) -> Iterator[str]:
    """Find the modules from which a test file imports what the source defines."""
    tree = parse_python(text)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {alias.name for alias in node.names}
            if names <= defined:
                yield node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                is_own = alias.name.partition(".")[0] not in {*sys.stdlib_module_names, "pytest"}
                if is_own and used & defined and len(node.names) == 1:
                    yield alias.name

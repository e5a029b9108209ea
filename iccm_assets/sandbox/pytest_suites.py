"""Suites of kind ``pytest``: which files they may hold, and which tests they plan.

Such a suite runs in the same process as the implementation, which could manipulate it. So the planned tests
are counted here, in the source of the tests and outside of the sandbox: one case per test function. Nothing
that is collected, skipped or reported inside can lower their number. (J1, J2)
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from iccm_assets.errors import TestSuiteError
from iccm_assets.sandbox.python_source import parse_python

MAX_FILES = 100
PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
RESERVED_NAMES = frozenset(("implementation.py", "solution.py"))
CONFIGURATION_FILES = frozenset(
    ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml")
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py", re.DOTALL)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def parse_files(document: Any) -> Mapping[str, str]:
    """Check a suite's files by relative path; ``TestSuiteError`` names the file that is not allowed."""
    if not isinstance(document, dict) or not document:
        raise TestSuiteError("'files' must be an object of at least one path and its text")
    if len(document) > MAX_FILES:
        raise TestSuiteError(f"{len(document)} files; at most {MAX_FILES}")
    for name, text in document.items():
        if problem := _find_problem(name, text):
            raise TestSuiteError(f"file {name!r}: {problem}")
    for name in document:
        if inside := next((other for other in document if other.startswith(f"{name}/")), ""):
            raise TestSuiteError(f"file {name!r}: is also the folder of {inside!r}")
    return dict(document)


def _find_problem(name: str, text: Any) -> str:
    path = PurePosixPath(name)
    problems = {
        "a path is relative, of letters, digits, '_', '-' and '.', without '..'": not all(
            map(_PART.fullmatch, name.split("/"))
        ),
        "more than 10 folders deep": len(path.parts) > 10,
        "the name is reserved for the implementation": name in RESERVED_NAMES,
        "a suite does not configure pytest": path.name in CONFIGURATION_FILES,
        "its content must be text": not isinstance(text, str),
        "its content is not valid Unicode": isinstance(text, str) and _SURROGATE.search(text),
    }
    return next((problem for problem, holds in problems.items() if holds), "")


def collect_tests(files: Mapping[str, str]) -> list[str]:
    """Return the test functions as pytest names them; raises ``TestSuiteError`` when there is none."""
    names = sorted(name for name in files if _TEST_FILE.fullmatch(PurePosixPath(name).name))
    tests = dict.fromkeys(
        test for name in names for test in _find_tests(name, _parse(name, files[name]).body)
    )
    if not tests:
        raise TestSuiteError("no test function in a file called test_*.py or *_test.py")
    return list(tests)


def _parse(name: str, text: str) -> ast.Module:
    try:
        return parse_python(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestSuiteError(f"file {name!r}: not Python: {error}") from None


def _find_tests(prefix: str, body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            yield f"{prefix}::{node.name}"
        elif isinstance(node, ast.ClassDef):
            names = (getattr(base, "attr", getattr(base, "id", "")) for base in node.bases)
            unittest = any(name.endswith("TestCase") for name in names)
            if unittest or node.name.startswith("Test"):
                yield from _find_tests(f"{prefix}::{node.name}", node.body)


@cache
def find_packages() -> tuple[tuple[str, str], ...]:
    """Return (name, host path) of what pytest needs; ``TestSuiteError`` where it is not installed."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    if specs["pytest"] is None:
        hint = "`pip install pytest`, or write the tests as kind 'cases'."
        raise TestSuiteError("kind 'pytest' needs pytest, which is not installed", hint=hint)
    origins = [(name, spec, Path(spec.origin)) for name, spec in specs.items() if spec and spec.origin]
    return tuple(
        (name, str(path.parent)) if spec.submodule_search_locations else (path.name, str(path))
        for name, spec, path in origins
    )

"""Test suites as data: what a suite may contain, and a clear error when it contains something else.

``load_suite`` turns parsed JSON into a ``Suite``. Each case falls into two halves that stay apart from here
on: the *inputs* (what to call, with what), which are all that ever enters the sandbox, and the
*expectations*, which never do. (J1)
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iccm_assets.errors import InputError, SuiteError
from iccm_assets.judging import pytest_suites
from iccm_assets.judging.values import MAX_DEPTH, Tree, ValueProblem, decode, tree_of

MAX_CASES = 1000
MAX_STEPS = 1000
MAX_BYTES = 1 << 20
_CALL_KEYS = {"call", "args", "kwargs", "expect", "raises", "name"}


@dataclass(frozen=True)
class Expectation:
    """What a call must do: return this value, raise this exception, or (neither) just not fail."""

    value: Tree | None = None
    raises: str | None = None


@dataclass(frozen=True)
class Call:
    """One call: a name (dots allowed), positional and keyword arguments."""

    name: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> tuple[str, list[Any], dict[str, Any]]:
        """The call as it is sent to the sandbox."""
        return self.name, self.args, self.kwargs


@dataclass(frozen=True)
class Case:
    """One planned case; ``steps`` is None for a function and the method calls for a class."""

    index: int
    call: Call
    expected: Expectation
    steps: tuple[tuple[Call, Expectation], ...] | None = None
    test: str = ""  # of the kind ``pytest``: the test function

    def plan(self) -> tuple[Any, ...]:
        """Inputs only: what enters the process that runs the implementation."""
        if self.test:
            return ("test", self.test)
        if self.steps is None:
            return ("call", *self.call.plan())
        return ("new", *self.call.plan(), [call.plan() for call, _ in self.steps])


@dataclass(frozen=True)
class Suite:
    """A valid suite. ``digest`` (sha256) identifies its content; ``files`` is for the kind ``pytest`` only.

    The kind is also the kind of evidence of a verdict: ``pytest`` is the weaker one.
    """

    kind: str
    cases: tuple[Case, ...]
    digest: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)


def read_suite(path: Path) -> Suite:
    """Load a suite from a JSON file; ``InputError`` without the file, ``SuiteError`` for anything else."""
    try:
        return load_suite(json.loads(path.read_bytes(), object_pairs_hook=_reject_duplicate_keys))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, absurdly nested
        raise SuiteError(f"{path} is not JSON: {error}") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of a key that occurs twice, one value would silently be lost."""
    names = [name for name, _ in pairs]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise SuiteError(f"key {duplicate!r} is there twice")
    return dict(pairs)


def load_suite(obj: object) -> Suite:
    """Validate parsed JSON; ``SuiteError`` names the case and what is wrong with it."""
    if not isinstance(obj, dict):
        raise SuiteError('a suite is an object: {"kind": "cases", "cases": […]}')
    try:
        text = json.dumps(obj, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise SuiteError(f"not JSON data: {error}") from None
    if len(text) > MAX_BYTES:
        raise SuiteError(f"larger than {MAX_BYTES >> 20} MiB")
    kind, digest = obj.get("kind"), hashlib.sha256(text.encode()).hexdigest()
    if kind not in ("cases", "pytest"):
        raise SuiteError(f"kind is {kind!r}; known: 'cases', 'pytest'")
    try:
        if kind == "pytest":
            return _pytest_suite(obj, digest)
        return Suite("cases", tuple(_case(index, case) for index, case in enumerate(_cases(obj))), digest)
    except ValueProblem as error:
        raise SuiteError(str(error)) from None


def _pytest_suite(obj: dict[str, Any], digest: str) -> Suite:
    _reject_unknown_keys(obj, {"kind", "files"})
    pytest_suites.packages()
    files = pytest_suites.files_of(obj.get("files"))
    tests = pytest_suites.planned_tests(files)
    _check_count(tests, "tests", MAX_CASES)
    cases = (Case(index, Call(test), Expectation(), test=test) for index, test in enumerate(tests))
    return Suite("pytest", tuple(cases), digest, files)


def _cases(obj: dict[str, Any]) -> list[Any]:
    cases = obj.get("cases")
    _reject_unknown_keys(obj, {"kind", "cases"})
    if not isinstance(cases, list) or not cases:
        raise ValueProblem("'cases' must be a list with at least one case")
    _check_count(cases, "cases", MAX_CASES)
    return cases


@contextmanager
def _located(place: str) -> Iterator[None]:
    """Name the place in front of the message of an error raised in it."""
    try:
        yield
    except ValueProblem as error:
        raise ValueProblem(f"{place}: {error}") from None
    except RecursionError:
        raise ValueProblem(f"{place}: nested more than {MAX_DEPTH} deep") from None


def _case(index: int, written: Any) -> Case:
    with _located(f"case {index}"):
        if not isinstance(written, dict):
            raise ValueProblem("a case is an object")
        if ("call" in written) == ("new" in written):
            raise ValueProblem("a case has either 'call' or 'new'")
        return _class_case(index, written) if "new" in written else _function_case(index, written)


def _function_case(index: int, written: dict[str, Any]) -> Case:
    _reject_unknown_keys(written, _CALL_KEYS)
    if ("expect" in written) == ("raises" in written):
        raise ValueProblem("a case has either 'expect' or 'raises'")
    return Case(index, _call(written, "call"), _expectation(written))


def _class_case(index: int, written: dict[str, Any]) -> Case:
    _reject_unknown_keys(written, {"new", "args", "kwargs", "steps", "raises", "name"})
    steps = written.get("steps", [])
    if not isinstance(steps, list):
        raise ValueProblem("'steps' must be a list")
    _check_count(steps, "steps", MAX_STEPS)
    if "raises" in written and steps:
        raise ValueProblem("a constructor that raises has no steps")
    if "raises" not in written and not steps:
        raise ValueProblem("'new' needs 'steps' or 'raises'")
    call, expected = _call(written, "new"), _expectation(written)
    return Case(index, call, expected, tuple(_step(number, step) for number, step in enumerate(steps)))


def _step(number: int, written: Any) -> tuple[Call, Expectation]:
    with _located(f"step {number}"):
        if not isinstance(written, dict) or "call" not in written:
            raise ValueProblem("a step is an object with 'call'")
        _reject_unknown_keys(written, _CALL_KEYS)
        if "expect" in written and "raises" in written:
            raise ValueProblem("'expect' and 'raises' exclude each other")
        return _call(written, "call"), _expectation(written)


def _check_count(items: list[Any], name: str, maximum: int) -> None:
    if len(items) > maximum:
        raise ValueProblem(f"{len(items)} {name}; at most {maximum}")


def _reject_unknown_keys(written: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(set(written) - names):
        raise ValueProblem(f"unknown key {', '.join(map(repr, unknown))}")


def _is_name(text: object) -> bool:
    return isinstance(text, str) and all(part.isidentifier() for part in text.split("."))


def _call(written: dict[str, Any], key: str) -> Call:
    name = written[key]
    if not _is_name(name):
        raise ValueProblem(f"{key!r} must be a name, not {name!r}")
    args = _decode("args", written.get("args", []))
    kwargs = _decode("kwargs", written.get("kwargs", {}))
    if not isinstance(args, list):
        raise ValueProblem("'args' must be a list")
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise ValueProblem("'kwargs' must be an object")
    return Call(name, args, kwargs)


def _expectation(written: dict[str, Any]) -> Expectation:
    if "expect" in written:
        return Expectation(value=tree_of(_decode("expect", written["expect"])))
    return Expectation(raises=_exception_name(written["raises"]) if "raises" in written else None)


def _exception_name(name: Any) -> str:
    """The class's own name: without its module, and without the aliases Python keeps (IOError)."""
    last = str(name).rpartition(".")[2]
    known = getattr(builtins, last, None)
    if not _is_name(name) or (isinstance(known, type) and not issubclass(known, BaseException)):
        raise ValueProblem(f"'raises' must be the name of an exception, not {name!r}")
    return known.__name__ if isinstance(known, type) else last


def _decode(key: str, written: Any) -> Any:
    with _located(key):
        return decode(written)

"""Test suites as data: what a suite may say, and clear words when it does not (J1).

``load_suite`` turns parsed JSON into a ``Suite``. Each case falls into two halves that are kept apart from
here on: the *plan* (what to call, with what), which is all that ever enters the sandbox, and the
*expectations*, which never do.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iccm_assets.errors import InputError, SuiteError
from iccm_assets.judging import pytest_suites
from iccm_assets.judging.values import MAX_DEPTH, Tree, ValueProblem, decode, tree_of

MAX_CASES = 1000
MAX_STEPS = 1000
MAX_BYTES = 1 << 20


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
        """The call as the sandbox is told it."""
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
    """A valid suite. ``digest`` identifies its content; ``files`` is for the kind ``pytest`` only.

    The kind is also what kind of evidence a verdict is: ``pytest`` is the weaker one.
    """

    kind: str
    cases: tuple[Case, ...]
    digest: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)


def read_suite(path: Path) -> Suite:
    """The suite in a JSON file; ``InputError`` without the file, ``SuiteError`` when it is not a suite."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    try:
        return load_suite(json.loads(text, object_pairs_hook=_each_key_once))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, absurdly nested
        raise SuiteError(f"{path} is not JSON: {error}") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice, one meaning would silently be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise SuiteError(f"key {next(one for one in names if names.count(one) > 1)!r} is there twice")
    return found


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
    digest = hashlib.sha256(text.encode()).hexdigest()
    kind = obj.get("kind")
    if kind == "cases":
        return Suite("cases", _cases(obj), digest)
    if kind == "pytest":
        return _pytest_suite(obj, digest)
    raise SuiteError(f"kind is {kind!r}; known: 'cases', 'pytest'")


def _pytest_suite(obj: dict[str, Any], digest: str) -> Suite:
    if unknown := sorted(set(obj) - {"kind", "files"}):
        raise SuiteError(f"unknown key {', '.join(map(repr, unknown))}")
    pytest_suites.packages()
    files = pytest_suites.files_of(obj.get("files"))
    tests = pytest_suites.planned_tests(files)
    if len(tests) > MAX_CASES:
        raise SuiteError(f"{len(tests)} tests; at most {MAX_CASES}")
    cases = (Case(index, Call(test), Expectation(), test=test) for index, test in enumerate(tests))
    return Suite("pytest", tuple(cases), digest, files)


def _cases(obj: dict[str, Any]) -> tuple[Case, ...]:
    cases = obj.get("cases")
    if unknown := sorted(set(obj) - {"kind", "cases"}):
        raise SuiteError(f"unknown key {', '.join(map(repr, unknown))}")
    if not isinstance(cases, list) or not cases:
        raise SuiteError("'cases' must be a list with at least one case")
    if len(cases) > MAX_CASES:
        raise SuiteError(f"{len(cases)} cases; at most {MAX_CASES}")
    return tuple(_case(index, case) for index, case in enumerate(cases))


def _case(index: int, written: Any) -> Case:
    try:
        if not isinstance(written, dict):
            raise ValueProblem("a case is an object")
        if ("call" in written) == ("new" in written):
            raise ValueProblem("a case has either 'call' or 'new'")
        return _class_case(index, written) if "new" in written else _function_case(index, written)
    except ValueProblem as error:
        raise SuiteError(f"case {index}: {error}") from None
    except RecursionError:
        raise SuiteError(f"case {index}: nested more than {MAX_DEPTH} deep") from None


def _function_case(index: int, written: dict[str, Any]) -> Case:
    _known(written, {"call", "args", "kwargs", "expect", "raises", "name"})
    if ("expect" in written) == ("raises" in written):
        raise ValueProblem("a case has either 'expect' or 'raises'")
    return Case(index, _call(written, "call"), _expectation(written))


def _class_case(index: int, written: dict[str, Any]) -> Case:
    _known(written, {"new", "args", "kwargs", "steps", "raises", "name"})
    steps = written.get("steps", [])
    if not isinstance(steps, list):
        raise ValueProblem("'steps' must be a list")
    if len(steps) > MAX_STEPS:
        raise ValueProblem(f"{len(steps)} steps; at most {MAX_STEPS}")
    if "raises" in written and steps:
        raise ValueProblem("a constructor that raises has no steps")
    if "raises" not in written and not steps:
        raise ValueProblem("'new' needs 'steps' or 'raises'")
    return Case(
        index,
        _call(written, "new"),
        _expectation(written),
        tuple(_step(number, step) for number, step in enumerate(steps)),
    )


def _step(number: int, written: Any) -> tuple[Call, Expectation]:
    try:
        if not isinstance(written, dict) or "call" not in written:
            raise ValueProblem("a step is an object with 'call'")
        _known(written, {"call", "args", "kwargs", "expect", "raises", "name"})
        if "expect" in written and "raises" in written:
            raise ValueProblem("'expect' and 'raises' exclude each other")
        return _call(written, "call"), _expectation(written)
    except ValueProblem as error:
        raise ValueProblem(f"step {number}: {error}") from None


def _known(written: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(set(written) - names):
        raise ValueProblem(f"unknown key {', '.join(map(repr, unknown))}")


def _call(written: dict[str, Any], key: str) -> Call:
    name = written[key]
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueProblem(f"{key!r} must be a name, not {name!r}")
    args = _decoded("args", written.get("args", []))
    kwargs = _decoded("kwargs", written.get("kwargs", {}))
    if not isinstance(args, list):
        raise ValueProblem("'args' must be a list")
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise ValueProblem("'kwargs' must be an object")
    return Call(name, args, kwargs)


def _expectation(written: dict[str, Any]) -> Expectation:
    if "expect" in written:
        return Expectation(value=tree_of(_decoded("expect", written["expect"])))
    if "raises" not in written:
        return Expectation()
    name = written["raises"]
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueProblem(f"'raises' must be the name of an exception, not {name!r}")
    return Expectation(raises=_exception_name(name))


def _exception_name(name: str) -> str:
    """The class's own name: without its module, and without the aliases Python keeps (IOError)."""
    last = name.rpartition(".")[2]
    known = getattr(builtins, last, None)
    if isinstance(known, type):
        if not issubclass(known, BaseException):
            raise ValueProblem(f"'raises' must be the name of an exception, not {name!r}")
        return known.__name__
    return last


def _decoded(key: str, written: Any) -> Any:
    try:
        return decode(written)
    except ValueProblem as error:
        raise ValueProblem(f"{key}: {error}") from None

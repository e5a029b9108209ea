"""Test suites as documents: parse and validate them, with errors that name the case.

``parse_suite`` turns parsed JSON into a ``Suite``. Each case has two parts that stay apart from here
on: the *inputs* (what to call, with what), which are all that ever enters the sandbox, and the
*expectations*, which never do. (J1)
"""

from __future__ import annotations

import builtins
import hashlib
import json
import marshal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iccm_assets.errors import InputError, TestSuiteError
from iccm_assets.sandbox import pytest_suites
from iccm_assets.suites.suite_values import MAX_DEPTH, EncodedValue, InvalidValueError, decode, encode

MAX_CASES = 1000
MAX_STEPS = 1000
MAX_BYTES = 1 << 20
MAX_NAME = 100  # characters of the name of an environment
_CALL_KEYS = {"call", "args", "kwargs", "expect", "raises", "args_after", "name"}


@dataclass(frozen=True)
class Expectation:
    """What a call must do: return this value, raise this exception, or (neither) just not fail.

    ``arguments`` is what its positional arguments must be afterwards, where it changes them.
    """

    value: EncodedValue | None = None
    raises: str | None = None
    arguments: EncodedValue | None = None


@dataclass(frozen=True)
class Call:
    """One call: a name (dots allowed), positional and keyword arguments; or the attribute that is read."""

    name: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_attribute: bool = False

    def inputs(self) -> tuple[str, list[Any] | None, dict[str, Any] | None]:
        """Return the call as it is sent to the sandbox."""
        return (self.name, None, None) if self.is_attribute else (self.name, self.args, self.kwargs)


@dataclass(frozen=True)
class Case:
    """One planned case; ``steps`` is None for a function and the method calls for a class."""

    index: int
    call: Call
    expected: Expectation
    steps: tuple[tuple[Call, Expectation], ...] | None = None
    test: str = ""  # of kind ``pytest``: the test function

    def inputs(self) -> tuple[Any, ...]:
        """Return the inputs only: what enters the process that runs the implementation."""
        if self.test:
            return ("test", self.test)
        steps = () if self.steps is None else ([call.inputs() for call, _ in self.steps],)
        plan = ("call" if self.steps is None else "new", *self.call.inputs(), *steps)
        expectations = [self.expected, *(expected for _, expected in self.steps or ())]
        changes = any(expected.arguments is not None for expected in expectations)
        return (*plan, "arguments") if changes else plan


@dataclass(frozen=True)
class Suite:
    """A valid suite. ``digest`` (sha256) identifies its content; ``files`` is for the kind ``pytest`` only.

    The kind is also the kind of evidence of a verdict: ``pytest`` is the weaker one. ``environment`` is where
    code runs (J5): a name or digest, "" for the standard library alone, None where the code's imports decide.
    """

    kind: str
    cases: tuple[Case, ...]
    digest: str
    files: Mapping[str, str] = field(default_factory=dict)
    environment: str | None = None


def load_suite_file(path: Path) -> Suite:
    """Load a suite from a JSON file; ``InputError`` if it is not readable, ``TestSuiteError`` if invalid."""
    try:
        return parse_suite(json.loads(path.read_bytes(), object_pairs_hook=_reject_duplicate_keys))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, absurdly nested
        raise TestSuiteError(f"{path} is not JSON: {error}") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; by default json silently drops one value of a duplicate key."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise TestSuiteError(f"duplicate key {name!r}")
        values[name] = value
    return values


def parse_suite(document: object) -> Suite:
    """Validate parsed JSON; ``TestSuiteError`` names the case and what is wrong with it."""
    if not isinstance(document, dict):
        raise TestSuiteError('a suite is an object: {"kind": "cases", "cases": […]}')
    try:
        text = json.dumps(document, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise TestSuiteError(f"not JSON data: {error}") from None
    if len(text) > MAX_BYTES:
        raise TestSuiteError(f"larger than {MAX_BYTES >> 20} MiB")
    kind, digest = document.get("kind"), hashlib.sha256(text.encode()).hexdigest()
    if kind not in ("cases", "pytest"):
        raise TestSuiteError(f"kind is {kind!r}; known: 'cases', 'pytest'")
    try:
        environment = document.get("environment")
        _require(
            environment is None or (isinstance(environment, str) and 0 < len(environment) <= MAX_NAME),
            f"'environment' must be the name or digest of one, not {environment!r}"[:200],
        )
        if kind == "pytest":
            return replace(_parse_pytest_suite(document, digest), environment=environment)
        return Suite("cases", _parse_cases(document), digest, environment=environment)
    except InvalidValueError as error:
        raise TestSuiteError(str(error)) from None


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidValueError(message)


def _parse_pytest_suite(document: dict[str, Any], digest: str) -> Suite:
    _check_keys(document, {"kind", "files", "environment"})
    pytest_suites.find_packages()
    files = pytest_suites.parse_files(document.get("files"))
    tests = pytest_suites.collect_tests(files)
    _require(len(tests) <= MAX_CASES, f"{len(tests)} tests; at most {MAX_CASES}")
    cases = (Case(index, Call(test), Expectation(), test=test) for index, test in enumerate(tests))
    return Suite("pytest", tuple(cases), digest, files)


def _parse_cases(document: dict[str, Any]) -> tuple[Case, ...]:
    cases: Any = document.get("cases")
    _check_keys(document, {"kind", "cases", "environment"})
    _require(cases and isinstance(cases, list), "'cases' must be a list with at least one case")
    _require(len(cases) <= MAX_CASES, f"{len(cases)} cases; at most {MAX_CASES}")
    return tuple(_parse_case(index, case) for index, case in enumerate(cases))


@contextmanager
def _located(place: str) -> Iterator[None]:
    """Prefix the message of an error raised in the block with the place."""
    try:
        yield
    except InvalidValueError as error:
        raise InvalidValueError(f"{place}: {error}") from None
    except RecursionError:
        raise InvalidValueError(f"{place}: nested more than {MAX_DEPTH} deep") from None


def _parse_case(index: int, written: Any) -> Case:
    with _located(f"case {index}"):
        _require(isinstance(written, dict), "a case is an object")
        _require(("call" in written) != ("new" in written), "a case has either 'call' or 'new'")
        if "new" in written:
            return _parse_class_case(index, written)
        _check_keys(written, _CALL_KEYS)
        _require(("expect" in written) != ("raises" in written), "a case has either 'expect' or 'raises'")
        return Case(index, _parse_call(written, "call"), _parse_expectation(written))


def _parse_class_case(index: int, written: dict[str, Any]) -> Case:
    _check_keys(written, {"new", "args", "kwargs", "steps", "raises", "name"})
    steps = written.get("steps", [])
    _require(isinstance(steps, list), "'steps' must be a list")
    _require(len(steps) <= MAX_STEPS, f"{len(steps)} steps; at most {MAX_STEPS}")
    _require("raises" not in written or not steps, "a constructor that raises has no steps")
    _require("raises" in written or steps, "'new' needs 'steps' or 'raises'")
    call, expected = _parse_call(written, "new"), _parse_expectation(written)
    return Case(index, call, expected, tuple(_parse_step(number, step) for number, step in enumerate(steps)))


def _parse_step(number: int, written: Any) -> tuple[Call, Expectation]:
    with _located(f"step {number}"):
        is_call = isinstance(written, dict) and ("call" in written) != ("get" in written)
        _require(is_call, "a step is an object with either 'call' or 'get'")
        _check_keys(written, _CALL_KEYS if "call" in written else {"get", "expect", "raises", "name"})
        _require(not written.keys() >= {"expect", "raises"}, "'expect' and 'raises' exclude each other")
        return _parse_call(written, "call" if "call" in written else "get"), _parse_expectation(written)


def _check_keys(written: dict[str, Any], names: set[str]) -> None:
    unknown = sorted(set(written) - names)
    _require(not unknown, f"unknown key {', '.join(map(repr, unknown))}")


def _is_name(text: object) -> bool:
    return isinstance(text, str) and all(part.isidentifier() for part in text.split("."))


def _parse_call(written: dict[str, Any], key: str) -> Call:
    name = written[key]
    _require(_is_name(name), f"{key!r} must be a name, not {name!r}")
    reaches_special = any(part.startswith("__") for part in name.split("."))
    _require(not reaches_special, f"{key!r} may not reach names with double underscores, as {name!r} does")
    args = _decode("args", written.get("args", []))
    kwargs = _decode("kwargs", written.get("kwargs", {}))
    _require(isinstance(args, list), "'args' must be a list")
    object_like = isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs)
    _require(object_like, "'kwargs' must be an object")
    try:
        marshal.dumps((args, kwargs), 2)
    except ValueError:
        raise InvalidValueError("$object, $enum, $iterator and $stream describe what is expected") from None
    return Call(name, args, kwargs, is_attribute=key == "get")


def _parse_expectation(written: dict[str, Any]) -> Expectation:
    value = encode(_decode("expect", written["expect"])) if "expect" in written else None
    raises = _parse_exception_name(written["raises"]) if "raises" in written else None
    arguments = None
    if "args_after" in written:
        arguments = encode(_decode("args_after", written["args_after"]))
        _require(arguments[0] == "l" and not raises, "'args_after' is a list, of a call that returns")
    return Expectation(value, raises, arguments)


def _parse_exception_name(name: Any) -> str:
    """Return the name of the class itself: without its module, and not an alias such as IOError."""
    last = str(name).rpartition(".")[2]
    known = getattr(builtins, last, None)
    valid = _is_name(name) and (not isinstance(known, type) or issubclass(known, BaseException))
    _require(valid, f"'raises' must be the name of an exception, not {name!r}")
    return known.__name__ if isinstance(known, type) else last


def _decode(key: str, written: Any) -> Any:
    with _located(key):
        return decode(written)

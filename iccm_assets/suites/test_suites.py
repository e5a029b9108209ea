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
from iccm_assets.suites.suite_values import (
    FUNCTION,
    MAX_DEPTH,
    Described,
    EncodedValue,
    InvalidValueError,
    decode,
    encode,
    is_shared_name,
    list_references,
)

MAX_CASES = 1000
MAX_STEPS = 1000
MAX_BYTES = 1 << 20
MAX_NAME = 100  # characters of the name of an environment
MAX_SHARED = 1000  # values of one case that others refer to
_CALL_KEYS = {"call", "args", "kwargs", "expect", "raises", "args_after", "shared_after", "name"}


@dataclass(frozen=True)
class Expectation:
    """What a call must do: return this value, raise this exception, or (neither) just not fail.

    ``arguments`` is what its positional arguments must be afterwards, where it changes them; then, where
    the case has shared values, those.
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
    """One planned case; ``steps`` is None for a function and the method calls for a class.

    ``shared`` are values by name that arguments refer to, so that several hold the same object.
    """

    index: int
    call: Call
    expected: Expectation
    steps: tuple[tuple[Call, Expectation], ...] | None = None
    test: str = ""  # of kind ``pytest``: the test function
    shared: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self) -> tuple[Any, ...]:
        """Return the inputs only: what enters the process that runs the implementation."""
        if self.test:
            return ("test", self.test)
        steps = () if self.steps is None else ([call.inputs() for call, _ in self.steps],)
        plan = ("call" if self.steps is None else "new", *self.call.inputs(), *steps)
        plan = (*plan, dict(self.shared)) if self.shared else plan
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
        cases = _parse_cases(document)
        for case in cases if '"$ref"' in text else ():
            _check_references(case)
        return Suite("cases", cases, digest, environment=environment)
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
        _check_keys(written, {*_CALL_KEYS, "shared"})
        _require(("expect" in written) != ("raises" in written), "a case has either 'expect' or 'raises'")
        shared = _parse_shared(written)
        expected = _parse_expectation(written, shared)
        return Case(index, _parse_call(written, "call"), expected, shared=shared)


def _parse_class_case(index: int, written: dict[str, Any]) -> Case:
    _check_keys(written, {"new", "args", "kwargs", "steps", "raises", "name", "shared"})
    steps = written.get("steps", [])
    _require(isinstance(steps, list), "'steps' must be a list")
    _require(len(steps) <= MAX_STEPS, f"{len(steps)} steps; at most {MAX_STEPS}")
    _require("raises" not in written or not steps, "a constructor that raises has no steps")
    _require("raises" in written or steps, "'new' needs 'steps' or 'raises'")
    shared = _parse_shared(written)
    call, expected = _parse_call(written, "new"), _parse_expectation(written, shared)
    parsed = tuple(_parse_step(number, step, shared) for number, step in enumerate(steps))
    return Case(index, call, expected, parsed, shared=shared)


def _parse_shared(written: dict[str, Any]) -> dict[str, Any]:
    """Parse the values that others refer to by name: objects, lists and dicts, also in a circle.

    What a constructor is given cannot hold the object that it makes.
    """
    values = written.get("shared", {})
    _require(isinstance(values, dict) and len(values) <= MAX_SHARED, "'shared' must be an object")
    _require(all(map(is_shared_name, values)), "the name of a shared value must be an identifier")
    shared = {name: _decode(f"shared {name}", values[name]) for name in values}
    for name, value in shared.items():
        made = value.get(..., [""]) if isinstance(value, dict) else [""]
        is_made = isinstance(value, list | dict) and made[0] != FUNCTION
        _require(is_made, f"shared {name}: only objects, lists and dicts are shared")
    _check_circles(shared)
    _check_inputs(shared)
    return shared


def _check_references(case: Case) -> None:
    """Check that a case refers to its own shared values only."""
    steps = [(case.call, case.expected), *(case.steps or ())]
    inputs = [(call.args, call.kwargs) for call, _ in steps]
    expected = [part for _, own in steps for part in (own.value, own.arguments) if part is not None]
    names = {*list_references([dict(case.shared), *inputs, *map(Described, expected)])}
    unknown = sorted(names - case.shared.keys())
    _require(not unknown, f"case {case.index}: there is no shared value {', '.join(unknown)}")


def _check_circles(shared: Mapping[str, Any]) -> None:
    """Check that no constructor needs its own object, whatever the order of the names."""
    needs = {
        name: set(list_references(list(value[...][1:3])))
        for name, value in shared.items()
        if isinstance(value, dict) and ... in value
    }
    ready = set(shared) - set(needs)
    while further := {name for name in needs if name not in ready and needs[name] <= ready}:
        ready |= further
    _require(len(ready) == len(shared), "a constructor of a shared value needs the object that it makes")


def _parse_step(number: int, written: Any, shared: Mapping[str, Any]) -> tuple[Call, Expectation]:
    with _located(f"step {number}"):
        is_call = isinstance(written, dict) and ("call" in written) != ("get" in written)
        _require(is_call, "a step is an object with either 'call' or 'get'")
        _check_keys(written, _CALL_KEYS if "call" in written else {"get", "expect", "raises", "name"})
        _require(not written.keys() >= {"expect", "raises"}, "'expect' and 'raises' exclude each other")
        call = _parse_call(written, "call" if "call" in written else "get")
        return call, _parse_expectation(written, shared)


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
    _check_inputs((args, kwargs))
    return Call(name, args, kwargs, is_attribute=key == "get")


def _check_inputs(value: Any) -> None:
    try:
        marshal.dumps(value, 2)
    except ValueError:
        raise InvalidValueError("$object, $enum, $iterator and $stream describe what is expected") from None


def _parse_expectation(written: dict[str, Any], shared: Mapping[str, Any]) -> Expectation:
    value = encode(_decode("expect", written["expect"])) if "expect" in written else None
    raises = _parse_exception_name(written["raises"]) if "raises" in written else None
    arguments = None
    if "args_after" in written:
        arguments = encode(_decode("args_after", written["args_after"]))
        _require(arguments[0] == "l" and not raises, "'args_after' is a list, of a call that returns")
    is_paired = ("args_after" in written) == ("shared_after" in written) or not shared
    _require(is_paired, "with 'shared', 'args_after' and 'shared_after' come together")
    if "shared_after" in written:
        after = _decode("shared_after", written["shared_after"])
        is_complete = isinstance(after, dict) and after.keys() == shared.keys()
        _require(shared and is_complete, "'shared_after' is an object with all shared values")
        arguments = ["l", [*(arguments or ["l", []])[1], encode(after)]]
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

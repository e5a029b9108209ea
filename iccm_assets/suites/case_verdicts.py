"""Classify how a case ended: its verdict and its detail; pure functions, no I/O. (J2)"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iccm_assets.sandbox.sandbox import FORGED_REPLY, CaseOutcome
from iccm_assets.settings import JudgeSettings
from iccm_assets.suites.missing_dependencies import (
    MISSING_DEPENDENCY,
    find_missing_package,
    find_reported_package,
)
from iccm_assets.suites.raised_classes import NOTHING_EXPECTED, RaisedClasses, check_classes, is_raised
from iccm_assets.suites.suite_values import InvalidValueError, check_encoded
from iccm_assets.suites.test_suites import Case, Expectation
from iccm_assets.suites.value_differences import diff


@dataclass(frozen=True)
class CaseResult:
    """The verdict on one planned case; ``detail`` is for people.

    ``verdict`` is one of passed, failed, error, crashed, exited, timeout, out_of_memory, output_limit,
    forbidden, not_run, missing_dependency.
    """

    case: int
    verdict: str
    detail: str


def classify_case(
    case: Case, outcome: CaseOutcome, limits: JudgeSettings, raised: RaisedClasses = NOTHING_EXPECTED
) -> CaseResult:
    """Classify a case; one that did something forbidden is ``forbidden``, even with a right answer."""
    if outcome.violations:
        verdict, detail = "forbidden", outcome.violations[0]
    elif outcome.kind == "answered":
        verdict, detail = _classify_answer(case, outcome.answer, raised)
    else:
        verdict, detail = _classify_end(outcome, limits)
    return CaseResult(case.index, verdict, escape_unprintable(detail))


def escape_unprintable(text: str) -> str:
    """Escape what could disturb a terminal or an encoder: an implementation chose the text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_suite_wide_failure(outcome: CaseOutcome) -> bool:
    """Whether running further cases is pointless: the import itself used up a limit of the whole."""
    return not outcome.imported and outcome.kind in ("wall", "cpu", "memory", "output", "processes", "files")


# ---- a case that did not answer ------------------------------------------------------------------


def _classify_end(outcome: CaseOutcome, limits: JudgeSettings) -> tuple[str, str]:
    phase = "during the call" if outcome.imported else "while being imported"
    if outcome.kind == "signal":
        return _classify_signal(outcome.code, phase)
    verdicts = {
        "exited": ("exited", f"the process exited with code {outcome.code} {phase}, before it answered"),
        "wall": ("timeout", f"not done after {limits.wall_seconds:g} s, {phase}"),
        "cpu": ("timeout", f"used more than {limits.cpu_seconds} s of CPU time, {phase}"),
        "memory": ("out_of_memory", f"used more than {limits.memory_mib} MiB, {phase}"),
        "files": ("out_of_memory", f"filled the scratch space with files, {phase}"),
        "processes": ("forbidden", f"started more than {limits.processes} processes, {phase}"),
        "output": ("output_limit", f"printed more than {limits.output_mib:g} MiB, {phase}"),
        "forged": ("forbidden", FORGED_REPLY),
    }
    return verdicts[outcome.kind]


def _classify_signal(number: int, phase: str) -> tuple[str, str]:
    if number == signal.SIGSYS:
        return "forbidden", f"made a forbidden system call {phase}"
    if number == signal.SIGXCPU:
        return "timeout", f"used up its CPU time {phase}"
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return "crashed", f"killed by {name} {phase}"


# ---- a case that answered ------------------------------------------------------------------------


def _classify_answer(case: Case, answer: bytes, raised: RaisedClasses) -> tuple[str, str]:
    """Compare an answer, which may hold anything, with the expectation."""
    try:
        outcome = json.loads(answer)
        return _ANSWERS[outcome[0]](case, outcome[1:], raised)
    except (InvalidValueError, ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
        return "forbidden", "sent the judge something that is not an answer"


def _classify_import_error(case: Case, content: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    verdict, detail = _classify_exception(content[0][1:], raised)
    return verdict, f"while being imported: {detail}"


def _classify_function(case: Case, outcome: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    if case.steps is not None or case.test:
        raise InvalidValueError("not an answer")
    return _classify_call(case.expected, outcome, raised)


def _classify_object(case: Case, content: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    """Classify a constructor's outcome and one per step; the first that is not as expected decides."""
    constructed, outcomes = content
    if case.steps is None:
        raise InvalidValueError("not an answer")
    if constructed is not None:
        verdict, detail = _classify_call(case.expected, constructed, raised)
        return verdict, detail and f"{case.call.name}(): {detail}"
    if case.expected.raises:
        return "failed", f"expected {case.expected.raises}, but an object was made"
    if len(outcomes) != len(case.steps):
        raise InvalidValueError("not an answer")
    for number, ((call, expected), outcome) in enumerate(zip(case.steps, outcomes, strict=True)):
        verdict, detail = _classify_call(expected, outcome, raised)
        if verdict != "passed":
            return verdict, f"step {number}, {call.name}(): {detail}"
    return "passed", ""


_TEST_OUTCOMES = {
    "passed": ("passed", ""),
    "failed": ("failed", "failed"),
    "error": ("error", "error"),
    "skipped": ("failed", "skipped, which is not a pass"),
    "xfail": ("failed", "expected to fail, which is not a pass"),
    "none": ("error", "pytest found no such test"),
}


def _classify_test(case: Case, content: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    """Classify pytest's report of a test function, which passes only if every parameter set does."""
    outcome, message = content
    if not case.test:
        raise InvalidValueError("not an answer")
    verdict, description = _TEST_OUTCOMES[outcome]
    if verdict in ("failed", "error") and find_reported_package(str(message), raised.defined_names):
        verdict = MISSING_DEPENDENCY
    detail = ": ".join(part for part in (description, str(message)[:200]) if part)
    return verdict, f"{case.test}: {detail}" if verdict != "passed" else ""


_ANSWERS: dict[str, Callable[[Case, list[Any], RaisedClasses], tuple[str, str]]] = {
    "e": _classify_import_error,
    "m": lambda case, content, raised: ("error", f"the implementation defines no {str(content[0])!r}"),
    "v": lambda case, content, raised: _classify_function(case, ["v", *content], raised),
    "r": lambda case, content, raised: _classify_function(case, ["r", *content], raised),
    "o": _classify_object,
    "t": _classify_test,
    "large": lambda case, content, raised: ("output_limit", "the answer is too large"),
    "deep": lambda case, content, raised: ("failed", "the answer is nested too deep, or contains itself"),
}


def _classify_call(expected: Expectation, outcome: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    """Classify one call by its expectation."""
    if outcome[0] == "m":
        return "error", f"there is no {str(outcome[1])!r}"
    if outcome[0] == "r":
        return _classify_raised(expected, outcome, raised)
    if outcome[0] != "v":
        raise InvalidValueError("not an answer")
    actual = check_encoded(outcome[1])
    if expected.raises:
        return "failed", f"expected {expected.raises}, but it returned"
    detail = "" if expected.value is None else diff(expected.value, actual)
    if expected.arguments is not None and not detail:
        detail = diff(expected.arguments, check_encoded(["l", outcome[2]]), "its arguments afterwards")
    return "failed" if detail else "passed", detail


UNRELATED_CLASSES = "an exception that is of many unrelated kinds at once"


def _classify_raised(expected: Expectation, outcome: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    verdict, detail = _classify_exception(outcome[1:], raised)
    classes = outcome[1]
    if expected.raises and is_raised(expected.raises, classes):
        if not raised.is_of_many_kinds(classes):
            return "passed", ""
        verdict, detail = "error", UNRELATED_CLASSES
    if expected.raises and verdict == "error":
        return "failed", f"expected {expected.raises}, raised {detail}"
    return verdict, detail


def _classify_exception(content: list[Any], raised: RaisedClasses) -> tuple[str, str]:
    """Classify an exception that was not expected."""
    classes, message, line = content
    check_classes(classes)
    names = [str(name) for name, _ in classes]
    detail = f"{names[0]}: {str(message)[:200]}" if message else names[0]
    if isinstance(line, int) and line > 0:
        detail += f" (line {line})"
    if find_missing_package(classes, message, raised.defined_names):
        return MISSING_DEPENDENCY, detail
    verdicts = {"SystemExit": "exited", "MemoryError": "out_of_memory"}
    return next((verdict for name, verdict in verdicts.items() if name in names), "error"), detail

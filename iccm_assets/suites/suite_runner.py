"""The judge: run a suite against an implementation.

    result = run_suite(source, suite, settings)

Each case runs in the sandbox; its answer comes back as data and is compared here, where the expected values
are. The pass rate counts the planned cases. Without a sandbox, or without a package that the implementation
imports, there is no pass rate (``None``), never a 0 and never a pass. (J1-J3)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from iccm_assets.errors import MissingPackageError, SandboxUnavailableError
from iccm_assets.sandbox import pytest_suites
from iccm_assets.sandbox.control_groups import count_workers
from iccm_assets.sandbox.environments import Environment, choose_environment
from iccm_assets.sandbox.launcher import MissingLayersError
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import Settings
from iccm_assets.suites.case_verdicts import CaseResult, classify_case, is_suite_wide_failure
from iccm_assets.suites.missing_dependencies import MISSING_DEPENDENCY, explain, list_packages
from iccm_assets.suites.raised_classes import RaisedClasses
from iccm_assets.suites.suspicions import find_suspicious_behavior
from iccm_assets.suites.test_suites import Suite

# Raise it when a suite may give the same implementation another verdict: baselines are then measured again.
JUDGE_VERSION = "5"


@dataclass(frozen=True)
class JudgeResult:
    """The result of a suite.

    ``test_pass_rate`` is passed / planned, or None when the sandbox gave no evidence (``reason`` says why).
    ``evidence`` is the suite's kind: ``pytest`` is the weaker, since tests and code share a process.
    ``missing_packages`` names what it imports and the judge lacks, or the environment that the suite names
    and the machine lacks, which is no evidence either. ``environment`` is the digest of the one it ran in.
    ``suspect`` marks an implementation that did what no honest one does; ``violations`` names it.
    """

    test_pass_rate: float | None
    results: tuple[CaseResult, ...]
    suspect: bool = False
    violations: tuple[str, ...] = ()
    layers: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    evidence: str = "cases"
    duration_ms: float = 0.0
    missing_packages: tuple[str, ...] = ()
    environment: str = ""


def get_judge_version(settings: Settings) -> str:
    """Return the version that a verdict depends on; the default environment is part of it."""
    environment = choose_environment((), None, settings)
    return JUDGE_VERSION if environment is None else f"{JUDGE_VERSION} in {environment.digest[:12]}"


def bind_environment(source: str, suite: Suite, settings: Settings) -> tuple[Suite, Environment | None]:
    """Fix the environment that a suite runs in by what its source and its tests import.

    Raises ``MissingPackageError`` where the machine lacks the one that the suite names, and
    ``SandboxUnavailableError`` where it lacks the default one.
    """
    try:
        environment = choose_environment((source, *suite.files.values()), suite.environment, settings)
    except MissingPackageError as error:
        if suite.environment is not None:
            raise
        raise SandboxUnavailableError(f"ICCM_JUDGE__ENVIRONMENT: {error.detail}", hint=error.hint) from None
    return replace(suite, environment=environment.digest if environment else ""), environment


def run_suite(implementation: str, suite: Suite, settings: Settings) -> JudgeResult:
    """Run every case of ``suite`` on the source code ``implementation``.

    The limits of ``settings.judge`` hold for the implementation as a whole. Raises
    nothing for what the implementation does or for a missing sandbox.
    """
    started = time.monotonic()
    try:
        result = _run_in_sandbox(implementation, suite, settings)
    except MissingPackageError as error:
        results = _not_run(suite, "its environment is missing")
        reason = f"{error.detail}. {error.hint}"
        result = JudgeResult(None, results, reason=reason, missing_packages=(suite.environment or "",))
    except SandboxUnavailableError as error:
        results = _not_run(suite, "the sandbox is not available")
        result = JudgeResult(None, results, layers=_missing_layers(error), reason=str(error))
    return replace(result, evidence=suite.kind, duration_ms=round((time.monotonic() - started) * 1000, 3))


def _not_run(suite: Suite, reason: str) -> tuple[CaseResult, ...]:
    return tuple(CaseResult(case.index, "not_run", reason) for case in suite.cases)


def _run_in_sandbox(implementation: str, suite: Suite, settings: Settings) -> JudgeResult:
    _, environment = bind_environment(implementation, suite, settings)
    packages = pytest_suites.find_packages() if suite.kind == "pytest" else ()
    with Sandbox.start(settings, packages, environment) as sandbox:
        results, violations = _run_cases(implementation, suite, settings, sandbox)
    suspicions = find_suspicious_behavior(implementation, results, violations, suite.kind)
    passed = sum(result.verdict == "passed" for result in results)
    packages_missing = list_packages(
        result.detail for result in results if result.verdict == MISSING_DEPENDENCY
    )
    return JudgeResult(
        None if packages_missing else passed / len(suite.cases),
        tuple(results),
        bool(suspicions),
        suspicions,
        layers=sandbox.running.layers,
        reason=explain(packages_missing, suite.kind) if packages_missing else "",
        missing_packages=tuple(packages_missing),
        environment=environment.digest if environment else "",
    )


def run_suites(
    items: Iterable[tuple[str, Suite]], settings: Settings, workers: int | None = None
) -> Iterator[JudgeResult]:
    """Run each (implementation, suite), as many at a time as fit into the memory; results in order."""
    count = workers or count_workers(settings)
    pending = iter(items)
    running: deque[Future[JudgeResult]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="judge") as pool:
        try:
            running.extend(pool.submit(run_suite, *item, settings) for item in islice(pending, 2 * count))
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(run_suite, *item, settings) for item in islice(pending, 1))
                yield result
        finally:
            for future in running:
                future.cancel()


def check_sandbox(settings: Settings) -> dict[str, str]:
    """Return the sandbox's layers on this machine; the state of a missing one begins with ``missing``."""
    try:
        with Sandbox.start(settings) as sandbox:
            return sandbox.running.layers
    except SandboxUnavailableError as error:
        return _missing_layers(error)


def _missing_layers(error: SandboxUnavailableError) -> dict[str, str]:
    return (
        error.layers if isinstance(error, MissingLayersError) else {"bubblewrap": f"missing: {error.detail}"}
    )


def _run_cases(
    implementation: str, suite: Suite, settings: Settings, sandbox: Sandbox
) -> tuple[list[CaseResult], list[str]]:
    """Run the cases in order until a limit of the whole implementation is exhausted."""
    limits = settings.judge
    remaining = Limits(limits.wall_seconds, float(limits.cpu_seconds), int(limits.output_mib * (1 << 20)))
    results: list[CaseResult] = []
    violations: list[str] = []
    raised = RaisedClasses(suite.cases, implementation, suite.files)
    sandbox.load(implementation, suite.files if suite.kind == "pytest" else None)
    requested = [(case.index, case.inputs()) for case in suite.cases]
    while len(results) < len(suite.cases):
        if limit := _find_exhausted_limit(remaining):
            last = results[-1].case if results else None
            detail = f"the implementation's {limit} was used up by case {last}"
            results += [CaseResult(case.index, "not_run", detail) for case in suite.cases[len(results) :]]
            break
        for outcome in sandbox.run_cases(requested, remaining):
            case = suite.cases[len(results)]
            if outcome.kind == "lost":
                raise SandboxUnavailableError(f"its init process ended during case {case.index}")
            remaining = remaining.without(outcome)
            result = classify_case(case, outcome, limits, raised)
            if is_suite_wide_failure(outcome):
                return [replace(result, case=other.index) for other in suite.cases], list(outcome.violations)
            results.append(result)
            violations += outcome.violations
        requested = []
    return results, violations


def _find_exhausted_limit(remaining: Limits) -> str:
    """Name the limit of the whole implementation that earlier cases exhausted, or return ''."""
    amounts = {"time": remaining.wall - 0.001, "CPU time": remaining.cpu - 0.001, "output": remaining.output}
    return next((name for name, amount in amounts.items() if amount <= 0), "")

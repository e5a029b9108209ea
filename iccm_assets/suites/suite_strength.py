"""Measure whether a suite tests its source, before any score on it counts.

    measurement = measure_suite(source_code, suite, settings, origin="attached")

The source must pass its suite; stubs must not; of its mutants that behave differently, the suite must refuse
enough; and it must reach the branches. Everything of the source runs in the sandbox. A result that is not
clear is ``weak``, never ``usable``. (C3b, D5)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.settings import Settings
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.mutants import generate_mutants, select_mutants
from iccm_assets.suites.planned_checks import count_checks, expects_constants
from iccm_assets.suites.source_edits import Edit, SourceText
from iccm_assets.suites.source_variants import STUB_RESULTS, build_stub, insert_probes
from iccm_assets.suites.suite_runner import JudgeResult, run_suite
from iccm_assets.suites.test_suites import Suite
from iccm_assets.suites.variant_runs import CaseReport, MeasurementFailedError, VariantRunner

# Raise it when a suite may be measured differently: stored measurements are then made again.
GENERATOR_VERSION = "1"

MIN_STRENGTH = {"attached": 0.5, "collected": 0.5, "recorded": 0.8}
MIN_STRENGTH_OF_FEW = 0.5  # of fewer than MIN_MUTANTS mutants, whatever the origin
MIN_CHECKS = 5
MIN_BRANCH_COVERAGE, MIN_COVERAGE_OF_FEW = 0.7, 0.9
MIN_MUTANTS = 8
MAX_MUTANTS = {"cases": 24, "pytest": 12}

Status = Literal["usable", "weak", "mismatch", "none"]
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]{1,100})'")


@dataclass(frozen=True)
class SuiteMeasurement:
    """What a suite shows about its source; only the scores of a ``usable`` one are evidence.

    ``strength`` is refused / counted mutants. A mutant counts if the suite refuses it, or if it differs from
    the source on further inputs; ``undecided_mutants`` do neither.
    """

    status: Status
    reason: str
    strength: float | None = None
    counted_mutants: int = 0
    undecided_mutants: int = 0
    branch_coverage: float | None = None


@dataclass(frozen=True)
class SuiteEvidence:
    """The measured figures that decide about a suite."""

    checks: int
    refused: int
    counted: int
    undecided: int
    branches: int
    reached: int

    @property
    def strength(self) -> float | None:
        return self.refused / self.counted if self.counted else None

    @property
    def branch_coverage(self) -> float | None:
        return self.reached / self.branches if self.branches else None


def measure_suite(
    source_code: str, suite: Suite, settings: Settings, *, origin: str = "attached"
) -> SuiteMeasurement:
    """Measure a suite; raises ``SandboxUnavailableError`` where there is no sandbox, which is no verdict."""
    result = run_suite(source_code, suite, settings)
    if result.test_pass_rate is None:
        raise SandboxUnavailableError(f"a test suite could not be measured: {result.reason}")
    if problem := check_source(result):
        return problem
    checks = count_checks(suite)
    if checks < MIN_CHECKS:
        return SuiteMeasurement("weak", f"{checks} cases; at least {MIN_CHECKS} are needed")
    if expects_constants(suite):
        return SuiteMeasurement("weak", "every function is expected to do the same in all cases")
    try:
        source = SourceText.parse(source_code)
        if source is None:
            return SuiteMeasurement("weak", "the source is nested too deep to analyse")
        return _measure_variants(source, suite, settings, origin, checks)
    except MeasurementFailedError as error:
        return SuiteMeasurement("weak", f"its strength could not be measured: {error}")
    except (RecursionError, MemoryError):
        return SuiteMeasurement("weak", "the source is nested too deep to analyse")


def check_source(result: JudgeResult) -> SuiteMeasurement | None:
    """Check that the source passes its own suite; None if it does."""
    failure = next((case for case in result.results if case.verdict != "passed"), None)
    if failure is None and result.suspect:
        return SuiteMeasurement("mismatch", f"the source is suspect: {result.violations[0]}")
    if failure is None:
        return None
    if missing := _MISSING_MODULE.search(failure.detail):
        return SuiteMeasurement("none", f"it imports {missing[1]}, which the judge does not have")
    passed = sum(case.verdict == "passed" for case in result.results)
    return SuiteMeasurement(
        "mismatch",
        f"the source passes {passed} of {len(result.results)} cases of its own suite; "
        f"case {failure.case}: {failure.verdict}: {failure.detail}"[:500],
    )


def decide_suite(evidence: SuiteEvidence, origin: str) -> SuiteMeasurement:
    """Decide whether the figures make a suite evidence; pure."""
    strength, coverage = evidence.strength, evidence.branch_coverage
    few = evidence.counted < MIN_MUTANTS
    min_strength = MIN_STRENGTH_OF_FEW if few else MIN_STRENGTH[origin]
    min_coverage = MIN_COVERAGE_OF_FEW if few else MIN_BRANCH_COVERAGE
    figures = f"refuses {evidence.refused} of {evidence.counted} mutants"
    if strength is not None:
        figures += f" (strength {strength:.2f}, {evidence.undecided} undecided)"
    if coverage is not None:
        figures += f", reaches {evidence.reached} of {evidence.branches} branches ({coverage:.2f})"
    problem = ""
    if coverage is not None and coverage < min_coverage:
        problem = f"branch coverage is below {min_coverage}"
        problem += f", with fewer than {MIN_MUTANTS} counted mutants" if few else ""
    elif strength is not None and strength < min_strength:
        problem = f"strength is below {min_strength}"
    elif strength is None and not coverage:
        problem = "nothing shows that it tests the source"
    return SuiteMeasurement(
        "weak" if problem else "usable",
        f"{problem}: it {figures}" if problem else f"{evidence.checks} cases; it {figures}",
        strength,
        evidence.counted,
        evidence.undecided,
        coverage,
    )


# ---- measuring -----------------------------------------------------------------------------------


def _measure_variants(
    source: SourceText, suite: Suite, settings: Settings, origin: str, checks: int
) -> SuiteMeasurement:
    mutants = select_mutants(generate_mutants(source), source, MAX_MUTANTS[suite.kind])
    edits: list[list[Edit]] = [[mutant.edit] for mutant in mutants]
    stubs = [[(0, len(source.data), "")], *_build_stubs(source, suite)]
    with VariantRunner(source, suite, settings) as runner:
        probes, branches = insert_probes(source, runner.probe)
        report = _run_cases(runner, [probes, *stubs, *edits])
        if problem := _check_stubs(report, len(stubs)):
            return problem
        refused = report.refused[1 + len(stubs) :]
        survivors = [edit for edit, is_refused in zip(edits, refused, strict=True) if is_refused is False]
        differing = 0
        if survivors:
            pool = runner.run_pool(
                survivors, build_pool(source, suite, f"pool {GENERATOR_VERSION}"), _find_raised(source.tree)
            )
            differing = sum(value is True for value in pool.differs)
    return decide_suite(
        SuiteEvidence(
            checks,
            refused=refused.count(True),
            counted=refused.count(True) + differing,
            undecided=len(refused) - refused.count(True) - differing,
            branches=len(branches),
            reached=len(report.hits & branches.keys()),
        ),
        origin,
    )


def _build_stubs(source: SourceText, suite: Suite) -> list[list[Edit]]:
    """Build stubs; what a constant passes of kind ``cases`` shows in the expectations themselves."""
    results = STUB_RESULTS if suite.kind == "pytest" else STUB_RESULTS[:1]
    return [build_stub(source, result) for result in results]


def _run_cases(runner: VariantRunner, variants: Sequence[list[Edit]]) -> CaseReport:
    """Run many cases per process; a process for each where the source keeps state outside of its module."""
    many = 1 if runner.suite.kind == "pytest" else len(runner.suite.cases)
    report = runner.run_cases(variants, many)
    return runner.run_cases(variants, 1) if _is_altered(report) and many > 1 else report


def _is_altered(report: CaseReport) -> bool:
    """Whether the source, or the source with probes, no longer passes."""
    return report.source_refused or report.refused[0] is not False


def _check_stubs(report: CaseReport, stubs: int) -> SuiteMeasurement | None:
    """Check that the probes change nothing and that no stub passes; None if so."""
    if _is_altered(report):
        return SuiteMeasurement("weak", "the source behaves differently when its code is only rewritten")
    for number, name in enumerate(("an empty module", *(f"a stub returning {r}" for r in STUB_RESULTS))):
        if number < stubs and report.refused[1 + number] is not True:
            return SuiteMeasurement("weak", f"{name} passes it")
    return None


def _find_raised(tree: ast.Module) -> list[str]:
    """List the names of the exceptions that the source raises itself."""
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    names = {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc) for exc in raised if exc}
    return sorted(name.rpartition(".")[2] for name in names)

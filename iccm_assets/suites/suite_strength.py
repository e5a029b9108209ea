"""Measure whether a suite tests its source, before any score on it counts.

    measurement = measure_suite(source_code, suite, settings, origin="attached")

The source must pass its suite; stubs must not; of its mutants that behave differently, the suite must refuse
enough; and it must reach the branches. Everything of the source runs in the sandbox. A result that is not
clear is ``weak``, never ``usable``. (C3b, D5)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from iccm_assets.errors import MissingPackageError, SandboxUnavailableError, first_line
from iccm_assets.settings import Settings
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.mutants import Mutant, generate_mutants, select_mutants, split_mutants
from iccm_assets.suites.outside_effects import find_left_out_lines
from iccm_assets.suites.planned_checks import count_checks, find_constants
from iccm_assets.suites.source_edits import (
    MAX_SOURCE_LENGTH,
    Edit,
    FunctionNode,
    SourceText,
    is_python,
    list_nodes,
)
from iccm_assets.suites.source_variants import (
    build_stub,
    find_special_lines,
    hide_text,
    insert_probes,
    list_results,
)
from iccm_assets.suites.suite_runner import JudgeResult, bind_environment, run_suite
from iccm_assets.suites.test_suites import Suite
from iccm_assets.suites.variant_runs import CaseReport, MeasurementFailedError, VariantRunner

# Raise it when a suite may be measured differently: stored measurements are then made again.
GENERATOR_VERSION = "10"

MIN_STRENGTH = {"attached": 0.5, "collected": 0.5, "recorded": 0.8}
MIN_STRENGTH_OF_FEW = 0.5  # of fewer than MIN_MUTANTS mutants, whatever the origin
MIN_CHECKS = 5
MIN_BRANCH_COVERAGE, MIN_COVERAGE_OF_FEW = 0.7, 0.9
MIN_MUTANTS = 8
QUICK_SECONDS = 1.0  # CPU time in which a source passes its suite, far within the judge's limits
MIN_INPUTS = 50  # that show a source to be constant
MAX_MUTANTS = {"cases": 24, "pytest": 12}

CONSTANT_PASSES = "a constant passes it: what it calls does the same in all its cases"
# What a source prints with: only the judge limits how much that is.
_WRITERS = frozenset(
    ("print", "pprint", "stdout", "stderr", "__stdout__", "__stderr__", "logging", "warnings", "traceback")
)
READS_TEXT = "it reads the text of the source: the same code with another text fails it"
TOO_DEEP = "the source is nested too deep to analyse"
Status = Literal["usable", "weak", "mismatch", "none"]


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
    unmeasured: int
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
    with suppress(MissingPackageError):  # the result says so, too
        suite, _ = bind_environment(source_code, suite, settings)
    result, problem = _run_judge(source_code, suite, settings)
    if problem:
        return problem

    def measure() -> SuiteMeasurement:
        source, weakness = _find_obvious_weakness(source_code, suite)
        if source is None:
            return weakness
        with VariantRunner(source, suite, settings, result.duration_ms / 1000) as runner:
            return _measure(runner, origin)[0]

    return _explain_failure(measure)


def measure_recorded_suite(source_code: str, suite: Suite, runner: VariantRunner) -> SuiteMeasurement:
    """Measure a suite of kind ``cases`` in the sandbox in which the same source was recorded.

    That sandbox runs the source on all cases in one process, with the judge's runner, comparison and audit
    hook. Where anything but a quick and quiet pass comes out of it, the judge itself runs them.
    """

    def measure() -> SuiteMeasurement:
        source, weakness = _find_obvious_weakness(source_code, suite)
        if source is None:
            return weakness
        runner.suite = suite
        measurement, report = _measure(runner, "recorded")
        if report is not None and _is_quiet(report, source):
            return measurement
        return _run_judge(source_code, suite, runner.settings)[1] or measurement

    return _explain_failure(measure)


def _run_judge(
    source_code: str, suite: Suite, settings: Settings
) -> tuple[JudgeResult, SuiteMeasurement | None]:
    """Run the source on its own suite; the second is what is wrong with it, None if nothing."""
    result = run_suite(source_code, suite, settings)
    if result.test_pass_rate is None and not result.missing_packages:
        raise SandboxUnavailableError(f"a test suite could not be measured: {result.reason}")
    return result, check_source(result)


def _is_quiet(report: CaseReport, source: SourceText) -> bool:
    """Whether the source passed without using much time, output, or anything outside."""
    passed = report.source_fate == "passed" and not report.violations
    names = {
        getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "name", "")
        for node in list_nodes(source.tree)
        if isinstance(node, ast.Name | ast.Attribute | ast.alias)
    }
    return passed and report.seconds <= QUICK_SECONDS and not names & _WRITERS


def _explain_failure(measure: Callable[[], SuiteMeasurement]) -> SuiteMeasurement:
    try:
        return measure()
    except MeasurementFailedError as error:
        return SuiteMeasurement("weak", f"its strength could not be measured: {error}")
    except (RecursionError, MemoryError):
        return SuiteMeasurement("weak", TOO_DEEP)
    except ValueError as error:  # Python does not write integers of more than 4300 digits
        return SuiteMeasurement("weak", f"it could not be measured: {first_line(error)}")


def check_source(result: JudgeResult) -> SuiteMeasurement | None:
    """Check that the source passes its own suite; None if it does."""
    if result.missing_packages:
        return SuiteMeasurement("none", result.reason)
    failure = next((case for case in result.results if case.verdict != "passed"), None)
    if failure is None and result.suspect:
        return SuiteMeasurement("mismatch", f"the source is suspect: {result.violations[0]}")
    if failure is None:
        return None
    passed = sum(case.verdict == "passed" for case in result.results)
    return SuiteMeasurement(
        "mismatch",
        f"the source passes {passed} of {len(result.results)} cases of its own suite; "
        f"case {failure.case}: {failure.verdict}: {failure.detail}"[:500],
    )


def decide_suite(evidence: SuiteEvidence, origin: str) -> SuiteMeasurement:
    """Decide whether the figures make a suite evidence; pure."""
    strength, coverage = evidence.strength, evidence.branch_coverage
    figures = f"refuses {evidence.refused} of {evidence.counted} mutants"
    if strength is not None:
        figures += f" (strength {strength:.2f}, {evidence.undecided} undecided)"
    if coverage is not None:
        figures += f", reaches {evidence.reached} of {evidence.branches} branches ({coverage:.2f})"
    problem = _find_weakness(evidence, origin)
    return SuiteMeasurement(
        "weak" if problem else "usable",
        f"{problem}: it {figures}" if problem else f"{evidence.checks} cases; it {figures}",
        strength,
        evidence.counted,
        evidence.undecided,
        coverage,
    )


def _find_weakness(evidence: SuiteEvidence, origin: str) -> str:
    strength, coverage = evidence.strength, evidence.branch_coverage
    few = evidence.counted < MIN_MUTANTS
    min_strength = MIN_STRENGTH_OF_FEW if few else MIN_STRENGTH[origin]
    min_coverage = MIN_COVERAGE_OF_FEW if few else MIN_BRANCH_COVERAGE
    if coverage is not None and coverage < min_coverage:
        note = f", with fewer than {MIN_MUTANTS} counted mutants" if few else ""
        return f"branch coverage is below {min_coverage}{note}"
    if strength is not None and strength < min_strength:
        return f"strength is below {min_strength}"
    if strength is None and not coverage:
        return "nothing shows that it tests the source"
    is_cut_short = evidence.unmeasured > evidence.counted
    return f"there was no time for {evidence.unmeasured} mutants" if is_cut_short else ""


# ---- measuring -----------------------------------------------------------------------------------


def _measure(runner: VariantRunner, origin: str) -> tuple[SuiteMeasurement, CaseReport | None]:
    """Measure a suite; the report is None where no case had to run."""
    source, suite = runner.source, runner.suite
    constants = find_constants(suite)
    mutants = generate_mutants(source)
    left_out = find_left_out_lines(source.tree) if origin == "recorded" else frozenset[int]()
    if origin == "recorded":
        mutants = [mutant for mutant in split_mutants(mutants, source)[1] if mutant.line not in left_out]
    mutants = select_mutants(mutants, source, MAX_MUTANTS[suite.kind])
    stubs = _build_stubs(source, suite)
    if constants and not _is_constant(runner, constants.pop()):
        return SuiteMeasurement("weak", CONSTANT_PASSES), None
    probes, branches = insert_probes(source, runner.probe)
    special = find_special_lines(source.tree) if suite.kind == "cases" else frozenset[int]()
    rewritten = [probes, hide_text(source)] if suite.kind == "pytest" else [probes]
    report = _run_cases(runner, stubs, [*rewritten, *([mutant.edit] for mutant in mutants)])
    fates = report.fates[len(stubs) + len(rewritten) :]
    if problem := _check_stubs(report, list(stubs)):
        return problem, report
    if "refused" in report.fates[len(stubs) + 1 : len(stubs) + len(rewritten)]:  # the hidden text
        return SuiteMeasurement("weak", READS_TEXT), report
    branches = {
        number: line
        for number, line in branches.items()
        if line not in left_out and (line not in special or number in report.hits)
    }
    survivors = [mutant for mutant, fate in zip(mutants, fates, strict=True) if fate == "passed"]
    differing = _count_differing(runner, survivors)
    evidence = SuiteEvidence(
        count_checks(suite),
        refused=fates.count("refused"),
        counted=fates.count("refused") + differing,
        undecided=len(survivors) - differing,
        unmeasured=fates.count("unmeasured"),
        branches=len(branches),
        reached=len(report.hits & branches.keys()),
    )
    return decide_suite(evidence, origin), report


def _find_obvious_weakness(source_code: str, suite: Suite) -> tuple[SourceText | None, SuiteMeasurement]:
    """Return the source to measure with, or None and why a suite is weak though nothing has run for it."""
    checks, constants = count_checks(suite), find_constants(suite)
    weakness = ""
    if checks < MIN_CHECKS:
        weakness = f"it has fewer than {MIN_CHECKS} cases ({checks})"
    elif constants is not None and len(constants) != 1:
        weakness = CONSTANT_PASSES
    elif len(source_code) > MAX_SOURCE_LENGTH:
        weakness = f"the source is longer than {MAX_SOURCE_LENGTH} characters"
    source = None if weakness else SourceText.parse(source_code)
    return source, SuiteMeasurement("weak", weakness or TOO_DEEP)


def _is_constant(runner: VariantRunner, result: str) -> bool:
    """Whether the source itself does on further inputs what a stub with this result does."""
    stub = build_stub(runner.source, result)
    if not is_python(runner.source, stub):
        return False
    inputs, differs = _run_pool(runner, [stub])
    return differs == (False,) and inputs >= MIN_INPUTS


def _count_differing(runner: VariantRunner, survivors: Sequence[Mutant]) -> int:
    """Count the mutants that differ from the source on further inputs."""
    if not survivors:
        return 0
    _, differs = _run_pool(runner, [[mutant.edit] for mutant in survivors])
    return differs.count(True)


def _run_pool(runner: VariantRunner, variants: list[list[Edit]]) -> tuple[int, tuple[bool | None, ...]]:
    plans = build_pool(runner.source, runner.suite, f"pool {GENERATOR_VERSION}")
    return runner.run_pool(variants, plans, find_raised(runner.source.tree))


def _build_stubs(source: SourceText, suite: Suite) -> dict[str, list[Edit]]:
    """Build stubs by name; what a constant passes of kind ``cases`` shows in the expectations themselves."""
    results = list_results(source) if suite.kind == "pytest" else ["None"]
    if not any(isinstance(node, FunctionNode | ast.Lambda) for node in list_nodes(source.tree)):
        results = []  # of what only declares, such as a dataclass, a stub is the source itself
    stubs = {f"a stub returning {result}": build_stub(source, result) for result in results}
    if not all(is_python(source, edits) for edits in stubs.values()):
        raise MeasurementFailedError("no stub of the source can be written")
    return {"an empty module": [(0, len(source.data), "")], **stubs}


def _run_cases(
    runner: VariantRunner, stubs: Mapping[str, list[Edit]], variants: Sequence[list[Edit]]
) -> CaseReport:
    """Run cases together; each in a process of its own where the source does not pass.

    It may keep state outside of its module, or the machine may have been too busy for its limits.
    """
    report = runner.run_cases([*stubs.values(), *variants], len(stubs), together=True)
    if _is_altered(report, len(stubs)):
        report = runner.run_cases([*stubs.values(), *variants], len(stubs), together=False)
    return report


def _check_stubs(report: CaseReport, stubs: list[str]) -> SuiteMeasurement | None:
    """Check that no stub passes, and that the probes change nothing; None if so."""
    if passing := [name for name, fate in zip(stubs, report.fates, strict=False) if fate == "passed"]:
        return SuiteMeasurement("weak", f"{passing[0]} passes it")
    if _is_altered(report, len(stubs)) or "unmeasured" in report.fates[: len(stubs) + 1]:
        return SuiteMeasurement("weak", "the source behaves differently when its code is only rewritten")
    return None


def _is_altered(report: CaseReport, stubs: int) -> bool:
    """Whether the source, or the source with probes, no longer passes."""
    return report.source_fate != "passed" or report.fates[stubs] in ("refused", "broken")


def find_raised(tree: ast.Module) -> list[str]:
    """List the names of the exceptions that the source raises itself."""
    raised = (node.exc for node in list_nodes(tree) if isinstance(node, ast.Raise))
    names = {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc) for exc in raised if exc}
    return sorted(name.rpartition(".")[2] for name in names)

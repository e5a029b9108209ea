"""Run the variants of a source in one sandbox, and read what they answered.

``mutant_driver.py`` runs inside and is not trusted: its report is parsed strictly, and whether an answer is
right is decided here, by the judge's own comparison. (D5)
"""

from __future__ import annotations

import json
import marshal
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap, pytest_suites
from iccm_assets.sandbox.environments import find_imports
from iccm_assets.sandbox.init_process import RESERVED_FD
from iccm_assets.sandbox.launcher import Packages
from iccm_assets.sandbox.sandbox import CaseOutcome, Limits, Sandbox
from iccm_assets.settings import Settings
from iccm_assets.suites import mutant_driver
from iccm_assets.suites.case_verdicts import classify_case
from iccm_assets.suites.input_pool import Plan
from iccm_assets.suites.raised_classes import RaisedClasses
from iccm_assets.suites.source_edits import Edit, SourceText
from iccm_assets.suites.suite_runner import bind_environment
from iccm_assets.suites.suite_values import InvalidValueError, check_encoded
from iccm_assets.suites.test_suites import Case, Suite

MIN_SECONDS = {"cases": 10.0, "pytest": 30.0}  # CPU time of all variants together
MAX_SECONDS = 40.0
VARIANTS_PER_SUITE = 12.0  # how many times the duration of the suite they may take, within these bounds
POOL_SECONDS = 10.0
EXPLORE_SECONDS, PLAN_SECONDS = 4.0, 0.05  # CPU time of many inputs, and of one
MAX_RESTARTS, MAX_ALL_RESTARTS = 16, 80  # after inputs without an answer, in one run and in all
MAX_RECORDED_ANSWER, MAX_ANSWERS = 6000, 700_000  # characters of one, and of all of one run
GRACE_SECONDS = 6.0  # for the variant that runs when the time is over
MALFORMED = "the variants of the source sent a malformed report"
_MODULES = (
    Path(pytest_suites.__file__).with_name("case_runner.py"),
    Path(pytest_suites.__file__).with_name("pytest_runner.py"),
    Path(pytest_suites.__file__).with_name("source_files.py"),
    Path(pytest_suites.__file__).with_name("audit_hooks.py"),
    Path(mutant_driver.__file__).with_name("answer_agreement.py"),
)


# The text that the sandbox compiles for each request; ``json`` is imported once, before.
_LOADER = """
import json, marshal, types

def run(driver, function, request):
    module = types.ModuleType("mutant_driver")
    exec(marshal.loads(driver), module.__dict__)
    return getattr(module, function)(request)
"""


class MeasurementFailedError(Exception):
    """The variants of a source gave no result; the message says why."""


Fate = Literal["refused", "passed", "broken", "unmeasured"]


@dataclass(frozen=True)
class CaseReport:
    """What the suite says of the source and of each variant, and the branches of the source that it reaches.

    ``violations`` and ``seconds`` of CPU time are those of the source, of kind ``cases``. A ``broken``
    variant cannot be imported, which every suite would notice; for an ``unmeasured`` one there was no time.
    """

    source_fate: Fate
    fates: tuple[Fate, ...]
    hits: frozenset[int]
    violations: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class SourceAnswer:
    """What the source did on one input: its answer, None where it gave none, and the branches it reached."""

    answer: str | None
    branches: frozenset[int]


class VariantRunner:
    """A sandbox for the variants of one source; a context manager."""

    def __init__(self, source: SourceText, suite: Suite, settings: Settings, suite_seconds: float) -> None:
        seconds = max(MIN_SECONDS[suite.kind], VARIANTS_PER_SUITE * suite_seconds)
        self.seconds = min(seconds, MAX_SECONDS)
        self.source, self.suite, self.settings = source, suite, settings
        self.restarts = MAX_ALL_RESTARTS
        self.violations: tuple[str, ...] = ()  # of the last run
        self.probe = f"_{secrets.token_hex(8)}"  # no source can name it
        packages = pytest_suites.find_packages() if suite.kind == "pytest" else ()
        self.request: dict[str, Any] = {
            "source": source.data,
            "probe": self.probe,
            **{path.stem: _compile_module(path) for path in _MODULES},
            "files": dict(suite.files) if suite.kind == "pytest" else None,
            "paths": _package_paths(packages, settings),
            "violations_fd": RESERVED_FD + 1,
        }
        text = source.data.decode()
        _, environment = bind_environment(text, suite, settings)
        modules = environment.modules if environment else frozenset[str]()
        self.request["packages"] = sorted(find_imports(text) & modules)
        self.sandbox = Sandbox.start(settings, packages, environment)

    def __enter__(self) -> VariantRunner:
        self.sandbox.load(_LOADER, imports=self.source.data.decode())
        return self

    def __exit__(self, *error: object) -> None:
        self.sandbox.close()

    def run_cases(self, variants: Sequence[list[Edit]], stubs: int, *, together: bool) -> CaseReport:
        """Run the suite on the source and on each variant, the first of which are ``stubs``.

        Several cases share a process where they run ``together``, and of pytest all tests of a file.
        """
        cases = self._plan_cases(together)
        report = self._run(
            "run_cases",
            self.seconds,
            variants=[[], *variants],
            stubs=stubs,
            plans=[plan for _, plan in cases],
            cases_per_process=len(cases) if together and self.suite.kind == "cases" else 1,
        )
        try:
            raised = RaisedClasses(self.suite.cases, self.source.data.decode(), self.suite.files)
            decide = partial(self._decide_fate, [case for case, _ in cases], raised)
            source_fate = decide(list(enumerate(report["answers"])))
            fates = [decide(answers) for answers in report["differences"]]
            hits, seconds = frozenset(map(int, report["hits"])), float(report["seconds"])
        except (LookupError, TypeError, ValueError, OverflowError):
            raise MeasurementFailedError(MALFORMED) from None
        if len(fates) > len(variants) or (source_fate == "passed" and len(report["answers"]) != len(cases)):
            raise MeasurementFailedError(MALFORMED)
        unmeasured: list[Fate] = ["unmeasured"] * (len(variants) - len(fates))
        return CaseReport(source_fate, (*fates, *unmeasured), hits, self.violations, seconds)

    def _plan_cases(self, together: bool) -> list[tuple[Case | None, Plan]]:
        """Return what runs, each with the case that says which answer is right; None for the import alone."""
        if self.suite.kind == "cases":
            return [(None, ("import",)), *((case, case.inputs()) for case in self.suite.cases)]
        if not together:
            return [(case, case.inputs()) for case in self.suite.cases]
        files = {case.test.partition("::")[0]: case for case in reversed(self.suite.cases)}
        return [(files[name], ("test", name)) for name in sorted(files)]

    def _decide_fate(
        self, cases: list[Case | None], raised: RaisedClasses, answers: list[Any] | None
    ) -> Fate:
        """Decide by answers, as [case, answer]; an answer that is None did not come."""
        if answers is None:
            return "unmeasured"
        for number, answer in answers:
            case = cases[number]
            if case is None and answer != mutant_driver.IMPORTED:
                return "broken"
            outcome = CaseOutcome("answered", answer=str(answer).encode(), imported=True)
            if case and answer is None:
                return "refused"
            if case and classify_case(case, outcome, self.settings.judge, raised).verdict != "passed":
                return "refused"
        return "passed"

    def run_pool(
        self, variants: Sequence[list[Edit]], plans: list[Plan], raised: Sequence[str]
    ) -> tuple[int, tuple[bool | None, ...]]:
        """Return how many further inputs the source answers, and whether each variant differs on one.

        None stands for a variant that there was no time for. ``raised`` names the
        exceptions that the source raises itself; other errors are no behaviour.
        """
        report = self._run(
            "run_pool", POOL_SECONDS, variants=[[], *variants], plans=plans, raised=list(raised)
        )
        inputs, differs = report.get("inputs"), report.get("differs")
        if not isinstance(inputs, int) or not isinstance(differs, list) or len(differs) != len(variants):
            raise MeasurementFailedError(MALFORMED)
        return inputs, tuple(None if value is None else value is True for value in differs)

    def explore(
        self, probes: list[Edit], plans: list[Plan], plan_seconds: float = PLAN_SECONDS
    ) -> list[SourceAnswer]:
        """Return what the source with probes does on inputs."""
        report = self._run_source("explore", plans, plan_seconds, variants=[probes])
        try:
            self.restarts -= list(report["answers"]).count(None)
            hits: Any = zip(report["answers"], report["branches"], strict=True)
            observations = [SourceAnswer(answer, frozenset(map(int, numbers))) for answer, numbers in hits]
        except (LookupError, TypeError, ValueError):
            raise MeasurementFailedError(MALFORMED) from None
        if len(observations) != len(plans):
            raise MeasurementFailedError(MALFORMED)
        return observations

    def repeat(
        self,
        plans: list[Plan],
        answers: Sequence[str | None],
        hash_seeds: Sequence[int],
        plan_seconds: float = PLAN_SECONDS,
    ) -> list[list[str | None]]:
        """Return what the source answers under other hash seeds, given the ``answers`` that are known."""
        parts = {"variants": [[]], "answers": list(answers), "hash_seeds": list(hash_seeds)}
        report = self._run_source("repeat", plans, plan_seconds, **parts)
        try:
            again = [
                [own if other is True else other or None for own, other in zip(answers, others, strict=True)]
                for others in report["again"]
            ]
        except (LookupError, TypeError, ValueError):
            raise MeasurementFailedError(MALFORMED) from None
        if len(again) != len(hash_seeds):
            raise MeasurementFailedError(MALFORMED)
        return again

    def _run_source(
        self, function: str, plans: list[Plan], plan_seconds: float, **parts: Any
    ) -> dict[str, Any]:
        return self._run(
            function,
            EXPLORE_SECONDS,
            plans=plans,
            plan_seconds=plan_seconds,
            max_restarts=max(1, min(MAX_RESTARTS, self.restarts)),
            max_answer=min(MAX_RECORDED_ANSWER, MAX_ANSWERS // max(1, len(plans))),
            driver=_compile_module(Path(mutant_driver.__file__)),
            **parts,
        )

    def run_matrix(
        self,
        variants: Sequence[list[Edit]],
        plans: list[Plan],
        chosen: Sequence[frozenset[int] | None],
    ) -> list[frozenset[int] | None]:
        """Return for each variant the numbers of inputs that it answers differently than the source.

        ``chosen`` are for each variant those that may, None for all. A few that do are enough.
        """
        report = self._run(
            "run_matrix", POOL_SECONDS, variants=[[], *variants], plans=plans, chosen=list(chosen)
        )
        differs = report.get("differs")
        if not isinstance(differs, list) or len(differs) != len(variants):
            raise MeasurementFailedError(MALFORMED)
        try:
            return [None if numbers is None else frozenset(map(int, numbers)) for numbers in differs]
        except (TypeError, ValueError):
            raise MeasurementFailedError(MALFORMED) from None

    def _run(self, function: str, seconds: float, **parts: Any) -> dict[str, Any]:
        request = self.request | parts | {"seconds": seconds}
        limits = Limits(mutant_driver.WALL_FACTOR * seconds + GRACE_SECONDS, seconds + GRACE_SECONDS, 1 << 20)
        # Packed: among the plans are objects that only the source can make. In this version equal values are
        # not one object, as in the judge: the source may ask.
        arguments = [_compile_module(Path(mutant_driver.__file__)), function, marshal.dumps(request, 2)]
        outcome = self.sandbox.run_case(0, ("call", "run", arguments, {}), limits)
        self.violations = outcome.violations
        if outcome.kind == "lost":
            raise SandboxUnavailableError("its init process ended while the variants of a source ran")
        if outcome.kind != "answered":
            raise MeasurementFailedError(f"the variants of the source exceeded a limit ({outcome.kind})")
        try:
            kind, value = json.loads(outcome.answer)
            report = json.loads(check_encoded(value)[1]) if kind == "v" and value[0] == "s" else None
        except (ValueError, TypeError, LookupError, RecursionError, InvalidValueError):
            report = None
        if not isinstance(report, dict):
            raise MeasurementFailedError(MALFORMED)
        return report


def _package_paths(packages: Packages, settings: Settings) -> list[str]:
    """Return where the sandbox imports packages from; without isolation, folders of the host."""
    if settings.sandbox == "strict":
        return [bubblewrap.PACKAGES] if packages else []
    return sorted({str(Path(folder).parent) for _, folder in packages})


@cache
def _compile_module(path: Path) -> bytes:
    """Compile what the driver loads; the sandbox has the same interpreter."""
    return marshal.dumps(compile(path.read_bytes(), f"<{path.stem}>", "exec", dont_inherit=True))

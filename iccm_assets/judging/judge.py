"""The judge: does an implementation do what a suite plans? (J1-J3)

    result = judge(source, suite, settings)

Each case runs in the sandbox; its answer comes back as data and is compared here, where the expected
values are. The pass rate counts the planned cases. A sandbox that could not be had gives no pass rate at
all (``None``), never a 0 and never a pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import pytest_suites
from iccm_assets.judging.case_verdicts import CaseResult, repeats_in_every_case, suspicions_of, verdict_of
from iccm_assets.judging.sandbox import Budget, LayersMissing, Sandbox
from iccm_assets.judging.suites import Case, Suite
from iccm_assets.settings import Settings

# Changes when the same implementation and suite may get another verdict; baselines are measured anew then.
JUDGE_VERSION = "2"

__all__ = ["JUDGE_VERSION", "CaseResult", "JudgeResult", "judge", "judge_many", "probe"]


@dataclass(frozen=True)
class JudgeResult:
    """What the judge found.

    ``test_pass_rate`` is passed / planned, or None when the sandbox gave no evidence (``reason`` says why).
    ``evidence`` is the suite's kind: ``pytest`` is the weaker, since tests and code share a process.
    ``suspect`` marks an implementation that tried something no honest one does; ``suspicions`` names it.
    """

    test_pass_rate: float | None
    results: tuple[CaseResult, ...]
    suspect: bool = False
    suspicions: tuple[str, ...] = ()
    layers: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    evidence: str = "cases"
    duration_ms: float = 0.0


def judge(implementation: str, suite: Suite, settings: Settings) -> JudgeResult:
    """Run every case of ``suite`` on the source code ``implementation``.

    The limits of ``settings.judge`` hold for the implementation as a whole. Raises nothing for what the
    implementation does or for a sandbox that is missing.
    """
    started = time.monotonic()
    try:
        packages = pytest_suites.packages() if suite.kind == "pytest" else ()
        with Sandbox.start(settings, packages) as sandbox:
            results, notices = _run(implementation, suite, settings, sandbox)
            layers = sandbox.layers
    except SandboxUnavailable as error:
        return _inconclusive(suite, error, started)
    suspicions = suspicions_of(implementation, results, notices, suite.kind)
    passed = sum(result.verdict == "passed" for result in results)
    return JudgeResult(
        test_pass_rate=passed / len(suite),
        results=tuple(results),
        suspect=bool(suspicions),
        suspicions=suspicions,
        layers=layers,
        evidence=suite.kind,
        duration_ms=_since(started),
    )


def judge_many(
    work: Iterable[tuple[str, Suite]], settings: Settings, workers: int | None = None
) -> Iterator[JudgeResult]:
    """``judge`` for each (implementation, suite), ``settings.judge.workers`` at a time, results in order."""
    count = workers or settings.judge.workers
    todo = iter(work)
    with ThreadPoolExecutor(count, thread_name_prefix="judge") as pool:
        running: list[Future[JudgeResult]] = [
            pool.submit(judge, *one, settings) for one in islice(todo, 2 * count)
        ]
        try:
            while running:
                result = running.pop(0).result()
                running += [pool.submit(judge, *one, settings) for one in islice(todo, 1)]
                yield result
        finally:
            for future in running:
                future.cancel()


def probe(settings: Settings) -> dict[str, str]:
    """The sandbox's layers on this machine, as ``iccm doctor`` shows them; a missing one says so."""
    try:
        with Sandbox.start(settings) as sandbox:
            return sandbox.layers
    except LayersMissing as error:
        return error.layers
    except SandboxUnavailable as error:
        return {"bubblewrap": f"missing: {error.detail}"}


def _run(
    implementation: str, suite: Suite, settings: Settings, sandbox: Sandbox
) -> tuple[list[CaseResult], list[str]]:
    """All cases in order; once time is up the rest is not run."""
    limits = settings.judge
    left = Budget(limits.wall_seconds, float(limits.cpu_seconds), int(limits.output_mib * (1 << 20)))
    results: list[CaseResult] = []
    notices: list[str] = []
    sandbox.load(implementation, suite.files if suite.kind == "pytest" else None)
    for case in suite.cases:
        stop = _stopped(case, results, left)
        if stop:
            results.append(stop)
            continue
        reply = sandbox.run_case(case.index, case.plan(), left)
        if reply.kind == "lost":
            raise SandboxUnavailable(f"its first process ended during case {case.index}")
        left = Budget(left.wall - reply.wall, left.cpu - reply.cpu, left.output - reply.printed)
        result = verdict_of(case, reply, limits)
        if repeats_in_every_case(reply):
            return [CaseResult(one.index, result.verdict, result.detail) for one in suite.cases], list(
                reply.notices
            )
        results.append(result)
        notices += reply.notices
    return results, notices


def _stopped(case: Case, results: list[CaseResult], left: Budget) -> CaseResult | None:
    """``not_run`` once an earlier case has used a limit of the whole implementation up."""
    used_up = [
        name
        for name, rest in (
            ("time", left.wall - 0.001),
            ("CPU time", left.cpu - 0.001),
            ("output", left.output),
        )
        if rest <= 0
    ]
    if not used_up:
        return None
    last = next((result.case for result in reversed(results) if result.verdict != "not_run"), None)
    return CaseResult(case.index, "not_run", f"the implementation's {used_up[0]} was used up by case {last}")


def _inconclusive(suite: Suite, error: SandboxUnavailable, started: float) -> JudgeResult:
    layers = error.layers if isinstance(error, LayersMissing) else {"bubblewrap": f"missing: {error.detail}"}
    results = tuple(CaseResult(case.index, "not_run", "the sandbox is not available") for case in suite.cases)
    return JudgeResult(
        None,
        results,
        layers=layers,
        reason=str(error),
        evidence=suite.kind,
        duration_ms=_since(started),
    )


def _since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 3)

"""Scoring: can others rebuild the code from its requirements text? (O1, J2)

`score_texts` gets a re-implementation from every member of the orchestra, runs the test suite of the original
on each in the sandbox, and aggregates. scoring_pass.py does so for the stored requirements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from statistics import fmean, pvariance
from typing import Any

from iccm_assets.errors import MissingPackageError, SandboxUnavailableError
from iccm_assets.sandbox.source_files import split_files
from iccm_assets.scoring.api_compatibility import api_compatibility
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.reconstruction import ProgramShape, Reconstruction, ReconstructionRequest, is_blank
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import JudgeResult, bind_environment, run_suites
from iccm_assets.suites.test_suites import Suite

# An answer that stopped at the token limit is not a good one, however much of it can be rebuilt (L10).
LENGTH_STOPPED = "the answer stopped at the token limit"
BLANK = "the text is blank"
# An answer to a part of a source says nothing about the model (L10).
SOURCE_TRUNCATED = "the model did not read the end of the source"


@dataclass(frozen=True)
class ScoringTask:
    """A requirements text to score with a suite; only the signatures of the source are used.

    ``cached_answers`` holds earlier answers by member name: they are judged, and those members get no
    request. The suite runs in the environment of the source, if it is not bound to one (J5). A text with a
    ``rejection``, its reason, scores 0, and no member is called for it.
    """

    requirements: str
    suite: Suite
    source_code: str | None = None
    cached_answers: Mapping[str, Reconstruction] = field(default_factory=dict)
    rejection: str = ""


@dataclass(frozen=True)
class ReconstructionScore:
    """The score of one member's re-implementation; ``test_pass_rate`` is None when it is not evidence."""

    reconstructor: str
    status: str
    implementation: str
    test_pass_rate: float | None
    results: tuple[dict[str, Any], ...]
    api_compatibility: float | None
    duration_ms: float
    detail: str = ""


@dataclass(frozen=True)
class Score:
    """The orchestra's score of one requirements text; None is inconclusive, with its ``reason``.

    ``suite`` says how good the suite is, as far as known: its ``suite`` status and ``strength``.
    ``unmeasured`` says why the sandbox could not measure it.
    """

    test_pass_rate: float | None
    implementation_variance: float | None
    api_compatibility: float | None
    members: tuple[ReconstructionScore, ...]
    reason: str = ""
    suite: Mapping[str, Any] = field(default_factory=dict)
    unmeasured: str = ""


def aggregate(members: Sequence[ReconstructionScore], quorum: int) -> Score:
    """Return mean and population variance of the members' pass rates; inconclusive below the quorum."""
    rates = [member.test_pass_rate for member in members if member.test_pass_rate is not None]
    if len(rates) < quorum:
        unscored = "; ".join(
            f"{member.reconstructor}: {member.status} {member.detail}".strip()
            for member in members
            if member.test_pass_rate is None
        )
        reason = f"{len(rates)} of {len(members)} members gave a score, the quorum is {quorum} ({unscored})"
        return Score(None, None, None, tuple(members), reason)
    compatible = [member.api_compatibility for member in members if member.api_compatibility is not None]
    return Score(
        test_pass_rate=fmean(rates),
        implementation_variance=pvariance(rates),
        api_compatibility=fmean(compatible) if compatible else None,
        members=tuple(members),
    )


def score_texts(tasks: Iterable[ScoringTask], orchestra: Orchestra, settings: Settings) -> Iterator[Score]:
    """Yield one score per task, in order. Runs `settings.judge.workers` sandboxes at a time.

    A blank text scores 0, and no member is called for it; any other text is scored, whatever its wording.
    Endpoint requests and sandbox runs overlap: the judge takes answers as they arrive, in order. A task is
    read only when a worker is free for it. (R11)
    """
    requested: deque[ScoringTask] = deque()
    answered: deque[tuple[ScoringTask, list[Reconstruction]]] = deque()
    verdicts: deque[JudgeResult] = deque()

    def requests() -> Iterator[ReconstructionRequest]:
        for unbound in tasks:
            task, shape = _bind(unbound, settings)
            requested.append(task)
            answers = task.cached_answers
            if rejection := task.rejection or (BLANK if is_blank(task.requirements) else ""):
                answers = {
                    member.name: Reconstruction(member.name, "unreadable", detail=rejection)
                    for member in orchestra.members
                }
            yield ReconstructionRequest(task.requirements, answers, shape)

    def implementations() -> Generator[tuple[str, Suite], None, None]:
        for answers in orchestra.reconstruct_many(requests()):
            task = requested.popleft()
            answered.append((task, answers))
            yield from ((answer.implementation, task.suite) for answer in answers if _has_code(answer))

    # Verdicts arrive in the order of the answers, so the oldest ones belong to the oldest task. A task is
    # scored as soon as it has one verdict for each answer with code; it may have none at all.
    with closing(implementations()) as to_judge:
        for verdict in run_suites(to_judge, settings):
            verdicts.append(verdict)
            while answered and sum(map(_has_code, answered[0][1])) <= len(verdicts):
                yield _score(*answered.popleft(), verdicts, orchestra.quorum)
    while answered:
        yield _score(*answered.popleft(), verdicts, orchestra.quorum)


def _bind(task: ScoringTask, settings: Settings) -> tuple[ScoringTask, ProgramShape]:
    """Bind the suite of a task to the environment of its source; return what answers may look like, too."""
    paths = tuple(path for path, _, _ in split_files(task.source_code or ""))
    try:
        suite, environment = bind_environment(task.source_code or "", task.suite, settings)
    except (MissingPackageError, SandboxUnavailableError):  # which the verdicts will say
        return task, ProgramShape((), paths)
    return replace(task, suite=suite), ProgramShape(environment.packages if environment else (), paths)


def _has_code(answer: Reconstruction) -> bool:
    return answer.status == "answered"


def _score(
    task: ScoringTask, answers: Sequence[Reconstruction], verdicts: deque[JudgeResult], quorum: int
) -> Score:
    """Score a task with the first verdicts of the queue, one for each answer with code."""
    members = [
        _score_judged(answer, verdicts.popleft(), task)
        if _has_code(answer)
        else _score_unjudged(answer, task)
        for answer in answers
    ]
    return aggregate(members, quorum)


def _score_judged(answer: Reconstruction, verdict: JudgeResult, task: ScoringTask) -> ReconstructionScore:
    """Score an implementation that was run. A suspect one is not evidence; a person has to review it."""
    measured = "inconclusive" if verdict.test_pass_rate is None else "scored"
    status = "suspect" if verdict.suspect else measured
    return ReconstructionScore(
        reconstructor=answer.reconstructor,
        status=status,
        implementation=answer.implementation,
        test_pass_rate=verdict.test_pass_rate if status == "scored" else None,
        results=tuple(
            {"case": case.case, "verdict": case.verdict, "detail": case.detail} for case in verdict.results
        ),
        api_compatibility=(
            api_compatibility(task.source_code, answer.implementation) if task.source_code else None
        ),
        duration_ms=verdict.duration_ms,
        detail=verdict.reason,
    )


def _score_unjudged(answer: Reconstruction, task: ScoringTask) -> ReconstructionScore:
    """Score an answer without code: unreadable requirements rebuild nothing and score 0."""
    unreadable = answer.status == "unreadable"
    cases = range(len(task.suite.cases) if unreadable else 0)
    return ReconstructionScore(
        reconstructor=answer.reconstructor,
        status=answer.status,
        implementation="",
        test_pass_rate=0.0 if unreadable else None,
        results=tuple({"case": case, "verdict": "not_run", "detail": answer.detail} for case in cases),
        api_compatibility=0.0 if unreadable and task.source_code else None,
        duration_ms=0.0,
        detail=answer.detail,
    )

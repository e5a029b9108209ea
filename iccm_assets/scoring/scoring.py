"""Scoring: can others rebuild the code from its requirements text? (O1, J2)

`score_texts` gets a re-implementation from every member of the orchestra, runs the test suite of the original
on each in the sandbox, and aggregates. `score_unscored` does so for the stored requirements that have a suite
and no score yet. It commits in batches, so that a pass can be resumed, and passes can run concurrently
(scoring_queue.py).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from operator import add
from statistics import fmean, pvariance
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.capture.extraction import extract_source
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.errors import TestSuiteError
from iccm_assets.scoring.api_compatibility import api_compatibility
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.reconstruction import Reconstruction, ReconstructionRequest, is_blank
from iccm_assets.scoring.sandbox_alert import alert_sandbox_missing
from iccm_assets.scoring.scoring_queue import (
    RowClaims,
    claim_rows,
    row_version,
    unscored_requirements,
)
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import JUDGE_VERSION, JudgeResult, run_suites
from iccm_assets.suites.test_suites import Suite, parse_suite

BATCH_SIZE = 24
# Stored statuses of members that answered; the judge then decided among these.
_ANSWERED = ("scored", "suspect", "inconclusive")


@dataclass(frozen=True)
class ScoringTask:
    """A requirements text to score with a suite; only the signatures of the source are used.

    ``cached_answers`` holds earlier answers by member name: they are judged, and those members get no
    request.
    """

    requirements: str
    suite: Suite
    source_code: str | None = None
    cached_answers: Mapping[str, Reconstruction] = field(default_factory=dict)


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
    """The orchestra's score of one requirements text; None is inconclusive, with its ``reason``."""

    test_pass_rate: float | None
    implementation_variance: float | None
    api_compatibility: float | None
    members: tuple[ReconstructionScore, ...]
    reason: str = ""


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
        for task in tasks:
            requested.append(task)
            answers = task.cached_answers
            if is_blank(task.requirements):
                answers = {member.name: _blank_answer(member.name) for member in orchestra.members}
            yield ReconstructionRequest(task.requirements, answers)

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


def _blank_answer(name: str) -> Reconstruction:
    return Reconstruction(name, "unreadable", detail="the text is blank")


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


@dataclass(frozen=True)
class ScoringReport:
    """The result of one pass over the unscored requirements, in rows.

    ``answers`` counts members x texts by outcome: answered, unreadable, missing; texts with an invalid suite
    (``invalid_suites``) are not among them. ``selected_rows`` includes rows that another scorer claimed or
    that the time did not suffice for. ``reused`` rows got the score that the same text of the same session
    already had.
    """

    scored: int = 0
    inconclusive: int = 0
    invalid_suites: int = 0
    rates: tuple[float, ...] = ()
    answers: Counter[str] = field(default_factory=Counter)
    selected_rows: int = 0
    reused: int = 0

    def __add__(self, other: ScoringReport) -> ScoringReport:
        return ScoringReport(*map(add, vars(self).values(), vars(other).values()))


def _report(score: Score) -> ScoringReport:
    rates = () if score.test_pass_rate is None else (score.test_pass_rate,)
    answers = Counter("answered" if member.status in _ANSWERED else member.status for member in score.members)
    return ScoringReport(scored=len(rates), inconclusive=1 - len(rates), rates=rates, answers=answers)


# What to do with a group of rows: score the task, or store this score, which needs no request.
_Work = ScoringTask | tuple[Score, ScoringReport]


def score_unscored(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    days: tuple[date, date] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> ScoringReport:
    """Score what has a suite and no score yet; ``days`` = (first, last), inclusive, UTC.

    An inconclusive score leaves `test_pass_rate` null but sets `scored_at`. If members were missing, it is
    retried and only those members get requests: with ``days`` every time, otherwise at growing intervals
    (scoring_queue.py), so that an unanswered text does not cost money every few minutes. To retry an
    inconclusive score of another cause, clear `scored_at`.

    However the pass ends, the scores until then are stored. Rows claimed by another scorer are skipped.
    """
    return score_rows(engine, unscored_requirements(days), orchestra, settings, progress=progress)


def score_rows(
    engine: sa.Engine,
    query: sa.Select[Any],
    orchestra: Orchestra,
    settings: Settings,
    *,
    deadline: float = math.inf,
    progress: Callable[[int], None] = lambda count: None,
) -> ScoringReport:
    """Run one pass over the rows of a query of scoring_queue.py, in its order; see `score_unscored`.

    No text is started after ``deadline`` (on `time.monotonic`); texts in progress are finished and stored.
    """
    with engine.connect() as conn:
        rows = conn.execute(query).all()
        answers = _load_answers(conn, [row.id for row in rows if row.orchestra == orchestra.digest])
        reusable = _load_reusable_scores(conn, [row.id for row in rows], orchestra)
    with claim_rows(engine) as claims:
        scoring_pass = _ScoringPass(engine, claims, orchestra, settings, deadline, progress)
        try:
            scoring_pass.run(_group(rows, answers, reusable, orchestra))
        finally:
            scoring_pass.store()
    return scoring_pass.report + ScoringReport(selected_rows=len(rows))


class _ScoringPass:
    """One pass: claims rows when it reaches their text, and releases them when their score is stored."""

    def __init__(
        self,
        engine: sa.Engine,
        claims: RowClaims,
        orchestra: Orchestra,
        settings: Settings,
        deadline: float,
        progress: Callable[[int], None],
    ) -> None:
        self.report = ScoringReport()
        self._engine, self._claims, self._orchestra, self._settings = engine, claims, orchestra, settings
        self._deadline, self._progress = deadline, progress
        self._in_progress: deque[list[Any]] = deque()
        self._scored: list[tuple[Any, Score]] = []

    def run(self, groups: Iterable[tuple[list[Any], _Work]]) -> None:
        """Score the groups of identical rows, in their order."""
        for score in score_texts(self._tasks(groups), self._orchestra, self._settings):
            self._add(self._in_progress.popleft(), score, _report(score))

    def store(self) -> None:
        """Store the scores so far, in one transaction."""
        scored, self._scored = self._scored, []
        if not scored:
            return
        with self._engine.begin() as conn:
            for row, score in sorted(scored, key=lambda pair: pair[0].id):
                _store(conn, row, score, self._orchestra)
            alert_sandbox_missing(conn, [score for _, score in scored])
        self._claims.release({row.id for row, _ in scored})
        self._progress(len(scored))

    def _tasks(self, groups: Iterable[tuple[list[Any], _Work]]) -> Iterator[ScoringTask]:
        for rows, work in groups:
            if time.monotonic() >= self._deadline:
                return
            claimed = self._claims.acquire(rows)
            if claimed and isinstance(work, ScoringTask):
                self._in_progress.append(claimed)
                yield work
            elif claimed and isinstance(work, tuple):
                self._add(claimed, *work)

    def _add(self, rows: Sequence[Any], score: Score, report: ScoringReport) -> None:
        self._scored += [(row, score) for row in rows]
        self.report = sum([report] * len(rows), self.report)
        if len(self._scored) >= BATCH_SIZE:
            self.store()


def _load_answers(
    conn: sa.Connection, requirement_ids: Sequence[int]
) -> dict[int, dict[str, Reconstruction]]:
    """Load earlier answers of this orchestra's members, by requirements id and member name."""
    rc = t.reconstructions.c
    rows = conn.execute(
        sa.select(rc.requirement_id, rc.reconstructor, rc.status, rc.implementation_code, rc.reason).where(
            rc.requirement_id.in_(requirement_ids), rc.status != "missing"
        )
    )
    answers: dict[int, dict[str, Reconstruction]] = defaultdict(dict)
    for row in rows:
        answers[row.requirement_id][row.reconstructor] = Reconstruction(
            row.reconstructor,
            "answered" if row.status in _ANSWERED else "unreadable",
            row.implementation_code or "",
            row.reason or "",
        )
    return answers


_REUSABLE = sa.text(
    """
    select distinct on (p.id) p.id as pending, s.id, s.test_pass_rate, s.implementation_variance,
        s.api_compatibility
    from iccm.requirements p join iccm.requirements s using (session_id, text)
    where p.id = any(:ids) and s.id <> p.id and s.test_pass_rate is not null
        and s.orchestra = :orchestra and s.judge_version = :judge
        and s.source_sha256 is not distinct from p.source_sha256 and s.test_suite::text = p.test_suite::text
    order by p.id, s.id
    """
)


def _load_reusable_scores(conn: sa.Connection, ids: Sequence[int], orchestra: Orchestra) -> dict[int, Score]:
    """Load scores of the same text, source and suite in the same session, by this orchestra and judge."""
    values = {"ids": list(ids), "orchestra": orchestra.digest, "judge": JUDGE_VERSION}
    rows = conn.execute(_REUSABLE, values).all()
    rc = t.reconstructions.c
    query = sa.select(t.reconstructions).where(rc.requirement_id.in_([row.id for row in rows]))
    members: dict[int, list[ReconstructionScore]] = defaultdict(list)
    for member in conn.execute(query.order_by(rc.id)):
        members[member.requirement_id].append(
            ReconstructionScore(
                reconstructor=member.reconstructor,
                status=member.status,
                implementation=member.implementation_code or "",
                test_pass_rate=member.test_pass_rate,
                results=tuple(member.results),
                api_compatibility=None,
                duration_ms=member.duration_ms or 0.0,
                detail=member.reason or "",
            )
        )
    return {
        row.pending: Score(
            row.test_pass_rate, row.implementation_variance, row.api_compatibility, tuple(members[row.id])
        )
        for row in rows
        if row.id in members
    }


def _group(
    rows: Sequence[Any],
    answers: Mapping[int, Mapping[str, Reconstruction]],
    reusable: Mapping[int, Score],
    orchestra: Orchestra,
) -> Iterable[tuple[list[Any], _Work]]:
    """Group rows of one text, suite and source, in the order of the first of each, so it is scored once.

    An answer that the developer accepted unchanged is two such rows.
    """
    groups: dict[tuple[Any, ...], tuple[list[Any], _Work]] = {}
    for row in rows:
        if score := reusable.get(row.id):
            groups[row.id, "reused"] = ([row], (score, replace(_report(score), answers=Counter(), reused=1)))
            continue
        source, cached = extract_source(row.content, row.metadata), answers.get(row.id, {})
        suite = json.dumps(row.test_suite, sort_keys=True)
        key = (row.id,) if cached else (row.text, suite, source)
        if key not in groups:
            groups[key] = ([], _plan(row, source, cached))
        groups[key][0].append(row)
    return groups.values()


def _plan(row: Any, source: str | None, cached: Mapping[str, Reconstruction]) -> _Work:
    """Return the task of a row, or an inconclusive score if its suite is invalid."""
    try:
        return ScoringTask(row.text, parse_suite(row.test_suite), source, cached)
    except TestSuiteError as error:
        return Score(None, None, None, (), str(error)), ScoringReport(invalid_suites=1)


def _store(conn: sa.Connection, row: Any, score: Score, orchestra: Orchestra) -> None:
    """Store a score, unless the row changed since it was read: then the next pass scores it.

    A retry that is inconclusive again keeps `scored_at`: the data of its day did not change, so the day need
    not be filtered again.
    """
    r, timestamp = t.requirements, now(conn)
    stored = conn.execute(
        r.update()
        .where(r.c.id == row.id, row_version() == row.row_version)
        .values(
            test_pass_rate=score.test_pass_rate,
            implementation_variance=score.implementation_variance,
            api_compatibility=score.api_compatibility,
            judge_version=JUDGE_VERSION,
            orchestra=orchestra.digest,
            evidence=_evidence(score, row.evidence, timestamp),
            scored_at=(
                timestamp if score.test_pass_rate is not None else sa.func.coalesce(r.c.scored_at, timestamp)
            ),
        )
    )
    if stored.rowcount == 0:
        return
    rc, names = t.reconstructions, [member.reconstructor for member in score.members]
    conn.execute(rc.delete().where(rc.c.requirement_id == row.id, rc.c.reconstructor.not_in(names)))
    for member in score.members:
        values = {
            "implementation_code": member.implementation,
            "test_pass_rate": member.test_pass_rate,
            "results": list(member.results),
            "status": member.status,
            "reason": member.detail or None,
            "duration_ms": member.duration_ms,
            "judge_version": JUDGE_VERSION,
        }
        statement = insert(rc).values(requirement_id=row.id, reconstructor=member.reconstructor, **values)
        conn.execute(
            statement.on_conflict_do_update(index_elements=["requirement_id", "reconstructor"], set_=values)
        )


def _evidence(score: Score, previous: Mapping[str, Any] | None, timestamp: datetime) -> dict[str, Any] | None:
    """Return why a score is inconclusive and, if members were missing, how often it was tried."""
    if not score.reason:
        return None
    missing = sum(member.status == "missing" for member in score.members)
    if not missing:
        return {"reason": score.reason}
    return {
        "reason": score.reason,
        "missing": missing,
        "attempts": int((previous or {}).get("attempts", 0)) + 1,
        "tried_at": timestamp.isoformat(),
    }

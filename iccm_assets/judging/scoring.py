"""Scores: does a requirements text let others rebuild the code? (SPEC section 0, O1, J2)

`score_texts` asks every member of the orchestra for a re-implementation, runs the original's test
suite on each in the sandbox, and aggregates. `score_pending` does so for the stored requirements that
have a suite and no score yet, in batches of one transaction each, so that it can be resumed; several may
work at once (pending.py).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime
from statistics import fmean, pvariance
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.capture.extraction import has_statements, source_of
from iccm_assets.errors import SuiteError
from iccm_assets.judging.alarm import alert_without_sandbox
from iccm_assets.judging.api import api_compatibility
from iccm_assets.judging.judge import JUDGE_VERSION, JudgeResult, judge_many
from iccm_assets.judging.orchestra import Orchestra, Question, Reconstruction
from iccm_assets.judging.pending import Claims, claiming, count, pending, row_version
from iccm_assets.judging.suites import Suite, load_suite
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

BATCH = 24


@dataclass(frozen=True)
class ScoringTask:
    """A requirements text to be scored with a suite; the source is only read for its signatures.

    ``known`` holds what members have answered to it before, by name: they are judged, not asked again.
    """

    requirements: str
    suite: Suite
    source_code: str | None = None
    known: Mapping[str, Reconstruction] = field(default_factory=dict)


@dataclass(frozen=True)
class MemberScore:
    """One re-implementation, tested. `test_pass_rate` is None when it is no evidence."""

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
    """The orchestra's score of one requirements text; None = inconclusive, and `reason` says why."""

    test_pass_rate: float | None
    implementation_variance: float | None
    api_compatibility: float | None
    members: tuple[MemberScore, ...]
    reason: str = ""


def aggregate(members: Sequence[MemberScore], quorum: int) -> Score:
    """Mean and population variance of the members' pass rates; inconclusive below the quorum."""
    rates = [member.test_pass_rate for member in members if member.test_pass_rate is not None]
    if len(rates) < quorum:
        lacking = "; ".join(
            f"{member.reconstructor}: {member.status} {member.detail}".strip()
            for member in members
            if member.test_pass_rate is None
        )
        reason = f"{len(rates)} of {len(members)} members gave a score, the quorum is {quorum} ({lacking})"
        return Score(None, None, None, tuple(members), reason)
    compatible = [one.api_compatibility for one in members if one.api_compatibility is not None]
    return Score(
        test_pass_rate=fmean(rates),
        implementation_variance=pvariance(rates),
        api_compatibility=fmean(compatible) if compatible else None,
        members=tuple(members),
    )


def score_texts(tasks: Iterable[ScoringTask], orchestra: Orchestra, settings: Settings) -> Iterator[Score]:
    """One score per task, in order. Runs `settings.judge.workers` sandboxes at a time.

    Waiting for endpoints and judging overlap: the judge takes answers as they come, in order. Tasks are
    taken only when there is somebody to work on them.
    """
    scoring: deque[_Scoring] = deque()
    asked: deque[ScoringTask] = deque()

    def questions() -> Iterator[Question]:
        for task in tasks:
            asked.append(task)
            yield Question(task.requirements, task.known)

    def work() -> Generator[tuple[str, Suite], None, None]:
        for answers in orchestra.ask(questions()):
            task = asked.popleft()
            scoring.append(_Scoring(task, answers))
            yield from ((one.implementation, task.suite) for one in answers if one.status == "answered")

    with closing(work()) as answered:
        for verdict in judge_many(answered, settings):
            next(one for one in scoring if not one.complete).verdicts.append(verdict)
            while scoring and scoring[0].complete:
                yield scoring.popleft().score(orchestra.quorum)
    for left in scoring:
        yield left.score(orchestra.quorum)


@dataclass(frozen=True)
class _Scoring:
    """A task whose members have answered, and the verdicts there are so far, in their order."""

    task: ScoringTask
    answers: Sequence[Reconstruction]
    verdicts: list[JudgeResult] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.verdicts) == sum(one.status == "answered" for one in self.answers)

    def score(self, quorum: int) -> Score:
        verdicts = iter(self.verdicts)
        members = [
            _tested(one, next(verdicts), self.task) if one.status == "answered" else _untested(one, self.task)
            for one in self.answers
        ]
        return aggregate(members, quorum)


def _tested(one: Reconstruction, verdict: JudgeResult, task: ScoringTask) -> MemberScore:
    """A suspect implementation is no evidence either way: it is kept out, and seen by a person."""
    doubtful = verdict.suspect or verdict.test_pass_rate is None
    status = "suspect" if verdict.suspect else "inconclusive" if doubtful else "scored"
    compatibility = api_compatibility(task.source_code, one.implementation) if task.source_code else None
    return MemberScore(
        reconstructor=one.reconstructor,
        status=status,
        implementation=one.implementation,
        test_pass_rate=None if doubtful else verdict.test_pass_rate,
        results=tuple(
            {"case": case.case, "verdict": case.verdict, "detail": case.detail} for case in verdict.results
        ),
        api_compatibility=compatibility,
        duration_ms=verdict.duration_ms,
        detail=verdict.reason,
    )


def _untested(one: Reconstruction, task: ScoringTask) -> MemberScore:
    """Unreadable requirements rebuild nothing and score 0; a missing member is missing."""
    unreadable = one.status == "unreadable"
    planned = len(task.suite.cases) if unreadable else 0
    return MemberScore(
        reconstructor=one.reconstructor,
        status=one.status,
        implementation="",
        test_pass_rate=0.0 if unreadable else None,
        results=tuple({"case": n, "verdict": "not_run", "detail": one.detail} for n in range(planned)),
        api_compatibility=0.0 if unreadable and task.source_code else None,
        duration_ms=0.0,
        detail=one.detail,
    )


# What a stored status says about the member: these gave an answer, whatever the judge made of it.
ANSWERED = ("scored", "suspect", "inconclusive")


@dataclass(frozen=True)
class Unasked:
    """What nobody is asked about, and why: an answer that says nothing, or (no task) a broken suite."""

    task: ScoringTask | None
    reason: str

    def score(self, orchestra: Orchestra) -> Score:
        """0 of every member for an answer without a statement (R11); inconclusive for a broken suite."""
        if self.task is None:
            return Score(None, None, None, (), self.reason)
        silent = [Reconstruction(one.name, "unreadable", detail=self.reason) for one in orchestra.members]
        return aggregate([_untested(one, self.task) for one in silent], orchestra.quorum)


@dataclass(frozen=True)
class ScoringReport:
    """What one pass over the unscored requirements did.

    ``answers`` counts members x texts by what came of them: answered, unreadable, missing. Texts with a
    broken suite are in none of them, for nobody was asked. ``rows`` were found to be scored; another scorer
    may have been at some of them, or time was up. ``reused`` ones have the score that the same text of
    the same session had already.
    """

    scored: int = 0
    inconclusive: int = 0
    bad_suites: int = 0
    rates: tuple[float, ...] = ()
    answers: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    reused: int = 0

    @property
    def done(self) -> int:
        """Rows that have been dealt with."""
        return self.scored + self.inconclusive + self.bad_suites

    def __add__(self, other: ScoringReport) -> ScoringReport:
        return ScoringReport(
            self.scored + other.scored,
            self.inconclusive + other.inconclusive,
            self.bad_suites + other.bad_suites,
            self.rates + other.rates,
            self.answers + other.answers,
            self.rows + other.rows,
            self.reused + other.reused,
        )


def report_of(score: Score) -> ScoringReport:
    """One score, counted."""
    answers = Counter("answered" if member.status in ANSWERED else member.status for member in score.members)
    if score.test_pass_rate is None:
        return ScoringReport(inconclusive=1, answers=answers)
    return ScoringReport(scored=1, rates=rates_of(score), answers=answers)


def rates_of(score: Score) -> tuple[float, ...]:
    """Its pass rate, if it has one."""
    return () if score.test_pass_rate is None else (score.test_pass_rate,)


def count_pending(engine: sa.Engine, days: tuple[date, date] | None = None) -> int:
    """How many requirements rows `score_pending` would score, of conversations of the given days."""
    return count(engine, pending(days))


def score_pending(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    days: tuple[date, date] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ScoringReport:
    """Score what has a suite and no score yet; `days` = (first, last), inclusive, UTC.

    An inconclusive score leaves `test_pass_rate` null but is marked as tried (`scored_at`). One that lacked
    missing members is tried again: those are asked once more, who has answered is not. With `days` that
    is so every time; without, the second time at once and then at growing intervals (pending.py), so
    that a text no endpoint answers is not paid for every few minutes. For an inconclusive score of any
    other cause clear `scored_at` to have it tried again.

    Whatever ends the pass, what was scored until then is stored. What another scorer is at is left to it.
    """
    return score_rows(engine, pending(days), orchestra, settings, progress=progress)


def score_rows(
    engine: sa.Engine,
    query: sa.Select[Any],
    orchestra: Orchestra,
    settings: Settings,
    *,
    until: float = math.inf,
    progress: Callable[[int], None] = lambda done: None,
) -> ScoringReport:
    """One pass over the rows of a query of pending.py, in its order, as `score_pending` says.

    No text is begun after `until` (on `time.monotonic`); what is under way then is finished and stored.
    """
    with engine.connect() as conn:
        rows = conn.execute(query).all()
        known = _known(conn, [row.id for row in rows if row.orchestra == orchestra.digest])
        alike = _scored_alike(conn, [row.id for row in rows], orchestra)
    with claiming(engine) as claims:
        work = _Pass(engine, claims, orchestra, settings, until, progress)
        try:
            work.run(_tasks(rows, known, alike))
        finally:
            work.store()
    return work.report + ScoringReport(rows=len(rows))


class _Pass:
    """One pass: rows are claimed when their text's turn comes, and let go of when their score is stored."""

    def __init__(
        self,
        engine: sa.Engine,
        claims: Claims,
        orchestra: Orchestra,
        settings: Settings,
        until: float,
        progress: Callable[[int], None],
    ) -> None:
        self.report = ScoringReport()
        self._engine, self._claims, self._orchestra, self._settings = engine, claims, orchestra, settings
        self._until, self._progress = until, progress
        self._asked: deque[list[Any]] = deque()
        self._scored: list[tuple[Any, Score]] = []

    def run(self, groups: Iterable[tuple[list[Any], ScoringTask | Unasked | Score]]) -> None:
        """Score the groups of alike rows, in their order."""
        for score in score_texts(self._to_ask(groups), self._orchestra, self._settings):
            self._done(self._asked.popleft(), score, report_of(score))

    def store(self) -> None:
        """Write the scores there are, in one transaction."""
        scored, self._scored = self._scored, []
        if not scored:
            return
        with self._engine.begin() as conn:
            for row, score in sorted(scored, key=lambda one: one[0].id):
                _store(conn, row, score, self._orchestra)
            alert_without_sandbox(conn, (member for _, score in scored for member in score.members))
        self._claims.release([row for row, _ in scored])
        self._progress(len(scored))

    def _to_ask(
        self, groups: Iterable[tuple[list[Any], ScoringTask | Unasked | Score]]
    ) -> Iterator[ScoringTask]:
        for rows, found in groups:
            if time.monotonic() >= self._until:
                return
            taken = self._claims.take(rows)
            if not taken:
                continue
            if isinstance(found, Unasked):
                self._unasked(taken, found)
                continue
            if isinstance(found, Score):
                self._done(taken, found, ScoringReport(scored=1, rates=rates_of(found), reused=1))
                continue
            self._asked.append(taken)
            yield found

    def _unasked(self, rows: Sequence[Any], found: Unasked) -> None:
        one = report_of(found.score(self._orchestra)) if found.task else ScoringReport(bad_suites=1)
        self._done(rows, found.score(self._orchestra), one)

    def _done(self, rows: Sequence[Any], score: Score, one: ScoringReport) -> None:
        self._scored += [(row, score) for row in rows]
        for _ in rows:
            self.report += one
        if len(self._scored) >= BATCH:
            self.store()


def _known(conn: sa.Connection, requirement_ids: Sequence[int]) -> dict[int, dict[str, Reconstruction]]:
    """What the members of the same orchestra have answered before, by requirements text and name."""
    rc = t.reconstructions.c
    rows = conn.execute(
        sa.select(rc.requirement_id, rc.reconstructor, rc.status, rc.implementation_code, rc.reason).where(
            rc.requirement_id.in_(requirement_ids), rc.status != "missing"
        )
    )
    found: dict[int, dict[str, Reconstruction]] = {}
    for row in rows:
        if row.status in ANSWERED:
            answer = Reconstruction(row.reconstructor, "answered", row.implementation_code)
        else:
            answer = Reconstruction(row.reconstructor, "unreadable", detail=row.reason or "")
        found.setdefault(row.requirement_id, {})[row.reconstructor] = answer
    return found


_ALIKE = sa.text(
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


def _scored_alike(conn: sa.Connection, ids: Sequence[int], orchestra: Orchestra) -> dict[int, Score]:
    """Scores that the same text, source and suite of the same session has, by this orchestra and judge."""
    values = {"ids": list(ids), "orchestra": orchestra.digest, "judge": JUDGE_VERSION}
    found = conn.execute(_ALIKE, values).all()
    rc = t.reconstructions.c
    query = sa.select(t.reconstructions).where(rc.requirement_id.in_([row.id for row in found]))
    members: dict[int, list[MemberScore]] = {}
    for one in conn.execute(query.order_by(rc.id)):
        members.setdefault(one.requirement_id, []).append(
            MemberScore(
                reconstructor=one.reconstructor,
                status=one.status,
                implementation=one.implementation_code or "",
                test_pass_rate=one.test_pass_rate,
                results=tuple(one.results),
                api_compatibility=None,
                duration_ms=one.duration_ms or 0.0,
                detail=one.reason or "",
            )
        )
    return {
        row.pending: Score(
            row.test_pass_rate, row.implementation_variance, row.api_compatibility, tuple(members[row.id])
        )
        for row in found
        if row.id in members
    }


def _tasks(
    rows: Sequence[Any], known: Mapping[int, Mapping[str, Reconstruction]], scored: Mapping[int, Score]
) -> Iterator[tuple[list[Any], ScoringTask | Unasked | Score]]:
    """Rows of one text, suite and source, with what to do about them, in the order of the first of each.

    An answer accepted as it was is two such rows: it is scored once, also when one has its score already.
    """
    groups: dict[tuple[Any, ...], tuple[list[Any], ScoringTask | Unasked | Score]] = {}
    for row in rows:
        if row.id in scored:
            groups[row.id, "reused"] = ([row], scored[row.id])
            continue
        source, answers = source_of(row.content, row.metadata), known.get(row.id, {})
        alike = (row.text, json.dumps(row.test_suite, sort_keys=True), source)
        key = (row.id,) if answers else (row.kind == "model" and not has_statements(row.text), *alike)
        if key not in groups:
            groups[key] = ([], _task(row, source, answers))
        groups[key][0].append(row)
    yield from groups.values()


def _task(row: Any, source: str | None, answers: Mapping[str, Reconstruction]) -> ScoringTask | Unasked:
    try:
        suite = load_suite(row.test_suite)
    except SuiteError as error:
        return Unasked(None, str(error))
    task = ScoringTask(row.text, suite, source, answers)
    if row.kind == "model" and not has_statements(row.text):
        return Unasked(task, "the answer is empty" if not row.text.strip() else "no statement in the answer")
    return task


def _store(conn: sa.Connection, row: Any, score: Score, orchestra: Orchestra) -> None:
    """Write a score, unless the row was changed while it was scored: then it waits for the next pass.

    Another attempt that is inconclusive again leaves `scored_at` as it was: the day it belongs to has not
    changed, and need not be filtered again (P6).
    """
    r, moment = t.requirements, now(conn)
    stored = conn.execute(
        r.update()
        .where(r.c.id == row.id, row_version() == row.row_version)
        .values(
            test_pass_rate=score.test_pass_rate,
            implementation_variance=score.implementation_variance,
            api_compatibility=score.api_compatibility,
            judge_version=JUDGE_VERSION,
            orchestra=orchestra.digest,
            evidence=_evidence(score, row.evidence, moment),
            scored_at=moment if score.test_pass_rate is not None else sa.func.coalesce(r.c.scored_at, moment),
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


def _evidence(score: Score, before: Mapping[str, Any] | None, moment: datetime) -> dict[str, Any] | None:
    """Why a score is inconclusive, and how often it was tried for want of members."""
    if not score.reason:
        return None
    missing = sum(member.status == "missing" for member in score.members)
    if not missing:
        return {"reason": score.reason}
    attempts = int((before or {}).get("attempts", 0)) + 1
    return {"reason": score.reason, "missing": missing, "attempts": attempts, "tried_at": moment.isoformat()}

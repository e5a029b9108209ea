"""Scores: does a requirements text let others rebuild the code? (SPEC section 0, O1, J2)

`score_texts` asks every member of the orchestra for a re-implementation, runs the original's test
suite on each in the sandbox, and aggregates. `score_pending` does so for the stored requirements that
have a suite and no score yet, in batches of one transaction each, so that it can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from statistics import fmean, pvariance
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.capture.extraction import source_of
from iccm_assets.errors import SuiteError
from iccm_assets.judging.api import api_compatibility
from iccm_assets.judging.judge import JUDGE_VERSION, JudgeResult, judge_many
from iccm_assets.judging.orchestra import Orchestra, Reconstruction
from iccm_assets.judging.suites import Suite, load_suite
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

BATCH = 24


@dataclass(frozen=True)
class ScoringTask:
    """A requirements text to be scored with a suite; the source is only read for its signatures."""

    requirements: str
    suite: Suite
    source_code: str | None = None


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


def score_texts(tasks: Sequence[ScoringTask], orchestra: Orchestra, settings: Settings) -> Iterator[Score]:
    """One score per task, in order. Runs `settings.judge.workers` sandboxes at a time."""
    reconstructed = [orchestra.reconstruct(task.requirements) for task in tasks]
    work = [
        (one.implementation, task.suite)
        for task, answers in zip(tasks, reconstructed, strict=True)
        for one in answers
        if one.status == "answered"
    ]
    verdicts = judge_many(work, settings)
    for task, answers in zip(tasks, reconstructed, strict=True):
        members = [
            _tested(one, next(verdicts), task) if one.status == "answered" else _untested(one, task)
            for one in answers
        ]
        yield aggregate(members, orchestra.quorum)


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


@dataclass(frozen=True)
class ScoringReport:
    """What one pass over the unscored requirements did."""

    scored: int = 0
    inconclusive: int = 0
    bad_suites: int = 0
    rates: tuple[float, ...] = ()

    def __add__(self, other: ScoringReport) -> ScoringReport:
        return ScoringReport(
            self.scored + other.scored,
            self.inconclusive + other.inconclusive,
            self.bad_suites + other.bad_suites,
            self.rates + other.rates,
        )


def count_pending(engine: sa.Engine, days: tuple[date, date] | None = None) -> int:
    """Requirements rows that have a suite and no score yet, of conversations of the given days."""
    with engine.connect() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(_pending(days).subquery())).scalar_one()


def score_pending(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    days: tuple[date, date] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ScoringReport:
    """Score what has a suite and no score yet; `days` = (first, last), inclusive, UTC.

    An inconclusive score leaves `test_pass_rate` null but is marked as tried (`scored_at`); clear
    `scored_at` to have it tried again.
    """
    with engine.connect() as conn:
        rows = conn.execute(_pending(days)).all()
    report = ScoringReport()
    for batch in _batched(rows, BATCH):
        report += _score_batch(engine, batch, orchestra, settings)
        progress(len(batch))
    return report


def _batched(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _pending(days: tuple[date, date] | None) -> sa.Select[Any]:
    r, c = t.requirements, t.conversations
    query = (
        sa.select(_row_version(), r.c.id, r.c.text, r.c.test_suite, c.c.content, c.c.metadata)
        .join(c, c.c.id == r.c.conversation_id)
        .where(r.c.scored_at.is_(None), r.c.test_suite.is_not(None), c.c.erased_at.is_(None))
        .order_by(r.c.id)
    )
    if days is not None:
        first = datetime.combine(days[0], time(), UTC)
        last = datetime.combine(days[1] + timedelta(days=1), time(), UTC)
        query = query.where(c.c.timestamp >= first, c.c.timestamp < last)
    return query


def _row_version() -> sa.Label[str]:
    """Changes with every update of a requirements row: what was read is what gets the score."""
    return sa.literal_column("requirements.xmin::text", sa.Text).label("row_version")


def _score_batch(
    engine: sa.Engine, rows: Sequence[Any], orchestra: Orchestra, settings: Settings
) -> ScoringReport:
    tasks: dict[int, ScoringTask] = {}
    broken: dict[int, str] = {}
    versions = {row.id: row.row_version for row in rows}
    for row in rows:
        try:
            source = source_of(row.content, row.metadata)
            tasks[row.id] = ScoringTask(row.text, load_suite(row.test_suite), source)
        except SuiteError as error:
            broken[row.id] = str(error)
    scores = dict(zip(tasks, score_texts(list(tasks.values()), orchestra, settings), strict=True))
    found = {**scores, **{one: Score(None, None, None, (), reason) for one, reason in broken.items()}}
    with engine.begin() as conn:
        for requirement_id, score in found.items():
            _store(conn, requirement_id, versions[requirement_id], score, orchestra)
    rates = tuple(score.test_pass_rate for score in scores.values() if score.test_pass_rate is not None)
    return ScoringReport(len(rates), len(scores) - len(rates), len(broken), rates)


def _store(
    conn: sa.Connection, requirement_id: int, row_version: str, score: Score, orchestra: Orchestra
) -> None:
    """Write a score, unless the row was changed while it was scored: then it waits for the next pass."""
    r = t.requirements
    stored = conn.execute(
        r.update()
        .where(r.c.id == requirement_id, _row_version() == row_version)
        .values(
            test_pass_rate=score.test_pass_rate,
            implementation_variance=score.implementation_variance,
            api_compatibility=score.api_compatibility,
            judge_version=JUDGE_VERSION,
            orchestra=orchestra.digest,
            evidence={"reason": score.reason} if score.reason else None,
            scored_at=now(conn),
        )
    )
    if stored.rowcount == 0:
        return
    for member in score.members:
        values = {
            "implementation_code": member.implementation,
            "test_pass_rate": member.test_pass_rate,
            "results": list(member.results),
            "status": member.status,
            "reason": member.detail or None,
            "duration_ms": member.duration_ms,
        }
        statement = insert(t.reconstructions).values(
            requirement_id=requirement_id, reconstructor=member.reconstructor, **values
        )
        conn.execute(
            statement.on_conflict_do_update(index_elements=["requirement_id", "reconstructor"], set_=values)
        )

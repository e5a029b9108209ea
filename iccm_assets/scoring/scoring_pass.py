"""Scoring of stored requirements: those that have a suite and no score yet.

A pass commits in batches, so that it can be resumed, and passes can run concurrently (scoring_queue.py).
No text is scored on a suite that was not measured (suite_measurements.py).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date
from operator import add
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.extraction import find_source
from iccm_assets.errors import MissingPackageError, SandboxUnavailableError, TestSuiteError
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.reconstruction import Reconstruction
from iccm_assets.scoring.sandbox_alert import alert_sandbox_missing
from iccm_assets.scoring.scoring import (
    LENGTH_STOPPED,
    SOURCE_TRUNCATED,
    ReconstructionScore,
    Score,
    ScoringTask,
    score_texts,
)
from iccm_assets.scoring.scoring_queue import RowClaims, claim_rows, unscored_requirements
from iccm_assets.scoring.stored_scores import (
    ANSWERED,
    load_answers,
    load_reusable_scores,
    store_score,
)
from iccm_assets.scoring.suite_measurements import (
    Measurement,
    MeasurementRequest,
    SuiteKey,
    SuiteMeasurements,
)
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import bind_environment
from iccm_assets.suites.test_suites import parse_suite

BATCH_SIZE = 24


@dataclass(frozen=True)
class ScoringReport:
    """The result of one pass over the unscored requirements, in rows.

    ``answers`` counts members x texts by outcome: answered, unreadable, missing; texts with an invalid suite
    (``invalid_suites``) are not among them. ``selected_rows`` includes rows that another scorer claimed or
    that the time did not suffice for. ``reused`` rows got the score that the same text of the same session
    already had. ``unusable_suites`` counts the inconclusive rows whose suite is no evidence, by its status:
    weak, mismatch, none, no_source (nothing to measure it on), unmeasured (no sandbox), truncated (the model
    did not read the whole source).
    """

    scored: int = 0
    inconclusive: int = 0
    invalid_suites: int = 0
    rates: tuple[float, ...] = ()
    answers: Counter[str] = field(default_factory=Counter)
    selected_rows: int = 0
    reused: int = 0
    unusable_suites: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: ScoringReport) -> ScoringReport:
        return ScoringReport(*map(add, vars(self).values(), vars(other).values()))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, to pass it between processes; `from_dict` is the inverse."""
        return {**vars(self), "rates": list(self.rates)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoringReport:
        """The report of these JSON values; what else is among them is ignored."""
        values = {field.name: values[field.name] for field in fields(cls)}
        counters = {name: Counter(values[name]) for name in ("answers", "unusable_suites")}
        return cls(**{**values, "rates": tuple(values["rates"]), **counters})

    def counts(self) -> dict[str, int]:
        """Return counts for display, which add up in two ways.

        texts = texts_scored + texts_inconclusive + texts_with_invalid_suite + texts_skipped, and
        texts = texts_sent + texts_reused + texts_with_unusable_suite + texts_with_invalid_suite
        + texts_skipped. Each text sent has one response of every member, whatever its outcome.
        """
        unusable = self.unusable_suites.total()
        stored = self.scored + self.inconclusive + self.invalid_suites
        outcomes = ("answered", "unreadable", "missing")
        return {
            "texts": self.selected_rows,
            "texts_skipped": self.selected_rows - stored,
            "texts_with_invalid_suite": self.invalid_suites,
            "texts_with_unusable_suite": unusable,
            "texts_reused": self.reused,
            "texts_sent": stored - self.invalid_suites - unusable - self.reused,
            **{f"responses_{outcome}": self.answers[outcome] for outcome in outcomes},
            "texts_scored": self.scored,
            "texts_inconclusive": self.inconclusive,
        }


def _report(score: Score) -> ScoringReport:
    rates = () if score.test_pass_rate is None else (score.test_pass_rate,)
    answers = Counter("answered" if member.status in ANSWERED else member.status for member in score.members)
    return ScoringReport(scored=len(rates), inconclusive=1 - len(rates), rates=rates, answers=answers)


@dataclass(frozen=True)
class _Group:
    """Rows of one text, suite and source: a task, or a score that needs no request and no measurement."""

    rows: list[Any]
    task: ScoringTask | None
    request: MeasurementRequest | None = None
    score: Score | None = None
    report: ScoringReport = ScoringReport()


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
    (scoring_queue.py), so that an unanswered text does not cost money every few minutes. So is a text whose
    suite could not be measured for lack of a sandbox. To retry an inconclusive score of another cause, clear
    `scored_at`.

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
        answers = load_answers(conn, [row.id for row in rows if row.orchestra == orchestra.digest])
        reusable = load_reusable_scores(conn, [row.id for row in rows], orchestra)
    groups = _group(rows, answers, reusable, settings)
    with claim_rows(engine) as claims:
        scoring_pass = _ScoringPass(engine, claims, orchestra, settings, deadline, progress)
        try:
            scoring_pass.run(groups)
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
        self._measurements = SuiteMeasurements(engine, settings)
        self._in_progress: deque[tuple[list[Any], dict[str, Any]]] = deque()
        self._scored: list[tuple[Any, Score]] = []

    def run(self, groups: Sequence[_Group]) -> None:
        """Score the groups of identical rows, in their order."""
        self._measurements.load(group.request.key for group in groups if group.request is not None)
        for score in score_texts(self._tasks(groups), self._orchestra, self._settings):
            rows, suite = self._in_progress.popleft()
            self._add(rows, replace(score, suite=suite), _report(score))

    def store(self) -> None:
        """Store the scores so far, in one transaction."""
        scored, self._scored = self._scored, []
        if not scored:
            return
        with self._engine.begin() as conn:
            for row, score in sorted(scored, key=lambda pair: pair[0].id):
                store_score(conn, row, score, self._orchestra)
            alert_sandbox_missing(conn, [score for _, score in scored])
        self._claims.release({row.id for row, _ in scored})
        self._progress(len(scored))

    def _tasks(self, groups: Iterable[_Group]) -> Iterator[ScoringTask]:
        claimed = ((group, group.request) for group in self._claimed(groups))
        for group, measured in self._measurements.measure_ahead(claimed):
            if time.monotonic() >= self._deadline:
                return
            if group.score is not None:
                self._add(group.rows, group.score, group.report)
            elif (score := _reject_suite(measured, self._orchestra)) is not None:
                status = score.suite.get("suite", "unmeasured")
                report = ScoringReport(inconclusive=1, unusable_suites=Counter([status]))
                self._add(group.rows, score, report)
            elif group.task is not None:
                environment = group.task.suite.environment
                self._in_progress.append((group.rows, _describe_suite(measured, environment)))
                yield group.task

    def _claimed(self, groups: Iterable[_Group]) -> Iterator[_Group]:
        for group in groups:
            if time.monotonic() >= self._deadline:
                return
            if rows := self._claims.acquire(group.rows):
                yield replace(group, rows=rows)

    def _add(self, rows: Sequence[Any], score: Score, report: ScoringReport) -> None:
        self._scored += [(row, score) for row in rows]
        self.report = sum([report] * len(rows), self.report)
        if len(self._scored) >= BATCH_SIZE:
            self.store()


def _describe_suite(measured: Measurement | None, environment: str | None = None) -> dict[str, Any]:
    """Return what a stored score says about its suite, and the digest of the environment it ran in."""
    if measured is None or isinstance(measured, SandboxUnavailableError):
        return {}
    strength = {} if measured.strength is None else {"strength": round(measured.strength, 4)}
    return {"suite": measured.status, **strength, **({"environment": environment} if environment else {})}


def _reject_suite(measured: Measurement | None, orchestra: Orchestra) -> Score | None:
    """Return an inconclusive score if the suite is no evidence; None if it is usable."""
    if isinstance(measured, SandboxUnavailableError):
        # As if the members had been missing: then the text is retried, and each gets its request.
        members = tuple(
            ReconstructionScore(member.name, "missing", "", None, (), None, 0.0, "not called")
            for member in orchestra.members
        )
        return Score(None, None, None, members, measured.detail, unmeasured=measured.detail)
    if measured is None or measured.status == "usable":
        return None
    reason = f"the test suite is {measured.status}: {measured.reason}"
    return Score(None, None, None, (), reason, _describe_suite(measured))


def _group(
    rows: Sequence[Any],
    answers: Mapping[int, Mapping[str, Reconstruction]],
    reusable: Mapping[int, Score],
    settings: Settings,
) -> list[_Group]:
    """Group rows of one text, suite and source, in the order of the first of each, so it is scored once.

    An answer that the developer accepted unchanged is two such rows.
    """
    groups: dict[tuple[Any, ...], _Group] = {}
    for row in rows:
        cached = answers.get(row.id, {})
        score = reusable.get(row.id)
        planned = _plan(row, cached, settings)
        environment = planned.task.suite.environment if planned.task else ""
        is_cut = row.finish_reason not in (None, "stop")
        if score and not is_cut and score.suite.get("environment", "") == environment:
            report = replace(_report(score), answers=Counter(), reused=1)
            groups[row.id, "reused"] = _Group([row], None, score=score, report=report)
            continue
        suite = json.dumps(row.test_suite, sort_keys=True)
        key = (row.id,) if cached or is_cut else (row.text, suite, row.test_suite_origin, row.source_sha256)
        if key in groups:
            groups[key].rows.append(row)
        else:
            groups[key] = planned
    return list(groups.values())


def _plan(row: Any, cached: Mapping[str, Reconstruction], settings: Settings) -> _Group:
    """Return the task of a row, or an inconclusive score.

    Inconclusive is a row whose suite is invalid, whose source is unknown or was not read to its end.
    """
    try:
        suite = parse_suite(row.test_suite)
    except TestSuiteError as error:
        score = Score(None, None, None, (), str(error), {"suite": "invalid"})
        return _Group([row], None, score=score, report=ScoringReport(invalid_suites=1))
    if row.finish_reason == "truncated":
        score = Score(None, None, None, (), SOURCE_TRUNCATED, {"answer": "truncated"})
        report = ScoringReport(inconclusive=1, unusable_suites=Counter(truncated=1))
        return _Group([row], None, score=score, report=report)
    source = find_source(row.content, row.metadata, row.source_sha256)
    if source is None:
        reason = "the source of this text is unknown: its test suite cannot be measured"
        score = Score(None, None, None, (), reason, {"suite": "none"})
        report = ScoringReport(inconclusive=1, unusable_suites=Counter(no_source=1))
        return _Group([row], None, score=score, report=report)
    with suppress(MissingPackageError, SandboxUnavailableError):  # measuring the suite says so, too
        suite, _ = bind_environment(source, suite, settings)
    origin = row.test_suite_origin or "attached"
    key = SuiteKey(row.source_sha256, suite.digest, origin, suite.environment or "")
    request = MeasurementRequest(row.id, key, source, suite, row.test_suite)
    rejection = LENGTH_STOPPED if row.finish_reason == "length" else ""
    return _Group([row], ScoringTask(row.text, suite, source, cached, rejection), request)

"""Recorded suites: what was captured without tests gets a suite from its own source, before it is scored.

A source is recorded once for each version of the generator; the result is stored, also where there is none,
with its reason. Concurrent passes may record the same source; the first stored result counts. (D1, D7)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.extraction import find_source
from iccm_assets.capture.messages import parse_messages
from iccm_assets.db.clock import now, start_of_day
from iccm_assets.errors import MissingPackageError, SandboxUnavailableError, TestSuiteError
from iccm_assets.scoring.suite_measurements import SuiteKey, store_measurement
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_recording import SuiteRecording, record_suite
from iccm_assets.suites.suite_runner import bind_environment
from iccm_assets.suites.suite_strength import GENERATOR_VERSION, SuiteMeasurement, measure_suite
from iccm_assets.suites.test_suites import parse_suite

MAX_REASONS = 20  # of a day
MAX_TEXT_CHARACTERS = 100_000  # of the turns that may hold examples of calls


@dataclass(frozen=True)
class RecordingReport:
    """The result of one pass: sources by status of their suite, and texts that now have one.

    ``sources_unmeasured`` could not be recorded for lack of a sandbox, or of time; they are tried again.
    """

    sources: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    sources_unmeasured: int = 0

    def counts(self) -> dict[str, int]:
        """Return counts for display."""
        return {
            "sources_recorded": self.sources.total(),
            **{f"sources_{status}": count for status, count in sorted(self.sources.items())},
            "sources_unmeasured": self.sources_unmeasured,
            "texts_with_recorded_suite": self.texts,
        }


def record_missing_suites(
    engine: sa.Engine,
    settings: Settings,
    *,
    days: tuple[date, date] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> RecordingReport:
    """Record suites for the texts of completed conversations that have none, and give them to these texts.

    So it does for those with a collected suite that is no evidence. A conversation is complete once its
    requirements were accepted. ``days`` = (first, last) of the conversations, inclusive, UTC.
    """
    parameters = _parameters(days)
    _measure_collected(engine, settings, parameters)
    with engine.connect() as conn:
        texts = conn.execute(_COMPLETED, parameters).all()
    return _record_texts(engine, settings, texts, math.inf, progress)


def _measure_collected(engine: sa.Engine, settings: Settings, parameters: dict[str, Any]) -> None:
    """Measure collected suites, so that the source of one that is no evidence gets a recorded one."""
    with engine.connect() as conn:
        rows = conn.execute(_UNMEASURED, parameters).all()

    def measure(row: Any) -> tuple[SuiteKey, SuiteMeasurement] | None:
        source = find_source(row.content, row.metadata, row.source_sha256)
        if source is None:
            return None
        try:
            suite, _ = bind_environment(source, parse_suite(row.test_suite), settings)
            key = SuiteKey(row.source_sha256, suite.digest, "collected", suite.environment or "")
            return key, measure_suite(source, suite, settings, origin="collected")
        except (MissingPackageError, SandboxUnavailableError, TestSuiteError):
            return None  # scoring says so

    with ThreadPoolExecutor(settings.judge.workers, thread_name_prefix="suites") as pool:
        for row, result in zip(rows, pool.map(measure, rows), strict=True):
            if result is not None:
                with engine.begin() as conn:
                    store_measurement(conn, row.id, result[0], row.test_suite, result[1])


def record_live_suites(
    engine: sa.Engine, settings: Settings, *, deadline: float = math.inf
) -> RecordingReport:
    """Record suites for answers of the gateway that came without tests, for some sessions a day.

    Requests to the orchestra cost money: without a limit every request would be scored. No source is started
    after ``deadline`` (on `time.monotonic`).
    """
    with engine.connect() as conn:
        today = now(conn).date()
        parameters = _parameters((today - timedelta(days=1), today))
        scored = conn.execute(_SCORED_TODAY, {"start": start_of_day(today)}).scalar_one()
        limit = max(0, settings.scoring.recorded_sessions_per_day - scored)
        texts = conn.execute(_LIVE, {**parameters, "limit": limit}).all() if limit else []
    return _record_texts(engine, settings, texts, deadline, lambda count: None)


def _record_texts(
    engine: sa.Engine,
    settings: Settings,
    texts: Sequence[Any],
    deadline: float,
    progress: Callable[[int], None],
) -> RecordingReport:
    if not texts:
        return RecordingReport()
    pending = {row.source_sha256: row for row in reversed(texts)}
    with engine.connect() as conn:
        known = conn.execute(
            _KNOWN, {"sources": list(pending), "generator_version": GENERATOR_VERSION}
        ).scalars()
        missing = sorted((pending[source] for source in pending.keys() - set(known)), key=lambda row: row.id)
    statuses: Counter[str] = Counter()
    unmeasured = 0
    with ThreadPoolExecutor(settings.judge.workers, thread_name_prefix="suites") as pool:
        for row, recording in _record_all(engine, pool, missing, settings, deadline):
            if recording is None:
                unmeasured += 1
                continue
            _store(engine, row, recording)
            statuses[recording.measurement.status] += 1
            progress(statuses.total())
    with engine.begin() as conn:
        ids = [row.id for row in texts]
        attached = conn.execute(_ATTACH, {"ids": ids, "generator_version": GENERATOR_VERSION}).rowcount
    return RecordingReport(statuses, attached, unmeasured)


def _record_all(
    engine: sa.Engine, pool: ThreadPoolExecutor, pending: Sequence[Any], settings: Settings, deadline: float
) -> Iterator[tuple[Any, SuiteRecording | None]]:
    running: list[tuple[Any, Future[SuiteRecording | None]]] = []
    remaining = iter(pending)
    while True:
        while len(running) < 2 * settings.judge.workers and (row := next(remaining, None)) is not None:
            running.append((row, pool.submit(_record, engine, row, settings, deadline)))
        if not running:
            return
        row, future = running.pop(0)
        yield row, future.result()


def _record(engine: sa.Engine, row: Any, settings: Settings, deadline: float) -> SuiteRecording | None:
    if time.monotonic() >= deadline:
        return None
    with engine.connect() as conn:
        row_content = conn.execute(_CONTENT, {"id": row.id}).one_or_none()
    if row_content is None:
        return None
    source = find_source(row_content.content, row_content.metadata, row.source_sha256)
    if source is None:
        return None
    turns = [message.text for message in parse_messages(row_content.content)]
    try:
        return record_suite(source, settings, [text[:MAX_TEXT_CHARACTERS] for text in turns])
    except SandboxUnavailableError:
        return None


def _store(engine: sa.Engine, row: Any, recording: SuiteRecording) -> None:
    digest = "" if recording.document is None else parse_suite(recording.document).digest
    key = SuiteKey(row.source_sha256, digest, "recorded", recording.environment)
    with engine.begin() as conn:
        store_measurement(conn, row.id, key, recording.document, recording.measurement)


def _parameters(days: tuple[date, date] | None) -> dict[str, Any]:
    return {
        "start": start_of_day(days[0]) if days else None,
        "end": start_of_day(days[1] + timedelta(days=1)) if days else None,
        "generator_version": GENERATOR_VERSION,
    }


_WITHOUT_SUITE = """
    from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
    where r.source_sha256 is not null and c.erased_at is null
        and (r.test_suite is null or r.test_suite_origin = 'collected' and exists (
            select from iccm.test_suites s
            where s.source_sha256 = r.source_sha256 and s.origin = 'collected'
                and s.generator_version = :generator_version and s.suite = r.test_suite
                and s.status <> 'usable'))
        and (cast(:start as timestamptz) is null or c."timestamp" >= :start and c."timestamp" < :end)
"""
_COMPLETED = sa.text(
    f"""
    select r.id, r.source_sha256 {_WITHOUT_SUITE} and exists (
        select from iccm.requirements a where a.session_id = r.session_id and a.kind = 'accepted')
    order by r.id
    """
)
_UNMEASURED = sa.text(
    """
    select distinct on (r.source_sha256, r.test_suite::text)
        r.id, r.source_sha256, r.test_suite, c.content, c.metadata
    from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
    where r.test_suite_origin = 'collected' and r.source_sha256 is not null and c.erased_at is null
        and (cast(:start as timestamptz) is null or c."timestamp" >= :start and c."timestamp" < :end)
        and not exists (
            select from iccm.test_suites s
            where s.source_sha256 = r.source_sha256 and s.origin = 'collected'
                and s.generator_version = :generator_version and s.suite = r.test_suite)
    order by r.source_sha256, r.test_suite::text, r.id
    """
)
_RECORDED = "s.origin = 'recorded' and s.generator_version = :generator_version"
# The oldest first, so that the first answer of a session is the one that counts. What is known to have no
# usable suite does not count against the limit.
_LIVE = sa.text(
    f"""
    select id, source_sha256 from (
        select id, source_sha256, dense_rank() over (order by first_id) as place from (
            select r.id, r.source_sha256, min(r.id) over (partition by r.session_id) as first_id
            {_WITHOUT_SUITE} and r.kind = 'model' and not exists (
                select from iccm.test_suites s
                where s.source_sha256 = r.source_sha256 and {_RECORDED} and s.status <> 'usable')
        ) answers
    ) ranked where place <= :limit order by id
    """
)
_SCORED_TODAY = sa.text(
    """
    select count(distinct r.session_id)
    from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
    where r.kind = 'model' and r.test_suite_origin = 'recorded' and c."timestamp" >= :start
    """
)
_KNOWN = sa.text(
    f"select s.source_sha256 from iccm.test_suites s where s.source_sha256 = any(:sources) and {_RECORDED}"
)
_CONTENT = sa.text(
    """
    select c.content, c.metadata
    from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id
    where r.id = :id and c.erased_at is null
    """
)
_ATTACH = sa.text(
    f"""
    update iccm.requirements r
    set test_suite = s.suite, test_suite_origin = 'recorded', scored_at = null, evidence = null
    from iccm.test_suites s
    where r.id = any(:ids) and r.test_suite_origin is distinct from 'recorded'
        and s.source_sha256 = r.source_sha256 and {_RECORDED} and s.status = 'usable'
    """
)


@dataclass(frozen=True)
class DailySuites:
    """The sources of one day's conversations by origin and status of their suites.

    ``recorded`` and ``not_recorded`` came without tests. ``reasons`` says why sources without a usable suite
    have none; ``strengths`` are those of recorded suites.
    """

    sources: int
    by_origin: dict[str, int]
    recorded: int
    not_recorded: int
    without_usable: int
    strengths: list[float]
    reasons: list[dict[str, Any]]


def load_daily_suites(conn: sa.Connection, first: date, last: date) -> dict[str, DailySuites]:
    """Load the suites by ISO day; days without sources are missing."""
    days = {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))}
    groups: dict[str, list[Any]] = {}
    for row in conn.execute(_DAILY, {**days, "generator_version": GENERATOR_VERSION}):
        groups.setdefault(row.day.isoformat(), []).append(row)
    return {day: _summarize(rows) for day, rows in groups.items()}


def _summarize(rows: Sequence[Any]) -> DailySuites:
    origins = Counter(row.origin for row in rows if row.is_usable)
    reasons = Counter((row.origin, row.status, row.reason) for row in rows if not row.is_usable)
    return DailySuites(
        sources=len(rows),
        by_origin=dict(sorted(origins.items())),
        recorded=origins["recorded"],
        not_recorded=sum(row.origin == "recorded" and not row.is_usable for row in rows),
        without_usable=reasons.total(),
        strengths=[row.strength for row in rows if row.origin == "recorded" and row.strength is not None],
        reasons=[
            {"origin": origin, "status": status, "reason": reason, "sources": count}
            for (origin, status, reason), count in reasons.most_common(MAX_REASONS)
        ],
    )


# Of each source the suite that it has, or else what recording one gave. A suite counts as usable until it
# was measured. Numbers in reasons are left out, so that equal ones count together.
_DAILY = sa.text(
    """
    select distinct on (day, r.source_sha256) (c."timestamp" at time zone 'UTC')::date as day,
        coalesce(r.test_suite_origin, 'recorded') as origin, coalesce(s.status, 'unmeasured') as status,
        coalesce(s.status = 'usable', r.test_suite is not null) as is_usable, s.strength,
        coalesce(split_part(s.reason, ':', 1), 'not recorded yet') as reason
    from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id
    left join lateral (
        select s.status, s.strength, s.reason from iccm.test_suites s
        where s.source_sha256 = r.source_sha256 and s.generator_version = :generator_version
            and s.origin = coalesce(r.test_suite_origin, 'recorded')
            and (r.test_suite is null or s.suite = r.test_suite)
        order by s.id desc limit 1
    ) s on true
    where c."timestamp" >= :start and c."timestamp" < :end and c.erased_at is null
        and r.source_sha256 is not null
    order by day, r.source_sha256, r.test_suite is null, r.id
    """
)

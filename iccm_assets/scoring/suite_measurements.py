"""Measured suites: before a text is scored on a suite, the suite is measured on its source (C3b, D5).

A measurement is stored once per source, suite, origin and version of the generator. It is made in threads,
ahead of the texts that wait for it, so that it overlaps with requests and judging.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_strength import GENERATOR_VERSION, SuiteMeasurement, measure_suite
from iccm_assets.suites.test_suites import Suite

T = TypeVar("T")


@dataclass(frozen=True)
class SuiteKey:
    """What a stored measurement is found by."""

    source_sha256: str
    digest: str
    origin: str
    environment: str = ""  # the digest of the one it ran in (J5)


@dataclass(frozen=True)
class MeasurementRequest:
    """A suite to measure on its source, for the stored requirements text ``requirement_id``.

    The suite is bound to its environment.
    """

    requirement_id: int
    key: SuiteKey
    source_code: str
    suite: Suite
    document: object


# None: the suite could not be measured now; then the text tells nothing and is retried.
Measurement = SuiteMeasurement | SandboxUnavailableError


class SuiteMeasurements:
    """The measurements of one scoring pass; for use by one thread."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._known: dict[SuiteKey, SuiteMeasurement] = {}
        self._running: dict[SuiteKey, Future[SuiteMeasurement]] = {}

    def load(self, keys: Iterable[SuiteKey]) -> None:
        """Load the stored measurements of some suites."""
        with self._engine.connect() as conn:
            self._known |= _load(conn, list(keys))

    def measure_ahead(
        self, items: Iterable[tuple[T, MeasurementRequest | None]]
    ) -> Iterator[tuple[T, Measurement | None]]:
        """Yield each item with the measurement it requests, in order; None where it requests none.

        Some items are read ahead while the measurement of an earlier one runs.
        """
        workers = self._settings.judge.workers
        waiting: deque[tuple[T, MeasurementRequest | None]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="suites") as pool:
            try:
                for item, request in items:
                    self._start(pool, request)
                    waiting.append((item, request))
                    while waiting and (len(waiting) > 2 * workers or self._is_ready(waiting[0][1])):
                        yield self._finish(*waiting.popleft())
                while waiting:
                    yield self._finish(*waiting.popleft())
            finally:
                for future in self._running.values():
                    future.cancel()
                self._running.clear()

    def _start(self, pool: ThreadPoolExecutor, request: MeasurementRequest | None) -> None:
        if request is None or request.key in self._known or request.key in self._running:
            return
        self._running[request.key] = pool.submit(
            measure_suite, request.source_code, request.suite, self._settings, origin=request.key.origin
        )

    def _is_ready(self, request: MeasurementRequest | None) -> bool:
        return request is None or request.key in self._known or self._running[request.key].done()

    def _finish(self, item: T, request: MeasurementRequest | None) -> tuple[T, Measurement | None]:
        if request is None:
            return item, None
        if (measured := self._known.get(request.key)) is not None:
            return item, measured
        try:
            measured = self._running[request.key].result()
        except SandboxUnavailableError as error:
            return item, error
        # The stored one counts: a concurrent scorer may have measured the same suite.
        self._known[request.key] = self._store(request, measured)
        return item, self._known[request.key]

    def _store(self, request: MeasurementRequest, measured: SuiteMeasurement) -> SuiteMeasurement:
        with self._engine.begin() as conn:
            store_measurement(conn, request.requirement_id, request.key, request.document, measured)
            return _load(conn, [request.key]).get(request.key, measured)


def store_measurement(
    conn: sa.Connection, requirement_id: int, key: SuiteKey, document: object, measured: SuiteMeasurement
) -> None:
    """Store a measurement, unless there is one of this source and suite, or the text was erased."""
    values = {
        "source_sha256": key.source_sha256,
        "digest": key.digest,
        "origin": key.origin,
        "environment": key.environment or None,
        "generator_version": GENERATOR_VERSION,
        "requirement_id": requirement_id,
        "suite": document,
        "status": measured.status,
        "reason": measured.reason or None,
        "strength": measured.strength,
        "branch_coverage": measured.branch_coverage,
        "counted_mutants": measured.counted_mutants,
        "undecided_mutants": measured.undecided_mutants,
    }
    conn.execute(_STORE, values)


# An erasure deletes the text first: then nothing is stored, or it waits and deletes what is stored here.
_STORE = sa.text(
    """
    with used as (select id from iccm.requirements where id = :requirement_id for key share)
    insert into iccm.test_suites (source_sha256, digest, origin, environment, generator_version, suite,
        status, reason, strength, branch_coverage, counted_mutants, undecided_mutants)
    select :source_sha256, :digest, :origin, cast(:environment as text), :generator_version, :suite,
        :status, cast(:reason as text),
        cast(:strength as double precision), cast(:branch_coverage as double precision),
        cast(:counted_mutants as integer), cast(:undecided_mutants as integer)
    from used
    on conflict on constraint test_suites_measured_once do nothing
    """
).bindparams(sa.bindparam("suite", type_=JSONB(none_as_null=True)))
_LOAD = sa.text(
    """
    select s.source_sha256, s.digest, s.origin, s.environment, s.status, s.reason, s.strength,
        s.counted_mutants, s.undecided_mutants, s.branch_coverage
    from iccm.test_suites s
    join unnest(cast(:sources as text[]), cast(:digests as text[]), cast(:origins as text[]),
            cast(:environments as text[])) as k (source_sha256, digest, origin, environment)
        using (source_sha256, digest, origin)
    where s.generator_version = :generator_version and coalesce(s.environment, '') = k.environment
    """
)


def _load(conn: sa.Connection, keys: Sequence[SuiteKey]) -> dict[SuiteKey, SuiteMeasurement]:
    values = {
        "sources": [key.source_sha256 for key in keys],
        "digests": [key.digest for key in keys],
        "origins": [key.origin for key in keys],
        "environments": [key.environment for key in keys],
        "generator_version": GENERATOR_VERSION,
    }
    return {
        SuiteKey(row.source_sha256, row.digest, row.origin, row.environment or ""): SuiteMeasurement(
            status=row.status,
            reason=row.reason or "",
            strength=row.strength,
            counted_mutants=row.counted_mutants or 0,
            undecided_mutants=row.undecided_mutants or 0,
            branch_coverage=row.branch_coverage,
        )
        for row in conn.execute(_LOAD, values)
    }

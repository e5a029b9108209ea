"""Checks of the scores, and the rows that they and the daily assets read. (U4)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult, sample_ids
from iccm_assets.db.clock import now, start_of_day
from iccm_assets.scoring.suite_recordings import load_daily_suites
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class ScoreCounts:
    """Counts of texts with a suite, of some days' conversations; ``missing`` are ids without a score.

    ``inconclusive`` texts have a usable suite and no pass rate; the suite of an ``unusable`` one is no
    evidence.
    """

    with_suite: int
    scored: int
    inconclusive: int
    unusable: int
    missing: list[int]


def load_score_counts(conn: sa.Connection, first: date, last: date) -> ScoreCounts:
    """Count the texts of the conversations from day ``first`` to day ``last``."""
    row = conn.execute(
        sa.text(
            f"""
            select count(*), count(r.scored_at),
                count(r.scored_at) - count(r.test_pass_rate) - count(*) filter (where {_UNUSABLE}),
                count(*) filter (where {_UNUSABLE}),
                coalesce(array_agg(r.id order by r.id) filter (where r.scored_at is null), '{{}}')
            from iccm.conversations c join iccm.requirements r on r.session_id = c.session_id
            where c."timestamp" >= :start and c."timestamp" < :end and c.erased_at is null
                and r.test_suite is not null
            """
        ),
        {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))},
    ).one()
    return ScoreCounts(*row)


@dataclass(frozen=True)
class DailyScores:
    """The current scores of all texts with a suite, of one day's conversations.

    ``suites`` counts the texts by kind of evidence, origin and status of their suites.
    """

    texts: int
    scored: int
    inconclusive: int
    reconstructions: int
    mean_test_pass_rate: float | None
    mean_variance: float | None
    rates: list[float]
    suites: list[dict[str, Any]]


def load_daily_scores(conn: sa.Connection, first: date, last: date) -> dict[str, DailyScores]:
    """Load the scores by ISO day; days without such texts are missing."""
    days = {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))}
    suites: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in conn.execute(_SUITES, days).mappings():
        suites[row["day"].isoformat()].append({name: value for name, value in row.items() if name != "day"})
    rows = conn.execute(
        sa.text(
            """
            select (c."timestamp" at time zone 'UTC')::date as day, count(*), count(r.scored_at),
                count(r.scored_at) - count(r.test_pass_rate),
                sum((select count(*) from iccm.reconstructions x where x.requirement_id = r.id))::int,
                avg(r.test_pass_rate), avg(r.implementation_variance),
                coalesce(array_agg(r.test_pass_rate) filter (where r.test_pass_rate is not null), '{}')
            from iccm.conversations c join iccm.requirements r on r.session_id = c.session_id
            where c."timestamp" >= :start and c."timestamp" < :end and r.test_suite is not null
            group by 1
            """
        ),
        days,
    )
    scores = {day.isoformat(): row for day, *row in rows}
    return {day: DailyScores(*[*row, suites[day]]) for day, row in scores.items()}


# The texts of the days by kind of evidence, origin and status of their suites.
_SUITES = sa.text(
    """
    select (c."timestamp" at time zone 'UTC')::date as day, r.test_suite ->> 'kind' as evidence,
        r.test_suite_origin as origin, coalesce(r.evidence ->> 'suite', 'not measured') as status,
        count(*) as texts, count(r.test_pass_rate) as scored
    from iccm.conversations c join iccm.requirements r on r.session_id = c.session_id
    where c."timestamp" >= :start and c."timestamp" < :end and r.test_suite is not null
    group by 1, 2, 3, 4 order by 1, 2, 3, 4
    """
)
# A text that was not scored because its suite is no evidence.
_UNUSABLE = "r.test_pass_rate is null and r.evidence ->> 'suite' in ('weak', 'mismatch', 'none', 'invalid')"
MAX_UNUSABLE_FRACTION = 0.5
MAX_INCONCLUSIVE_FRACTION = 0.1
MIN_RECORDED_FRACTION = 0.5
MIN_SCORED = 10  # below this many texts, a fraction proves nothing


def check_missing_scores(with_suite: int, missing: Sequence[int], days: int) -> CheckResult:
    """Check that the texts (ids) of the last complete days that have a suite were all scored."""
    return CheckResult(
        not missing,
        f"{len(missing)} of {with_suite} texts with a test suite in the last {days} days have no score",
        "Materialize `reconstructions` for their days: it scores what has no score and can be stopped and "
        "resumed. If it ends with members missing, `iccm orchestra check` sends every member one request.",
        severity="warning",
        metrics={"with_suite": float(with_suite), "missing": float(len(missing))},
        sample_ids=sample_ids(list(missing)),
    )


def check_inconclusive_rate(scored: int, inconclusive: int, days: int) -> CheckResult:
    """Check the fraction of texts with a usable suite, but without a pass rate: not bad, but not measured."""
    fraction = inconclusive / scored if scored else 0.0
    return CheckResult(
        scored < MIN_SCORED or fraction <= MAX_INCONCLUSIVE_FRACTION,
        f"{inconclusive} of {scored} scored texts in the last {days} days are inconclusive ({fraction:.1%})",
        "Their `evidence` column gives the reason. Members missing: `iccm orchestra check`. A sandbox layer "
        "missing: `iccm doctor` names it and its fix. Then materialize the days again: it retries texts that "
        "lacked members; for the others clear `scored_at`.",
        severity="warning",
        metrics={
            "scored": float(scored),
            "inconclusive": float(inconclusive),
            "inconclusive_share": fraction,
        },
    )


def check_unusable_suites(scored: int, unusable: int, days: int) -> CheckResult:
    """Check the fraction of texts whose suite tests nothing, or fails its own source."""
    fraction = unusable / scored if scored else 0.0
    return CheckResult(
        scored < MIN_SCORED or fraction <= MAX_UNUSABLE_FRACTION,
        f"the test suites of {unusable} of {scored} texts in the last {days} days are no evidence"
        f" ({fraction:.1%})",
        "`suites` in the metadata of `reconstructions` counts them by status, and `iccm lineage"
        " --conversation ID` gives the reason of each. weak: add cases that tell the code from a stub, at"
        " least 5. mismatch: the source fails its own tests. none: the judge lacks a package that the source"
        " imports. invalid: it is no test suite.",
        severity="warning",
        metrics={"scored": float(scored), "unusable": float(unusable), "unusable_share": fraction},
    )


def no_missing_scores(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Look for texts of the last days that have a suite and no score."""
    scores, days = _load_recent_scores(conn, settings)
    return check_missing_scores(scores.with_suite, scores.missing, days)


def inconclusive_rate_is_low(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Count the scored texts of the last days without a pass rate."""
    scores, days = _load_recent_scores(conn, settings)
    return check_inconclusive_rate(scores.scored - scores.unusable, scores.inconclusive, days)


def suites_are_usable(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Count the texts of the last days whose test suite is no evidence."""
    scores, days = _load_recent_scores(conn, settings)
    return check_unusable_suites(scores.scored, scores.unusable, days)


def check_recorded_suites(sources: int, usable: int, days: int) -> CheckResult:
    """Check the fraction of sources that came without tests for which a usable suite was recorded."""
    fraction = usable / sources if sources else 1.0
    return CheckResult(
        sources < MIN_SCORED or fraction >= MIN_RECORDED_FRACTION,
        f"{usable} of {sources} sources without tests in the last {days} days have a usable recorded suite"
        f" ({fraction:.1%})",
        "`reasons` in the metadata of `test_suites` counts why the others have none. Code with outside"
        " effects cannot be recorded: send tests with it.",
        severity="warning",
        metrics={"sources": float(sources), "usable": float(usable), "usable_share": fraction},
    )


def suites_are_recorded(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Count the sources of the last days that came without tests, and those with a usable recorded suite."""
    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    recorded = load_daily_suites(conn, yesterday - timedelta(days=days - 1), yesterday).values()
    tried = sum(day.recorded + day.not_recorded for day in recorded)
    return check_recorded_suites(tried, sum(day.recorded for day in recorded), days)


def _load_recent_scores(conn: sa.Connection, settings: Settings) -> tuple[ScoreCounts, int]:
    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    return load_score_counts(conn, yesterday - timedelta(days=days - 1), yesterday), days

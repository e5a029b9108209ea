"""Read what the checks of scores, verdicts and production quality decide on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa

from iccm_assets.capture.arrivals import start_of_day
from iccm_assets.judging.verdict import GateEvidence


@dataclass(frozen=True)
class ScoreCounts:
    """Counts of texts with a suite, of some days' conversations; ``missing`` are ids without a score."""

    with_suite: int
    scored: int
    inconclusive: int
    missing: list[int]


@dataclass(frozen=True)
class LastVerdict:
    """The newest row of ``gate_verdicts``; ``missing`` are items without reliable scores."""

    version: str
    canary_set_digest: str
    items: int
    missing: list[str]


@dataclass(frozen=True)
class LatestQuality:
    """The latest measurement of production, ``hours`` ago (without one: its deployment); drops by set."""

    version: str
    hours: float
    holdout_items: int
    drops: dict[str, float]


def load_latest_quality(conn: sa.Connection) -> LatestQuality | None:
    """Load the latest measurement of the production version; None while there is none."""
    rows = conn.execute(
        sa.text(
            """
            select v.version, q."set", q.n, q.fall,
                extract(epoch from iccm.now() - greatest(coalesce(v.deployed_at, iccm.now()), q.measured_at))
                    / 3600 as hours
            from iccm.model_versions v left join lateral (
                select distinct on ("set") "set", n, baseline_mean - mean as fall, measured_at
                from iccm.quality_measurements where version = v.version
                order by "set", measured_at desc
            ) q on true
            where v.status = 'production'
            """
        )
    ).all()
    if not rows:
        return None
    return LatestQuality(
        version=rows[0].version,
        hours=float(min(row.hours for row in rows)),
        holdout_items=sum(row.n for row in rows if row.set == "production_holdout"),
        drops={row.set: row.fall for row in rows if row.fall is not None},
    )


def load_score_counts(conn: sa.Connection, first: date, last: date) -> ScoreCounts:
    """Count the texts of the conversations from day ``first`` to day ``last``."""
    row = conn.execute(
        sa.text(
            """
            select count(*), count(r.scored_at), count(r.scored_at) - count(r.test_pass_rate),
                coalesce(array_agg(r.id order by r.id) filter (where r.scored_at is null), '{}')
            from iccm.conversations c join iccm.requirements r on r.session_id = c.session_id
            where c."timestamp" >= :start and c."timestamp" < :end and c.erased_at is null
                and r.test_suite is not null
            """
        ),
        {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))},
    ).one()
    return ScoreCounts(*row)


def get_last_verdict(conn: sa.Connection) -> LastVerdict | None:
    """Load the newest verdict, with the items of its evidence that are not reliable."""
    row = conn.execute(
        sa.text(
            "select version, canary_set_digest, evidence from iccm.gate_verdicts order by id desc limit 1"
        )
    ).one_or_none()
    if row is None:
        return None
    evidence = GateEvidence.from_json(row.evidence)
    missing = [item.item for item in evidence.items if not item.reliable]
    missing += ["never measured"] * (evidence.expected_items - len(evidence.items))
    return LastVerdict(row.version, row.canary_set_digest, evidence.expected_items, missing)


@dataclass(frozen=True)
class DailyScores:
    """The current scores of all texts with a suite, of one day's conversations."""

    texts: int
    scored: int
    inconclusive: int
    reconstructions: int
    mean_test_pass_rate: float | None
    mean_variance: float | None
    rates: list[float]


def load_daily_scores(conn: sa.Connection, first: date, last: date) -> dict[str, DailyScores]:
    """Load the scores by ISO day; days without texts with a suite are left out."""
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
        {"start": start_of_day(first), "end": start_of_day(last + timedelta(days=1))},
    )
    return {row[0].isoformat(): DailyScores(*row[1:]) for row in rows.all()}

"""State of the platform in a few queries, for `iccm status`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from iccm_assets.db.clock import now

TABLES = (
    "conversations",
    "requirements",
    "reconstructions",
    "test_suites",
    "filtered_conversations",
    "phase4_training_data",
    "phase4_rejections",
    "phase4_training_runs",
    "model_versions",
    "gate_verdicts",
    "requests",
    "feedback",
    "alerts",
)


@dataclass(frozen=True)
class PlatformStatus:
    """State of the platform at ``now``.

    ``production`` and ``versions`` have the columns version, status, parent_version, created_at, deployed_at.
    ``retrains`` are rows of ``phase4_training_runs``; ``too_long`` counts the examples that exceeded a token
    limit and were left out (L10), null without a candidate; ``own_examples`` those that the model wrote, with
    the counts of their ``sampling`` (L12). ``days`` count the conversations of a UTC day
    that were captured, scored, filtered, in the pool and rejected. Newest first. ``suites`` counts the suites
    measured in the last 7 days by kind of evidence, origin and status. ``rows`` is the size of each table.
    """

    now: datetime
    production: dict[str, Any] | None
    versions: list[dict[str, Any]]
    retrains: list[dict[str, Any]]
    days: list[dict[str, Any]]
    rows: dict[str, int]
    suites: list[dict[str, Any]]


_VERSIONS = "select version, status, parent_version, created_at, deployed_at from iccm.model_versions"
_PRODUCTION = f"{_VERSIONS} where status = 'production'"
_NEWEST_VERSIONS = f"{_VERSIONS} order by created_at desc, version desc limit :limit"
_RETRAINS = """
    select r.id, trigger, r.status, attempt, "timestamp", candidate_version, improvement, r.notes,
        case when r.dataset_digest <> '' then coalesce(r.config ->> 'objective', 'sft') end as objective,
        v.metrics -> 'training' -> 'sampling' as sampling,
        (v.metrics -> 'training' -> 'counts' ->> 'self')::integer as own_examples,
        (v.metrics -> 'training' -> 'counts' ->> 'too_long')::integer as too_long
    from iccm.phase4_training_runs r left join iccm.model_versions v on v.version = r.candidate_version
    order by r.id desc limit :limit
"""
# The index on `timestamp` yields the days; each day then costs its own rows, not those of the table.
_DAYS = """
    with newest as (select (max("timestamp") at time zone 'UTC')::date as day from iccm.conversations),
    days as (select (day - back)::date as day, (day - back)::timestamp at time zone 'UTC' as since
             from newest, generate_series(0, :limit - 1) as back)
    select d.day, c.captured, c.scored,
        (select count(*) from iccm.filtered_conversations f where f.day = d.day) as filtered,
        (select count(*) from iccm.phase4_training_data t where t.day = d.day) as pool,
        (select count(distinct conversation_id) from iccm.phase4_rejections r where r.day = d.day) as rejected
    from days d cross join lateral (
        select count(*) as captured,
            count(*) filter (where exists (
                select from iccm.requirements r where r.conversation_id = c.id
                    and r.kind = 'accepted' and r.scored_at is not null)) as scored
        from iccm.conversations c
        where c."timestamp" >= d.since and c."timestamp" < d.since + interval '1 day') c
    where d.day is not null
    order by d.day desc
"""
_SUITES = """
    select suite ->> 'kind' as evidence, origin, status, count(*) as suites
    from iccm.test_suites where created_at > iccm.now() - interval '7 days'
    group by 1, 2, 3 order by 1, 2, 3
"""
_SIZES = " union all ".join(
    f"select '{table}' as name, count(*) as size from iccm.{table}" for table in TABLES
)


def load_platform_status(conn: Connection, *, limit: int = 7) -> PlatformStatus:
    """Load the newest ``limit`` versions, retrains and days, and the size of each table."""

    def load(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in conn.execute(text(query), {"limit": limit}).mappings()]

    return PlatformStatus(
        now=now(conn),
        production=next(iter(load(_PRODUCTION)), None),
        versions=load(_NEWEST_VERSIONS),
        retrains=load(_RETRAINS),
        days=load(_DAYS),
        rows={row["name"]: row["size"] for row in load(_SIZES)},
        suites=load(_SUITES),
    )

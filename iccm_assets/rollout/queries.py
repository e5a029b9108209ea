"""The statements that make up an observation; observer.py explains their use."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from iccm_assets.errors import DatabaseError

# All transactions below the oldest running one have ended, and everything they stored is visible.
TRANSACTIONS = text(
    """
    select (pg_snapshot_xmin(pg_current_snapshot()))::text::bigint as oldest,
        (pg_snapshot_xmax(pg_current_snapshot()))::text::bigint as newest
    """
)


LATEST_REQUIREMENT = text("select coalesce(max(id), 0) as first from iccm.requirements")


BATCH_END = text(
    """
    select stored_xid from iccm.requests where rollout_id = :rollout and stored_xid >= :since
    order by stored_xid offset :max_rows limit 1
    """
)


# `rejected` means a full queue, no model at all, or what a model server refuses whatever the version is: its
# rate limit, the gateway's key, a source that is too long. A request that the canary arm could not serve is
# a `fallback`.
COUNTS = text(
    """
    select assigned_arm as arm, count(*) as requests,
        count(*) filter (where status in ('error', 'timeout', 'fallback')) as errors,
        count(*) filter (where timed) as timed,
        count(*) filter (where timed and per_token > limit_ms) as slow
    from (
        select assigned_arm, status, latency_ms / nullif(output_tokens, 0) as per_token,
            case assigned_arm when 'canary' then cast(:canary_limit as double precision)
                else cast(:production_limit as double precision) end as limit_ms,
            coalesce(
                status = 'ok' and cast(:canary_limit as double precision) is not null
                and latency_ms is not null and output_tokens > 0, false
            ) as timed
        from iccm.requests
        where rollout_id = :rollout and stored_xid >= :since and stored_xid < :until
            and assigned_arm is not null and status <> 'rejected'
    ) as counts
    group by assigned_arm
    """
)


# Without a pass rate a response is no evidence, not even an empty one: its suite may test nothing. A response
# waits for an earlier one of its session that is not scored yet (R11). Rows in `rollout_samples` are excluded
# first, and the rest is looked up by key (`limit 1`): a rollout may have counted any number of sessions, few
# are new at a time.
SCORED_RESPONSES = text(
    """
    with fresh as materialized (
        select r.id, r.session_id, r.request_id, r.created_at, r.test_pass_rate, r.implementation_variance,
            encode(sha256(convert_to(r.session_id, 'UTF8')), 'hex') as session_key
        from iccm.requirements r
        where r.id > :first and r.kind = 'model' and r.scored_at is not null
            and r.test_pass_rate is not null
            and not exists (
                select from iccm.rollout_samples s where s.rollout_id = :rollout and s.requirement_id = r.id
            )
    )
    select r.id as requirement_id, r.session_key, q.assigned_arm as arm, q.created_at as served_at,
        r.test_pass_rate as pass_rate, r.implementation_variance as variance,
        exists (
            select from iccm.rollout_samples s where s.rollout_id = :rollout and s.exclusion_reason is null
                and s.session_key = r.session_key
        ) as counted,
        met.both_arms, met.elsewhere
    from fresh r
        cross join lateral (
            select o.assigned_arm, o.created_at, o.rollout_id
            from iccm.requests o where o.request_id = r.request_id limit 1
        ) as q
        cross join lateral (
            select coalesce(bool_or(
                    coalesce(o.assigned_arm, o.arm) <> q.assigned_arm
                    or coalesce(o.arm, o.assigned_arm) <> q.assigned_arm
                ), false) as both_arms,
                coalesce(bool_or(o.rollout_id is distinct from :rollout), false) as elsewhere
            from iccm.requests o where o.session_id = r.session_id
        ) as met
    where q.rollout_id = :rollout and q.assigned_arm is not null
        and not exists (
            select from iccm.requirements p left join iccm.conversations c on c.id = p.conversation_id
            where p.session_id = r.session_id and p.kind = 'model' and p.test_suite is not null
                and p.test_pass_rate is null and p.scored_at is null and c.erased_at is null
                and (p.created_at, p.id) < (r.created_at, r.id)
        )
    order by q.created_at, r.id limit :max_rows
    """
)


# Since when the oldest unscored response could have been scored: it, or its tests, may have come late.
OLDEST_UNSCORED = text(
    """
    select min(greatest(r.created_at, c.updated_at)) as since
    from iccm.requirements r
        join iccm.requests q on q.request_id = r.request_id
        left join iccm.conversations c on c.id = r.conversation_id
    where r.id > :first and r.kind = 'model' and r.test_suite is not null and r.test_pass_rate is null
        and r.scored_at is null and q.rollout_id = :rollout and c.erased_at is null
        and not exists (
            select from iccm.rollout_samples s where s.rollout_id = :rollout and s.exclusion_reason is null
                and s.session_key = encode(sha256(convert_to(r.session_id, 'UTF8')), 'hex')
        )
    """
)


STAGE_STARTS = text(
    """
    select "timestamp", weight from iccm.deployment_events
    where rollout_id = :rollout and event_type in ('started', 'advanced', 'promoted') order by seq
    """
)


DAILY_SESSIONS = text(
    """
    select count(distinct session_id) as sessions from iccm.requirements
    where scored_at > :since and kind = 'model' and test_pass_rate is not null
    """
)


# Both versions scored by the same members on the same item; of several measurements the newest.
REPLAY_PAIRS = text(
    """
    with scored as (
        select model_digest, item, canary_set_digest, orchestra, judge_version, decoding,
            avg(test_pass_rate) as rate, array_agg(reconstructor order by reconstructor) as members,
            max(id) as newest
        from iccm.canary_results cr
        where cr."set" = 'production_holdout' and cr.model_digest in (
                select digest from iccm.model_versions where version in (:candidate, :production))
            and not exists (
                select from iccm.rollout_pairs s where s.rollout_id = :rollout and s.item = cr.item)
        group by model_digest, item, canary_set_digest, orchestra, judge_version, decoding
        having bool_and(status in ('scored', 'unreadable') and test_pass_rate is not null)
            and count(*) >= :quorum
    )
    select distinct on (c.item) c.item, c.rate as canary, p.rate as production
    from scored c join scored p using (item, canary_set_digest, orchestra, judge_version, decoding, members)
    where c.model_digest = (select digest from iccm.model_versions where version = :candidate)
        and p.model_digest = (select digest from iccm.model_versions where version = :production)
    order by c.item, greatest(c.newest, p.newest) desc limit :max_rows
    """
)


WINDOW_SCORES = text(
    """
    select arm, count(*) as sessions, sum(pass_rate) as rates, count(variance) as varied,
        sum(variance) as variances
    from iccm.rollout_samples where rollout_id = :rollout and served_at > :since and exclusion_reason is null
    group by arm
    """
)


WINDOW_REQUESTS = text(
    """
    select arms.arm, counts.* from (values ('canary'), ('production')) as arms (arm) cross join lateral (
        select count(*) as requests,
            count(*) filter (where status in ('error', 'timeout', 'fallback')) as errors,
            count(per_token) as timed,
            percentile_cont(0.95) within group (order by per_token) as latency_p95
        from (
            select status, case status when 'ok' then latency_ms / nullif(output_tokens, 0) end as per_token
            from iccm.requests
            where rollout_id = :rollout and assigned_arm = arms.arm and created_at > :since
                and status <> 'rejected'
            order by created_at desc limit :max_rows
        ) as newest
    ) as counts
    """
)


_LIMIT = text("select set_config('statement_timeout', :ms, true)")


class DeadlineConnection:
    """Runs statements on a connection for ``seconds`` in all; then PostgreSQL cancels them."""

    def __init__(self, conn: Connection, seconds: float) -> None:
        self._conn, self._deadline = conn, time.monotonic() + seconds

    def all(self, query: TextClause, **values: Any) -> list[Row[Any]]:
        """Return all rows; ``DatabaseError`` when no time remains."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise DatabaseError("reading took longer than a tick may take; nothing was counted")
        self._conn.execute(_LIMIT, {"ms": str(max(1, int(1000 * remaining)))})
        return list(self._conn.execute(query, values))

    def fetch_one(self, query: TextClause, **values: Any) -> Row[Any]:
        """Return the only row."""
        return self.all(query, **values)[0]

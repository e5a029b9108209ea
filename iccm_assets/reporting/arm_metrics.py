"""Recent quality, latency, error and feedback metrics per arm and model version (A3).

A request belongs to the arm it was assigned to: an error of the canary arm counts there although production
answered. Quality is counted once per session, by its first scored response; sessions that were served by both
arms are not counted (R11).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from iccm_assets.reporting.formatting import format_number


@dataclass(frozen=True)
class ArmMetrics:
    """Metrics of one arm and version over a time window; None where nothing was measured.

    ``errors`` of the ``requests`` failed, timed out or fell back to production; requests rejected for lack of
    capacity are in neither. Latencies in milliseconds, of the requests that this arm answered. Of the
    ``scored_sessions``, ``pytest_sessions`` rest on suites of kind pytest, the weaker evidence.
    """

    arm: str
    version: str
    requests: int
    errors: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    scored_sessions: int
    pass_rate: float | None
    implementation_variance: float | None
    api_compatibility: float | None
    thumbs_up: int
    thumbs_down: int
    pytest_sessions: int

    @property
    def error_rate(self) -> float | None:
        """Errors per request."""
        return self.errors / self.requests if self.requests else None

    def to_dict(self) -> dict[str, object]:
        """Return every metric by name."""
        return {**asdict(self), "error_rate": self.error_rate}

    def summary(self) -> str:
        """Return a one-line summary."""
        return (
            f"{self.arm} {self.version}: pass rate {format_number(self.pass_rate)}"
            f" over {self.scored_sessions} sessions ({self.pytest_sessions} by pytest),"
            f" variance {format_number(self.implementation_variance)},"
            f" {self.errors} errors in {self.requests} requests,"
            f" p95 {format_number(self.latency_p95_ms, 0)} ms"
        )


# The version a request was assigned to: for the canary arm the candidate, even if production answered.
_VERSION = """
    case when q.assigned_arm = 'canary' then coalesce(o.candidate, q.model_version) else q.model_version end
"""
# The only arm and version of the session of `f`; no row if it met both.
_SESSION_ARM = f"""
    lateral (
        select min(q.assigned_arm) as arm, min({_VERSION}) as version
        from iccm.requests q left join iccm.rollouts o on o.id = q.rollout_id
        where q.session_id = f.session_id
        having min(q.assigned_arm) = max(q.assigned_arm) and min({_VERSION}) = max({_VERSION})
            and bool_and(q.status <> 'fallback')
    ) session
"""
# Scores and ratings are few compared with requests: each finds its session by index.
_METRICS = text(
    f"""
    with served as (
        select q.assigned_arm as arm, {_VERSION} as version,
            count(*) filter (where q.status <> 'rejected') as requests,
            count(*) filter (where q.status in ('error', 'timeout', 'fallback')) as errors,
            percentile_cont(array[0.5, 0.95, 0.99]) within group (order by q.latency_ms)
                filter (where q.status = 'ok') as latency
        from iccm.requests q left join iccm.rollouts o on o.id = q.rollout_id
        where q.created_at > :since and q.assigned_arm is not null and q.model_version is not null
        group by 1, 2
    ),
    first_scored as (
        select distinct on (q.session_id) q.session_id, r.test_pass_rate, r.implementation_variance,
            r.api_compatibility, r.test_suite ->> 'kind' as evidence
        from iccm.requirements r join iccm.requests q on q.request_id = r.request_id
        where r.scored_at > :since and r.kind = 'model' and r.test_pass_rate is not null
            and q.created_at > :since
        order by q.session_id, q.created_at, r.id
    ),
    rated as (
        select q.assigned_arm as arm, {_VERSION} as version, f.rating
        from iccm.feedback f join iccm.requests q using (request_id, session_id)
            left join iccm.rollouts o on o.id = q.rollout_id
        where f.created_at > :since
        union all
        select session.arm, session.version, f.rating
        from iccm.feedback f cross join {_SESSION_ARM}
        where f.created_at > :since and f.request_id is null
    ),
    quality as (
        select session.arm, session.version, count(*) as sessions, avg(f.test_pass_rate) as pass_rate,
            avg(f.implementation_variance) as variance, avg(f.api_compatibility) as compatibility,
            count(*) filter (where f.evidence = 'pytest') as pytest_sessions
        from first_scored f cross join {_SESSION_ARM}
        group by session.arm, session.version
    ),
    thumbs as (
        select arm, version, count(*) filter (where rating > 0) as up,
            count(*) filter (where rating < 0) as down
        from rated group by arm, version
    )
    select s.arm, s.version, s.requests, s.errors, s.latency[1], s.latency[2], s.latency[3],
        coalesce(q.sessions, 0), q.pass_rate, q.variance, q.compatibility,
        coalesce(f.up, 0), coalesce(f.down, 0), coalesce(q.pytest_sessions, 0)
    from served s left join quality q using (arm, version) left join thumbs f using (arm, version)
    order by s.arm desc, s.version
    """
)


def load_arm_metrics(conn: Connection, since: datetime) -> list[ArmMetrics]:
    """Load the metrics of all requests after ``since``; production first, then the canary arm, by version."""
    return [ArmMetrics(*row) for row in conn.execute(_METRICS, {"since": since})]

"""The record of a closed rollout in the database, and the demo's acceptance checks on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, TextClause, text

from iccm_assets.cli.console import pluralize
from iccm_assets.demo.rollout_progress import Test, load_tests
from iccm_assets.registry.versions import resolve_path
from iccm_assets.rollout import repository
from iccm_assets.simulation.developers.http_sessions import ResponseStats

# A row by column name.
Row = dict[str, Any]

MIN_SESSIONS_AT_TEN_PERCENT = 1500
TEN_PERCENT_BOUNDS, FIFTY_PERCENT_BOUNDS = (0.08, 0.12), (0.46, 0.54)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@dataclass(frozen=True)
class TrafficSplit:
    """Traffic while the canary arm had ``weight``: requests and sessions by assigned arm.

    ``fallbacks`` were answered by production instead of the canary arm; ``failed`` were not answered.
    ``both_arms`` counts sessions assigned to both arms in this stage, ``scored`` those of the canary arm.
    """

    weight: float
    requests: int
    canary_requests: int
    sessions: int
    canary_sessions: int
    both_arms: int
    fallbacks: int
    failed: int
    scored: int

    @property
    def share(self) -> float:
        """The fraction of requests assigned to the canary arm."""
        return self.canary_requests / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class RolloutRecord:
    """One rollout as the tables record it; ``statuses`` are the present ones of its two versions.

    ``events``, ``rollbacks`` and ``alerts`` are rows of `deployment_events`, `rollback_events` and `alerts`,
    with the columns of the queries below, oldest first.
    """

    rollout_id: int
    candidate: str
    previous: str
    state: str
    stage: int
    weight: float
    opened_at: datetime
    closed_at: datetime | None
    splits: tuple[TrafficSplit, ...]
    events: tuple[Row, ...]
    rollbacks: tuple[Row, ...]
    alerts: tuple[Row, ...]
    production: str
    statuses: dict[str, str]
    archived: bool
    sessions: int
    canary_sessions: int
    scored_canary: int
    canary_pass_rate: float | None
    scored_production: int = 0
    production_pass_rate: float | None = None
    tests: tuple[Test, ...] = ()

    @property
    def duration(self) -> timedelta | None:
        """Time from opening to end on the platform's clock; None while it is live."""
        return None if self.closed_at is None else self.closed_at - self.opened_at

    @property
    def sessions_per_hour(self) -> float | None:
        """Traffic of the whole rollout on the platform's clock."""
        return self.sessions / (self.duration / HOUR) if self.duration else None


@dataclass(frozen=True)
class AcceptanceCheck:
    """An acceptance check; ``ok`` is None if the result is unknown."""

    name: str
    ok: bool | None
    detail: str


# A split lasts from one change of the weight to the next: `marks` are those changes. Requests belong to it by
# their own time, because the gateway stores them a moment later, when the weight may have changed again.
_SPLITS = text(
    """
    with marks as (
        select event_type, weight, seq, "timestamp" as since,
            lead("timestamp", 1, 'infinity') over (order by seq) as until
        from iccm.deployment_events
        where rollout_id = :rollout
            and event_type in ('started', 'advanced', 'promoted', 'completed', 'rolled_back', 'aborted')
    )
    select m.weight, count(q.request_id) as requests,
        count(*) filter (where q.assigned_arm = 'canary') as canary_requests,
        count(distinct q.session_id) as sessions,
        count(distinct q.session_id) filter (where q.assigned_arm = 'canary') as canary_sessions,
        count(distinct q.session_id) filter (where q.assigned_arm = 'canary' and exists (
            select from iccm.requests o where o.rollout_id = :rollout and o.session_id = q.session_id
                and o.created_at >= m.since and o.created_at < m.until and o.assigned_arm = 'production'
        )) as both_arms,
        count(*) filter (where q.status = 'fallback') as fallbacks,
        count(*) filter (where q.status in ('error', 'timeout')) as failed,
        count(distinct q.session_id) filter (where q.assigned_arm = 'canary' and exists (
            select from iccm.requirements r where r.request_id = q.request_id and r.test_pass_rate is not null
        )) as scored
    from marks m left join iccm.requests q on q.rollout_id = :rollout and q.assigned_arm is not null
        and q.status <> 'rejected' and q.created_at >= m.since and q.created_at < m.until
    where m.event_type in ('started', 'advanced', 'promoted')
    group by m.seq, m.weight, m.since, m.until order by m.seq
    """
)
_EVENTS = text(
    """
    select "timestamp", event_type, coalesce(to_state, '') as to_state, version, weight,
        coalesce(notes, '') as notes, actor
    from iccm.deployment_events where rollout_id = :rollout order by seq
    """
)
_ROLLBACKS = text(
    """
    select "timestamp", reason, new_model_path, coalesce(notes, '') as notes
    from iccm.rollback_events where rollout_id = :rollout order by id
    """
)
_ALERTS = text(
    """
    select key, severity, title, body, created_at from iccm.alerts
    where starts_with(key, :prefix) or (created_at >= :since and created_at <= :until)
    order by created_at, key
    """
)
_TRAFFIC = text(
    """
    select count(distinct session_id) as sessions,
        count(distinct session_id) filter (where assigned_arm = 'canary') as canary
    from iccm.requests where rollout_id = :rollout
    """
)
_VERSIONS = text("select version, status, path from iccm.model_versions")


def load_rollout_record(conn: Connection, rollout_id: int) -> RolloutRecord:
    """Load the record of one rollout."""
    state = repository.get_rollout(conn, rollout_id)
    values = {
        "rollout": rollout_id,
        # A rollout's own alerts are written shortly after the observation that closed it.
        "prefix": f"rollout-{rollout_id}-",
        "since": state.opened_at,
        "until": state.closed_at or state.opened_at,
    }

    def load(query: TextClause) -> tuple[Row, ...]:
        return tuple(dict(row) for row in conn.execute(query, values).mappings())

    known = {version.version: version for version in conn.execute(_VERSIONS)}
    traffic = conn.execute(_TRAFFIC, values).one()
    return RolloutRecord(
        rollout_id=rollout_id,
        candidate=state.candidate,
        previous=state.production,
        state=state.state,
        stage=state.stage,
        weight=state.weight,
        opened_at=state.opened_at,
        closed_at=state.closed_at,
        splits=tuple(TrafficSplit(**row) for row in load(_SPLITS)),
        events=load(_EVENTS),
        rollbacks=load(_ROLLBACKS),
        alerts=load(_ALERTS),
        production=next(version.version for version in known.values() if version.status == "production"),
        statuses={name: known[name].status for name in (state.candidate, state.production)},
        archived=Path(resolve_path(known[state.candidate].path)).is_dir(),
        sessions=traffic.sessions,
        canary_sessions=traffic.canary,
        scored_canary=state.evidence.canary_total.sessions,
        canary_pass_rate=state.evidence.canary_total.pass_rate,
        scored_production=state.evidence.production_total.sessions,
        production_pass_rate=state.evidence.production_total.pass_rate,
        tests=load_tests(state),
    )


def check_retrain(status: str | None, improvement: float | None) -> list[AcceptanceCheck]:
    """Check that the retrain passed its gate and the new version is better on the canary set."""
    ended = f"the retrain ended as {status}" if status else "there was no retrain"
    gate = AcceptanceCheck("quality gate passed", status == "gate_passed", ended)
    name = "better on the canary set"
    if improvement is None:
        return [gate, AcceptanceCheck(name, None, "not measured")]
    return [gate, AcceptanceCheck(name, improvement > 0, f"improvement {improvement:+.4f}")]


def check_rollout(record: RolloutRecord) -> list[AcceptanceCheck]:
    """Check that traffic was split as specified, no request failed, and the candidate took over."""
    by_weight = {split.weight: split for split in record.splits}
    failed = sum(split.failed for split in record.splits)
    both = sum(split.both_arms for split in record.splits)
    return [
        _check_share(
            "10 % of the traffic", by_weight.get(0.1), TEN_PERCENT_BOUNDS, MIN_SESSIONS_AT_TEN_PERCENT
        ),
        _check_share("50 % of the traffic", by_weight.get(0.5), FIFTY_PERCENT_BOUNDS, 0),
        AcceptanceCheck("no session changed its arm within a stage", both == 0, f"{both} did"),
        AcceptanceCheck("no request failed", failed == 0, f"{failed} failed"),
        AcceptanceCheck(
            "completed, and in production",
            record.state == "completed" and record.production == record.candidate,
            f"{record.candidate} ended {record.state}; {record.production} is in production",
        ),
    ]


def _check_share(
    name: str, split: TrafficSplit | None, bounds: tuple[float, float], min_sessions: int
) -> AcceptanceCheck:
    if split is None or not split.requests:
        return AcceptanceCheck(name, False, "there was no such traffic")
    low, high = bounds
    required = f" (at least {min_sessions} required)" if min_sessions else ""
    detail = (
        f"{split.canary_requests} of {split.requests} requests ({split.share:.1%}, required {low:.0%} to"
        f" {high:.0%}), {split.sessions} sessions{required}"
    )
    return AcceptanceCheck(name, low <= split.share <= high and split.sessions >= min_sessions, detail)


def check_rollback(record: RolloutRecord, production_before: str) -> list[AcceptanceCheck]:
    """Check for an automatic rollback within an hour of the platform's clock, with all its records."""
    duration = record.duration
    ended = "still live" if duration is None else f"{duration / MINUTE:.0f} minutes after its opening"
    last = record.events[-1] if record.events else {"notes": "no event", "actor": ""}
    alerts = sum(alert["title"] == "Model Rollback" for alert in record.alerts)
    checks = {
        "rolled back automatically": (
            record.state == "rolled_back" and last["actor"] == "controller",
            f"{record.state}: {last['notes']}",
        ),
        "within 1 hour of the platform's clock": (
            duration is not None and duration <= HOUR,
            f"{ended}, {record.sessions} sessions, {record.scored_canary} of the canary arm scored",
        ),
        "weight 0": (record.weight == 0, f"weight {record.weight:g}"),
        "production unchanged": (
            record.production == production_before,
            f"{record.production} serves, {production_before} did before",
        ),
        "archived": (
            record.statuses[record.candidate] == "rolled_back" and record.archived,
            f"{record.candidate} is {record.statuses[record.candidate]}, its files are"
            f" {'retained' if record.archived else 'deleted'}",
        ),
        "rollback event written": (len(record.rollbacks) == 1, pluralize(len(record.rollbacks), "row")),
        "alert written": (alerts == 1, f"{pluralize(alerts, 'alert')} named Model Rollback"),
    }
    return [AcceptanceCheck(name, ok, detail) for name, (ok, detail) in checks.items()]


def check_responses(replies: Sequence[ResponseStats]) -> AcceptanceCheck:
    """Check that every developer got a response, if necessary after retries."""
    failures = [failure for phase in replies for failure in phase.failures]
    answered = sum(sum(phase.arms.values()) for phase in replies)
    detail = f"{answered} sessions were answered, {len(failures)} were not"
    return AcceptanceCheck(
        "every developer was answered", not failures, f"{detail}: {failures[0]}" if failures else detail
    )

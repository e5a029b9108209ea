"""What a closed rollout has left in the database, and whether it is what the story says (SPEC 14, 1-3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from iccm_assets.reference.http_traffic import Replies

SESSIONS_AT_TEN = 1500
TEN, FIFTY = (0.08, 0.12), (0.46, 0.54)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Split:
    """Traffic while the canary arm had ``weight``: requests and sessions by the arm they were assigned to.

    ``fallbacks`` were answered by production in the canary arm's place; ``failed`` were not answered.
    ``scored`` sessions of the canary arm in this stage, and how many sessions met both arms in it.
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
        """Of the requests, those that went to the canary arm."""
        return self.canary_requests / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Event:
    """A row of `deployment_events`."""

    timestamp: datetime
    event_type: str
    to_state: str
    version: str | None
    weight: float | None
    notes: str
    actor: str


@dataclass(frozen=True)
class Rollback:
    """A row of `rollback_events`."""

    timestamp: datetime
    reason: str
    new_model_path: str | None
    notes: str


@dataclass(frozen=True)
class Facts:
    """One rollout, told by the tables. ``statuses`` are those of its two versions now."""

    rollout_id: int
    candidate: str
    former: str
    state: str
    stage: int
    weight: float
    opened_at: datetime
    closed_at: datetime | None
    splits: tuple[Split, ...]
    events: tuple[Event, ...]
    rollbacks: tuple[Rollback, ...]
    alerts: tuple[dict[str, Any], ...]
    production: str
    statuses: dict[str, str]
    archived: bool
    sessions: int
    canary_sessions: int
    scored_canary: int
    canary_pass_rate: float | None

    @property
    def lasted(self) -> timedelta | None:
        """From the opening to the end, on the platform's clock."""
        return None if self.closed_at is None else self.closed_at - self.opened_at

    @property
    def sessions_per_hour(self) -> float | None:
        """Traffic of the whole rollout on the platform's clock."""
        lasted = self.lasted
        return self.sessions / (lasted / HOUR) if lasted else None


@dataclass(frozen=True)
class Check:
    """One sentence of the story, and whether it came true; ``ok`` is None when it could not be told."""

    name: str
    ok: bool | None
    told: str


_SPLITS = sa.text(
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
_EVENTS = sa.text(
    """
    select "timestamp", event_type, coalesce(to_state, '') as to_state, version, weight,
        coalesce(notes, '') as notes, actor
    from iccm.deployment_events where rollout_id = :rollout order by seq
    """
)
_ROLLBACKS = sa.text(
    """
    select "timestamp", reason, new_model_path, coalesce(notes, '') as notes
    from iccm.rollback_events where rollout_id = :rollout order by id
    """
)
_ALERTS = sa.text(
    """
    select key, severity, title, body, created_at from iccm.alerts
    where starts_with(key, :prefix) or (created_at >= :since and created_at <= :until)
    order by created_at, key
    """
)
_TRAFFIC = sa.text(
    """
    select count(distinct session_id) as sessions,
        count(distinct session_id) filter (where assigned_arm = 'canary') as canary
    from iccm.requests where rollout_id = :rollout
    """
)
_VERSIONS = sa.text("select version, status, path from iccm.model_versions")


def facts(conn: sa.Connection, rollout_id: int) -> Facts:
    """Everything about one rollout."""
    from iccm_assets.rollout.state import State
    from iccm_assets.store import tables as t

    row = conn.execute(sa.select(t.rollouts).where(t.rollouts.c.id == rollout_id)).one()
    state, mine = State.from_row(dict(row._mapping)), {"rollout": rollout_id}
    known = {one.version: one for one in conn.execute(_VERSIONS)}
    traffic = conn.execute(_TRAFFIC, mine).one()
    # A rollout's own alerts are written a moment after the look that closed it.
    prefix = f"rollout-{rollout_id}-"
    span = {"prefix": prefix, "since": state.opened_at, "until": state.closed_at or state.opened_at}
    alerts = conn.execute(_ALERTS, span).mappings()
    return Facts(
        rollout_id=rollout_id,
        candidate=state.candidate,
        former=state.production,
        state=state.state,
        stage=state.stage,
        weight=state.weight,
        opened_at=state.opened_at,
        closed_at=state.closed_at,
        splits=tuple(Split(*one) for one in conn.execute(_SPLITS, mine)),
        events=tuple(Event(*one) for one in conn.execute(_EVENTS, mine)),
        rollbacks=tuple(Rollback(*one) for one in conn.execute(_ROLLBACKS, mine)),
        alerts=tuple(dict(one) for one in alerts),
        production=next(one.version for one in known.values() if one.status == "production"),
        statuses={name: known[name].status for name in (state.candidate, state.production)},
        archived=Path(known[state.candidate].path).is_dir(),
        sessions=traffic.sessions,
        canary_sessions=traffic.canary,
        scored_canary=state.evidence.canary_total.sessions,
        canary_pass_rate=state.evidence.canary_total.pass_rate,
    )


def check_learning(status: str | None, improvement: float | None) -> list[Check]:
    """Story 1: the retrain passed its gate, and the new version is better on the canary set. Pure."""
    told = f"the retrain ended as {status}" if status else "there was no retrain"
    gain = improvement is not None and improvement > 0
    return [
        Check("quality gate passed", status == "gate_passed", told),
        Check(
            "better on the canary set",
            gain if improvement is not None else None,
            "not measured" if improvement is None else f"improvement {improvement:+.4f}",
        ),
    ]


def check_rollout(found: Facts) -> list[Check]:
    """Story 2: the traffic was split as it should, nobody noticed, and the candidate took over. Pure."""
    at = {split.weight: split for split in found.splits}
    failed = sum(split.failed for split in found.splits)
    both = sum(split.both_arms for split in found.splits)
    return [
        _share("10 % of the traffic", at.get(0.1), TEN, SESSIONS_AT_TEN),
        _share("50 % of the traffic", at.get(0.5), FIFTY, 0),
        Check("no session changed its arm within a stage", both == 0, f"{both} did"),
        Check("no request failed", failed == 0, f"{failed} failed"),
        Check(
            "completed, and in production",
            found.state == "completed" and found.production == found.candidate,
            f"{found.candidate} ended {found.state}; {found.production} is in production",
        ),
    ]


def _share(name: str, split: Split | None, bounds: tuple[float, float], sessions: int) -> Check:
    if split is None or not split.requests:
        return Check(name, False, "there was no such traffic")
    low, high = bounds
    told = (
        f"{split.canary_requests} of {split.requests} requests ({split.share:.1%}, {low:.0%} to {high:.0%}"
        f" are right), {split.sessions} sessions"
    )
    least = f", at least {sessions} were to be seen" if sessions else ""
    return Check(name, low <= split.share <= high and split.sessions >= sessions, told + least)


def check_rollback(found: Facts, production_before: str) -> list[Check]:
    """Story 3: taken back by itself within an hour of the platform's clock, with all its traces. Pure."""
    lasted = found.lasted
    minutes = None if lasted is None else lasted / timedelta(minutes=1)
    last = found.events[-1] if found.events else None
    written = [one for one in found.alerts if one["title"] == "Model Rollback"]
    return [
        Check(
            "rolled back by itself",
            found.state == "rolled_back" and last is not None and last.actor == "controller",
            f"{found.state}: {last.notes if last else 'no event'}",
        ),
        Check(
            "within 1 hour of the platform's clock",
            lasted is not None and lasted <= HOUR,
            f"{'still live' if minutes is None else f'{minutes:.0f} minutes after its opening'},"
            f" {found.sessions} sessions, {found.scored_canary} of the canary arm scored",
        ),
        Check("weight 0", found.weight == 0, f"weight {found.weight:g}"),
        Check(
            "production unchanged",
            found.production == production_before,
            f"{found.production} serves, {production_before} did before",
        ),
        Check(
            "archived",
            found.statuses[found.candidate] == "rolled_back" and found.archived,
            f"{found.candidate} is {found.statuses[found.candidate]},"
            f" its files are {'kept' if found.archived else 'gone'}",
        ),
        Check("rollback event written", len(found.rollbacks) == 1, f"{len(found.rollbacks)} rows"),
        Check("alert written", len(written) == 1, f"{len(written)} alerts named Model Rollback"),
    ]


def check_replies(replies: Sequence[Replies]) -> Check:
    """Whether every developer got an answer, at the latest when asking again. Pure."""
    lost = [failure for one in replies for failure in one.failures]
    asked = sum(sum(one.arms.values()) for one in replies)
    told = f"{asked} sessions were answered, {len(lost)} were not"
    return Check("every developer was answered", not lost, f"{told}: {lost[0]}" if lost else told)

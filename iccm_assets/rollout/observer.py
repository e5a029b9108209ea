"""Collect the `Observation` for a state's watermark, from a few bounded queries.

Everything is counted exactly once, however late it arrives (docs/explanation/rollout.md):

- requests are counted in the order in which the transactions that stored them ended, so one that a
  gateway's spool delivers hours later is counted when it arrives, whatever its date says;
- scored responses are recorded by their rows in `rollout_samples`: each is counted there as its session's
  score, or excluded with a reason, once; likewise the replayed pairs in `rollout_pairs`.

`ObservationBatch` holds those rows; the controller stores them with the decision, in one transaction (R11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.replicas import LIVE_REPLICAS_SQL
from iccm_assets.errors import InputError
from iccm_assets.rollout import queries
from iccm_assets.rollout.observation import (
    ARMS,
    MAX_VARIANCE,
    ArmTotals,
    HealthWindow,
    Observation,
    ReplayPair,
    RequestCounts,
    SessionScore,
)
from iccm_assets.rollout.policy import STAGE_WEIGHTS
from iccm_assets.rollout.queries import DeadlineConnection
from iccm_assets.rollout.state import State
from iccm_assets.rollout.watermark import Watermark, advance
from iccm_assets.settings import Settings

# The limits of one observation; the rest waits for the next one.
MAX_REQUESTS = 100_000
MAX_RESPONSES = 2_000
MAX_PAIRS = 1_000
# A window's rate and p95 need no more than its newest requests.
MAX_WINDOW_REQUESTS = 5_000

_STAGES = {weight: stage for stage, weight in STAGE_WEIGHTS.items()}


@dataclass(frozen=True)
class SessionSample:
    """One scored response; ``exclusion_reason`` is None where it is its session's score."""

    score: SessionScore
    requirement_id: int
    session_key: str
    served_at: datetime
    exclusion_reason: str | None

    def to_row(self) -> dict[str, Any]:
        """Return the columns of `rollout_samples`, without those of the decision."""
        columns = {name: value for name, value in vars(self).items() if name != "score"}
        return {**columns, **self.score._asdict()}


@dataclass(frozen=True)
class ObservationBatch:
    """An observation, and the rows that record what it counted."""

    observation: Observation
    samples: tuple[SessionSample, ...] = ()
    pairs: tuple[tuple[str, ReplayPair], ...] = ()

    def store(self, conn: sa.Connection, rollout_id: int, revision: int) -> None:
        """Store the rows, in the transaction that decides on the observation."""
        decision = {"rollout_id": rollout_id, "revision": revision}
        if self.samples:
            conn.execute(
                t.rollout_samples.insert(), [{**sample.to_row(), **decision} for sample in self.samples]
            )
        if self.pairs:
            rows = [{"item": item, **pair._asdict(), **decision} for item, pair in self.pairs]
            conn.execute(t.rollout_pairs.insert(), rows)


def collect_observation(
    conn: sa.Connection, state: State, settings: Settings, now: datetime, *, seconds: float = 5.0
) -> ObservationBatch:
    """Read the database for this state in at most ``seconds``; changes nothing.

    Raises ``DatabaseError`` or the driver's error when it takes longer.
    """
    reader = DeadlineConnection(conn, seconds)
    replicas = reader.all(sa.text(LIVE_REPLICAS_SQL))
    ready = sum(state.candidate in replica.ready_versions for replica in replicas)
    try:
        before = Watermark.parse(state.watermark)
    except InputError as error:
        faulty = Observation(
            state.watermark, state.watermark, None, len(replicas), ready, faults=(error.detail,)
        )
        return ObservationBatch(faulty)
    watermark = _advance(reader, state, before, now)
    samples = _samples(reader, state, watermark.first_requirement_id)
    counted = [sample for sample in samples if sample.exclusion_reason is None]
    pairs = _pairs(reader, state, settings, now)
    counts = _counts(reader, state, before.next_xid if before else 0, watermark.next_xid)
    windows = _windows(reader, state, counted, now)
    unscored = reader.fetch_one(
        queries.OLDEST_UNSCORED, rollout=state.id, first=watermark.first_requirement_id
    ).since
    observation = Observation(
        since=state.watermark,
        until=str(watermark),
        fresh_at=min(watermark.settled_at, now if unscored is None else unscored.astimezone(UTC)),
        replicas=len(replicas),
        ready=ready,
        sessions=tuple(sample.score for sample in counted),
        replay=tuple(pair for _, pair in pairs),
        canary=counts["canary"],
        production=counts["production"],
        canary_window=windows["canary"],
        production_window=windows["production"],
    )
    return ObservationBatch(observation, samples, pairs)


def _advance(reader: DeadlineConnection, state: State, before: Watermark | None, now: datetime) -> Watermark:
    """Choose how far to count requests: to the oldest running transaction, or to the maximum."""
    running = reader.fetch_one(queries.TRANSACTIONS)
    since = before.next_xid if before else 0
    full = reader.all(queries.BATCH_END, rollout=state.id, since=since, max_rows=MAX_REQUESTS)
    first = before.first_requirement_id if before else reader.fetch_one(queries.LATEST_REQUIREMENT).first
    until = min([running.oldest, *(row.stored_xid for row in full if row.stored_xid > since)])
    return advance(before, first=first, until=until, oldest=running.oldest, newest=running.newest, now=now)


def _samples(reader: DeadlineConnection, state: State, first: int) -> tuple[SessionSample, ...]:
    """Return the scored responses that are not recorded yet, in the order they were served."""
    rows = reader.all(queries.SCORED_RESPONSES, rollout=state.id, first=first, max_rows=MAX_RESPONSES)
    if not rows:
        return ()
    starts = [(row.timestamp, row.weight) for row in reader.all(queries.STAGE_STARTS, rollout=state.id)]
    samples: list[SessionSample] = []
    counted: set[str] = set()
    for row in rows:
        reason = _exclusion_reason(row, counted)
        if reason is None:
            counted.add(row.session_key)
        served_at = row.served_at.astimezone(UTC)
        # The last stage that had begun by then; a stage is known by its weight.
        weight = next((weight for start, weight in reversed(starts) if start <= served_at), STAGE_WEIGHTS[1])
        score = SessionScore(row.arm, _STAGES[weight], row.pass_rate, row.variance)
        samples.append(SessionSample(score, row.requirement_id, row.session_key, served_at, reason))
    return tuple(samples)


def _exclusion_reason(row: Any, counted: set[str]) -> str | None:
    """Return why a response is not its session's score; None when it is."""
    impossible = row.variance is not None and row.variance > MAX_VARIANCE
    reasons = {
        "later_answer": row.counted or row.session_key in counted,
        "both_arms": row.both_arms,
        "elsewhere": row.elsewhere,
        "impossible": impossible,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _pairs(
    reader: DeadlineConnection, state: State, settings: Settings, now: datetime
) -> tuple[tuple[str, ReplayPair], ...]:
    """Return production-holdout items measured for both versions, while there is little traffic."""
    sessions = reader.fetch_one(queries.DAILY_SESSIONS, since=now - timedelta(days=1)).sessions
    if sessions >= settings.rollout.replay_threshold_sessions:
        return ()
    rows = reader.all(
        queries.REPLAY_PAIRS,
        rollout=state.id,
        candidate=state.candidate,
        production=state.production,
        quorum=settings.orchestra_quorum,
        max_rows=MAX_PAIRS,
    )
    return tuple((row.item, ReplayPair(row.canary, row.production)) for row in rows)


def _counts(reader: DeadlineConnection, state: State, since: int, until: int) -> dict[str, RequestCounts]:
    """Count requests by the arm they were assigned to, and the slow ones once the limit is known."""
    limit = state.evidence.slow_threshold_ms
    rows = reader.all(
        queries.COUNTS,
        rollout=state.id,
        since=since,
        until=until,
        canary_limit=limit,
        production_limit=None if limit is None else limit / state.policy.max_latency_ratio,
    )
    counts = {arm: RequestCounts() for arm in ARMS}
    return counts | {row.arm: RequestCounts(row.requests, row.errors, row.timed, row.slow) for row in rows}


def _windows(
    reader: DeadlineConnection, state: State, counted: Sequence[SessionSample], now: datetime
) -> dict[str, HealthWindow]:
    """Return both arms over the health window: scores counted before and now, and the newest requests."""
    since = now - timedelta(seconds=state.policy.health_window_seconds)
    scores = {row.arm: row for row in reader.all(queries.WINDOW_SCORES, rollout=state.id, since=since)}
    requests = reader.all(
        queries.WINDOW_REQUESTS, rollout=state.id, since=since, max_rows=MAX_WINDOW_REQUESTS
    )
    recent = [sample.score for sample in counted if sample.served_at > since]
    return {
        row.arm: _window([score for score in recent if score.arm == row.arm], scores.get(row.arm), row)
        for row in requests
    }


def _window(new: Sequence[SessionScore], old: Any, requests: Any) -> HealthWindow:
    counted = (old.sessions, old.rates, old.varied, old.variances or 0.0) if old else ()
    totals = ArmTotals(*counted).add(new, RequestCounts(requests.requests, requests.errors))
    return HealthWindow(**vars(totals), timed=requests.timed, latency_p95=requests.latency_p95)

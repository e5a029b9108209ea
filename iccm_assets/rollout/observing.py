"""What the controller sees of a rollout: the `Observation` for a state's cursor, from a few bounded queries.

Nothing is counted twice and nothing is lost by coming late (docs/rollout.md):

- requests are counted in the order in which the transactions that stored them ended, so one that a
  gateway's spool delivers hours later is counted when it arrives, whatever its date says;
- scored answers are told by their rows in `rollout_samples`: each is counted there as its session's score,
  or left out with its reason, once; likewise the replayed pairs in `rollout_pairs`.

`Reading` holds those rows; the controller stores them with the decision, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import InputError
from iccm_assets.rollout import queries
from iccm_assets.rollout.cursor import Cursor, advanced
from iccm_assets.rollout.observation import Counts, Observation, Paired, Scored, Window
from iccm_assets.rollout.policy import WEIGHTS
from iccm_assets.rollout.reader import Reader
from iccm_assets.rollout.state import State
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.replicas import LIVE

# What one observation takes at most; the rest waits for the next one.
MOST_REQUESTS = 100_000
MOST_ANSWERS = 2_000
MOST_PAIRS = 1_000
# A window's rate and p95 need no more than its newest requests.
WINDOW_REQUESTS = 5_000

LATER, BOTH_ARMS, ELSEWHERE, IMPOSSIBLE = "later_answer", "both_arms", "elsewhere", "impossible"
_HIGHEST_VARIANCE = 0.25


@dataclass(frozen=True)
class Sample:
    """One scored answer; ``left_out`` is None where it is its session's score, else the reason why not."""

    requirement_id: int
    session_key: str
    arm: str
    stage: int
    pass_rate: float
    variance: float | None
    served_at: datetime
    left_out: str | None


@dataclass(frozen=True)
class Reading:
    """An observation, and the rows that say what it counted."""

    observation: Observation
    samples: tuple[Sample, ...] = ()
    pairs: tuple[tuple[str, Paired], ...] = ()

    def store(self, conn: sa.Connection, rollout_id: int, revision: int) -> None:
        """Store what was counted; in the transaction that decides on it."""
        mine = {"rollout_id": rollout_id, "revision": revision}
        if self.samples:
            conn.execute(t.rollout_samples.insert(), [{**vars(one), **mine} for one in self.samples])
        if self.pairs:
            rows = [{"item": item, **pair._asdict(), **mine} for item, pair in self.pairs]
            conn.execute(t.rollout_pairs.insert(), rows)


def observe(
    conn: sa.Connection, state: State, settings: Settings, now: datetime, *, seconds: float = 5.0
) -> Reading:
    """One reading of the database for this state, in at most so many seconds; changes nothing.

    Raises ``DatabaseError`` or the driver's error when it takes longer.
    """
    reader = Reader(conn, seconds)
    replicas = reader.mappings(sa.text(LIVE))
    ready = sum(state.candidate in row["ready_versions"] for row in replicas)
    try:
        before = Cursor.of(state.cursor)
    except InputError as error:
        look = Observation(state.cursor, state.cursor, None, len(replicas), ready, faults=(error.detail,))
        return Reading(look)
    cursor = _advance(reader, state, before, now)
    samples = _samples(reader, state, cursor.first)
    counted = [one for one in samples if one.left_out is None]
    pairs = _pairs(reader, state, settings, now)
    counts = _counts(reader, state, before.next if before else 0, cursor.next)
    windows = _windows(reader, state, counted, now)
    waiting = reader.one(queries.PENDING, rollout=state.id, first=cursor.first).since
    observation = Observation(
        since=state.cursor,
        until=str(cursor),
        fresh_at=min(cursor.settled, now if waiting is None else waiting.astimezone(UTC)),
        replicas=len(replicas),
        ready=ready,
        sessions=tuple(Scored(one.arm, one.stage, one.pass_rate, one.variance) for one in counted),  # type: ignore[arg-type]
        replay=tuple(pair for _, pair in pairs),
        canary=counts["canary"],
        production=counts["production"],
        canary_window=windows["canary"],
        production_window=windows["production"],
    )
    return Reading(observation, samples, pairs)


def _advance(reader: Reader, state: State, before: Cursor | None, now: datetime) -> Cursor:
    """How far this observation counts requests: to the oldest transaction still running, or to its fill."""
    at = reader.one(queries.TRANSACTIONS)
    since = before.next if before else 0
    full = reader.all(queries.FULL, rollout=state.id, since=since, most=MOST_REQUESTS)
    first = before.first if before else reader.one(queries.FIRST).first
    until = min([at.oldest, *(row.stored_in for row in full if row.stored_in > since)])
    return advanced(before, first=first, until=until, oldest=at.oldest, newest=at.newest, now=now)


def _samples(reader: Reader, state: State, first: int) -> tuple[Sample, ...]:
    """The scored answers nothing was made of yet, in the order they were served."""
    rows = reader.mappings(queries.ANSWERS, rollout=state.id, first=first, most=MOST_ANSWERS)
    if not rows:
        return ()
    starts = [(row.timestamp, row.weight) for row in reader.all(queries.STAGES, rollout=state.id)]
    found: list[Sample] = []
    taken: set[str] = set()
    for row in rows:
        left_out = _left_out(row, taken)
        if left_out is None:
            taken.add(row["session_key"])
        served_at = row["served_at"].astimezone(UTC)
        found.append(
            Sample(
                requirement_id=row["id"],
                session_key=row["session_key"],
                arm=row["arm"],
                stage=stage_at(served_at, starts),
                pass_rate=row["pass_rate"],
                variance=row["variance"],
                served_at=served_at,
                left_out=left_out,
            )
        )
    return tuple(found)


def _left_out(row: Mapping[str, Any], taken: set[str]) -> str | None:
    """Why an answer is not its session's score (R11); None when it is. Pure."""
    if row["counted"] or row["session_key"] in taken:
        return LATER
    if row["both_arms"]:
        return BOTH_ARMS
    if row["elsewhere"]:
        return ELSEWHERE
    variance = row["variance"]
    return IMPOSSIBLE if variance is not None and variance > _HIGHEST_VARIANCE else None


def stage_at(moment: datetime, starts: Sequence[tuple[datetime, float]]) -> int:
    """The stage a moment belongs to, from when the stages' weights began, oldest first. Pure."""
    stage = 1
    for since, weight in starts:
        if since <= moment:
            stage = next(number for number, share in WEIGHTS.items() if share == weight)
    return stage


def _pairs(reader: Reader, state: State, settings: Settings, now: datetime) -> tuple[tuple[str, Paired], ...]:
    """Production-holdout items measured for both versions, while there is little traffic (R11)."""
    pace = reader.one(queries.PACE, since=now - timedelta(days=1)).sessions
    if pace >= settings.rollout.replay_below_sessions:
        return ()
    rows = reader.all(
        queries.PAIRS,
        rollout=state.id,
        candidate=state.candidate,
        production=state.production,
        quorum=settings.orchestra_quorum,
        most=MOST_PAIRS,
    )
    return tuple((row.item, Paired(row.canary, row.production)) for row in rows)


def _counts(reader: Reader, state: State, since: int, until: int) -> dict[str, Counts]:
    """Requests by the arm they were assigned to; how fast they were only once a bound is known."""
    bound = state.slow_after
    rows = reader.all(
        queries.COUNTS,
        rollout=state.id,
        since=since,
        until=until,
        bound=bound,
        beside=None if bound is None else bound / state.policy.max_latency_ratio,
    )
    found = {row.arm: Counts(row.requests, row.errors, row.timed, row.slow) for row in rows}
    return {arm: found.get(arm, Counts()) for arm in ("canary", "production")}


def _windows(reader: Reader, state: State, counted: Sequence[Sample], now: datetime) -> dict[str, Window]:
    """Either arm over the health window: scores counted before and now, and the newest requests."""
    since = now - timedelta(seconds=state.policy.health_window_seconds)
    scored = {row.arm: row for row in reader.all(queries.WINDOW_SCORES, rollout=state.id, since=since)}
    asked = {
        row.arm: row
        for row in reader.all(queries.WINDOW_REQUESTS, rollout=state.id, since=since, most=WINDOW_REQUESTS)
    }
    return {
        arm: _window(
            [one for one in counted if one.arm == arm and one.served_at > since], scored.get(arm), asked[arm]
        )
        for arm in ("canary", "production")
    }


def _window(new: Sequence[Sample], old: Any, asked: Any) -> Window:
    variances = [one.variance for one in new if one.variance is not None]
    sessions, rates = len(new), sum(one.pass_rate for one in new)
    varied, spread = len(variances), sum(variances)
    if old is not None:
        sessions, rates = sessions + old.sessions, rates + old.rates
        varied, spread = varied + old.varied, spread + (old.variances or 0.0)
    return Window(
        sessions=sessions,
        pass_rate=min(1.0, rates / sessions) if sessions else None,
        variance=spread / varied if varied else None,
        requests=asked.requests,
        errors=asked.errors,
        timed=asked.timed,
        latency_p95=asked.latency_p95,
    )

"""The state of the platform in a few queries, for `iccm status` and the report of a demo."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, text

from iccm_assets.store.tables import LIVE_STATES

TABLES = (
    "conversations",
    "requirements",
    "reconstructions",
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
class Version:
    """A model version in the list of the newest."""

    version: str
    status: str
    parent_version: str | None
    created_at: datetime
    deployed_at: datetime | None


@dataclass(frozen=True)
class Retrain:
    """A training run in the list of the newest."""

    id: int
    trigger: str
    status: str
    attempt: int
    timestamp: datetime
    candidate_version: str | None
    improvement: float | None
    notes: str | None


@dataclass(frozen=True)
class Day:
    """One UTC day's way through the data assets, in conversations."""

    day: date
    captured: int
    scored: int
    filtered: int
    pool: int
    left_out: int


@dataclass(frozen=True)
class Rollout:
    """The live rollout."""

    id: int
    candidate: str
    production: str
    state: str
    stage: int
    weight: float


@dataclass(frozen=True)
class Overview:
    """What the database says about the platform at ``now``; newest first everywhere."""

    now: datetime
    production: Version | None
    versions: tuple[Version, ...]
    retrains: tuple[Retrain, ...]
    rollout: Rollout | None
    days: tuple[Day, ...]
    rows: dict[str, int]
    undelivered_alerts: int


_VERSIONS = """
    SELECT version, status, parent_version, created_at, deployed_at FROM iccm.model_versions
"""
_RETRAINS = text(
    """
    SELECT id, trigger, status, attempt, "timestamp", candidate_version, improvement, notes
    FROM iccm.phase4_training_runs ORDER BY id DESC LIMIT :limit
    """
)
_ROLLOUT = text(
    f"""
    SELECT id, candidate, production, state, stage, weight FROM iccm.rollouts
    WHERE state IN {LIVE_STATES}
    """
)
# The days come from the index on `timestamp`; each then costs its own rows, not the table's.
_DAYS = text(
    """
    WITH newest AS (SELECT (max("timestamp") AT TIME ZONE 'UTC')::date AS day FROM iccm.conversations),
    days AS (SELECT (day - back)::date AS day, (day - back)::timestamp AT TIME ZONE 'UTC' AS since
             FROM newest, generate_series(0, :limit - 1) AS back)
    SELECT d.day, c.captured, c.scored,
           (SELECT count(*) FROM iccm.filtered_conversations f WHERE f.day = d.day),
           (SELECT count(*) FROM iccm.phase4_training_data t WHERE t.day = d.day),
           (SELECT count(DISTINCT conversation_id) FROM iccm.phase4_rejections r WHERE r.day = d.day)
    FROM days d CROSS JOIN LATERAL (
        SELECT count(*) AS captured,
               count(*) FILTER (WHERE EXISTS (
                   SELECT FROM iccm.requirements r WHERE r.conversation_id = c.id
                     AND r.kind = 'accepted' AND r.scored_at IS NOT NULL)) AS scored
        FROM iccm.conversations c
        WHERE c."timestamp" >= d.since AND c."timestamp" < d.since + interval '1 day') c
    WHERE d.day IS NOT NULL
    ORDER BY d.day DESC
    """
)


def overview(conn: Connection, *, limit: int = 7) -> Overview:
    """The newest ``limit`` versions, retrains and days, the live rollout, and how many rows there are."""
    newest = text(f"{_VERSIONS} ORDER BY created_at DESC, version DESC LIMIT :limit")
    serving = conn.execute(text(f"{_VERSIONS} WHERE status = 'production'")).one_or_none()
    rollout = conn.execute(_ROLLOUT).one_or_none()
    return Overview(
        now=conn.execute(text("SELECT iccm.now()")).scalar_one(),
        production=None if serving is None else Version(*serving),
        versions=tuple(Version(*row) for row in conn.execute(newest, {"limit": limit})),
        retrains=tuple(Retrain(*row) for row in conn.execute(_RETRAINS, {"limit": limit})),
        rollout=None if rollout is None else Rollout(*rollout),
        days=tuple(Day(*row) for row in conn.execute(_DAYS, {"limit": limit})),
        rows={name: _count(conn, name) for name in TABLES},
        undelivered_alerts=conn.execute(
            text("SELECT count(*) FROM iccm.alerts WHERE delivered_at IS NULL")
        ).scalar_one(),
    )


def _count(conn: Connection, table: str) -> int:
    counted: int = conn.execute(text(f"SELECT count(*) FROM iccm.{table}")).scalar_one()
    return counted

"""Carrying the retention out (V3): files by ``retention.decide``, rows older than a year in small batches.

Versions are decided on and removed under the deployment's lock, so that none is deployed, taken back or used
as a base while it goes. Whoever wants to load a removed checkpoint is told by name that it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.governance.retention import Fate, Needs, Stored, Version, decide
from iccm_assets.learning import training_runs
from iccm_assets.learning.dataset import DatasetStore
from iccm_assets.learning.directories import STAGING, remove_tree
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

DELETED_AT_ONCE = 5_000

# A candidate that has passed cannot be deployed while a rollout is live: its time begins when that has ended.
_VERSIONS = sa.text(
    """
    SELECT m.version, m.parent_version, m.status, m.digest, r.dataset_digest,
        greatest(
            m.created_at,
            (SELECT max(g.created_at) FROM iccm.gate_verdicts g WHERE g.version = m.version),
            (SELECT max(o.closed_at) FROM iccm.rollouts o WHERE o.candidate = m.version),
            (SELECT max(b."timestamp") FROM iccm.rollback_events b WHERE b.from_version = m.version),
            (SELECT max(o.closed_at) FROM iccm.rollouts o WHERE o.production = passed.against)
        ) AS since,
        (SELECT o.id FROM iccm.rollouts o
         WHERE o.production = passed.against AND o.state IN ('ramping', 'holding', 'paused', 'baking')
        ) AS waits_for
    FROM iccm.model_versions m
    LEFT JOIN LATERAL (
        SELECT g.production_version AS against
        FROM (SELECT status, production_version FROM iccm.gate_verdicts
              WHERE version = m.version ORDER BY id DESC LIMIT 1) g
        WHERE g.status = 'pass' AND m.status = 'candidate'
    ) passed ON true
    LEFT JOIN LATERAL (
        SELECT dataset_digest FROM iccm.phase4_training_runs r
        WHERE r.candidate_version = m.version ORDER BY id DESC LIMIT 1
    ) r ON true
    ORDER BY m.version
    """
)
_NEEDED = sa.text(
    """
    SELECT candidate, production FROM iccm.rollouts
    WHERE state IN ('ramping', 'holding', 'paused', 'baking')
    """
)
_UNDER_WAY = sa.text(
    """
    SELECT base_version, requested_base, candidate_version, dataset_digest FROM iccm.phase4_training_runs
    WHERE status IN ('requested', 'waiting', 'running') OR (status = 'failed' AND attempt < :attempts)
    """
)
# Rows of a live rollout, and the stored scores of a version that serves (its baseline), stay at any age.
_OLD_ROWS = {
    "requests": """
        DELETE FROM iccm.requests WHERE ctid = ANY(ARRAY(
            SELECT q.ctid FROM iccm.requests q
            WHERE q.created_at < :before AND NOT EXISTS (
                SELECT FROM iccm.rollouts o
                WHERE o.id = q.rollout_id AND o.state IN ('ramping', 'holding', 'paused', 'baking'))
            LIMIT :batch))
    """,
    "reconstructions": """
        DELETE FROM iccm.reconstructions WHERE ctid = ANY(ARRAY(
            SELECT q.ctid FROM iccm.reconstructions q WHERE q.created_at < :before LIMIT :batch))
    """,
    "canary_results": """
        DELETE FROM iccm.canary_results WHERE ctid = ANY(ARRAY(
            SELECT q.ctid FROM iccm.canary_results q
            WHERE q.created_at < :before AND NOT (q.version = ANY(:kept))
              AND NOT (q.model_digest = ANY(:kept_digests))
            LIMIT :batch))
    """,
}


@dataclass
class Report:
    """What went and what stayed."""

    fates: list[Fate] = field(default_factory=list)
    freed_bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    staging: list[str] = field(default_factory=list)

    @property
    def removed(self) -> list[Fate]:
        return [one for one in self.fates if one.goes]


def tidy(engine: sa.Engine, settings: Settings) -> Report:
    """Remove what V3 lets go. Stopped halfway, the next call goes on."""
    report = Report()
    _remove_files(engine, settings, report)
    report.staging = ModelStore(settings.home).sweep()
    with engine.connect() as conn:
        kept = _serving(conn)
    for table, statement in _OLD_ROWS.items():
        report.rows[table] = _delete_rows(engine, settings, statement, kept)
    return report


def fates(conn: sa.Connection, settings: Settings) -> list[Fate]:
    """What `tidy` would do with the files now."""
    versions = [Version(*row) for row in conn.execute(_VERSIONS)]
    store, sets = ModelStore(settings.home), DatasetStore(settings.home).root
    models = [_stored(store.root / digest) for digest in store.digests()]
    return decide(
        versions, _needs(conn, settings), models, list(_datasets(sets)), now(conn), settings.retention
    )


def _remove_files(engine: sa.Engine, settings: Settings, report: Report) -> None:
    models, sets = ModelStore(settings.home).root, DatasetStore(settings.home).root
    with engine.begin() as conn:
        conn.execute(sa.text("select pg_advisory_xact_lock(hashtext('iccm.deployment'))"))
        training_runs.lock(conn)
        report.fates = fates(conn, settings)
        for fate in report.removed:
            directory = (models if fate.kind == "model" else sets) / fate.name
            report.freed_bytes += sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
            if fate.kind == "model":
                _mark(conn, fate)
            remove_tree(directory)


def _mark(conn: sa.Connection, fate: Fate) -> None:
    """Say in the version's row that its weights are gone."""
    mv = t.model_versions
    told = {"removed": {"at": now(conn).isoformat(), "reason": fate.reason}}
    merged = mv.c.metrics.op("||")(sa.cast(told, JSONB))
    conn.execute(mv.update().where(mv.c.digest == fate.name).values(metrics=merged))


def _needs(conn: sa.Connection, settings: Settings) -> Needs:
    versions = {name for row in conn.execute(_NEEDED) for name in row}
    datasets = set()
    for row in conn.execute(_UNDER_WAY, {"attempts": settings.triggers.max_attempts}):
        versions |= {row.base_version, row.requested_base, row.candidate_version}
        datasets.add(row.dataset_digest)
    return Needs(frozenset(filter(None, versions)), frozenset(filter(None, datasets)))


def _serving(conn: sa.Connection) -> list[sa.Row[Any]]:
    mv = t.model_versions.c
    query = sa.select(mv.version, mv.digest, mv.parent_version).where(mv.status.in_(("production", "canary")))
    return list(conn.execute(query))


def _delete_rows(engine: sa.Engine, settings: Settings, statement: str, kept: list[sa.Row[Any]]) -> int:
    deleted = 0
    values: dict[str, Any] = {"batch": DELETED_AT_ONCE}
    if ":kept" in statement:
        names = {name for row in kept for name in (row.version, row.parent_version) if name}
        values |= {"kept": sorted(names), "kept_digests": sorted(row.digest for row in kept)}
    while True:
        with engine.begin() as conn:
            before = now(conn) - settings.retention.history
            done = conn.execute(sa.text(statement), {**values, "before": before}).rowcount
        deleted += done
        if done < DELETED_AT_ONCE:
            return deleted


def _datasets(root: Path) -> Iterator[Stored]:
    if root.is_dir():
        yield from (_stored(one) for one in sorted(root.iterdir()) if one.is_dir() and one.name != STAGING)


def _stored(directory: Path) -> Stored:
    """Files are as old as the machine's clock says, not the platform's."""
    return Stored(directory.name, max(0.0, time.time() - directory.stat().st_mtime) / 86400)

"""Apply the retention rules: files by ``retention.decide_retention``, old rows in small batches.

Versions are decided on and deleted under the deployment's lock, so that none is deployed, rolled back or used
as a base while it is deleted. Loading a deleted checkpoint raises an error that says so (V3).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import sqlalchemy as sa

from iccm_assets.atomic_directories import STAGING
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.governance.replacement_plan import IN_SERVICE
from iccm_assets.governance.retention import (
    RequiredArtifacts,
    RetainableVersion,
    RetentionDecision,
    StoredDirectory,
    decide_retention,
)
from iccm_assets.object_storage import KINDS
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import open_storage
from iccm_assets.training.dataset import DatasetStore

BATCH_SIZE = 5_000

# A candidate that passed cannot be deployed while a rollout is live: its retention period starts when the
# rollout has ended.
_VERSIONS = sa.text(
    f"""
    select m.version, m.parent_version, m.status, m.digest, r.dataset_digest,
        greatest(
            m.created_at,
            (select max(g.created_at) from iccm.gate_verdicts g where g.version = m.version),
            (select max(o.closed_at) from iccm.rollouts o where o.candidate = m.version),
            (select max(b."timestamp") from iccm.rollback_events b where b.from_version = m.version),
            (select max(o.closed_at) from iccm.rollouts o where o.production = passed.against)
        ) as since,
        (select o.id from iccm.rollouts o
         where o.production = passed.against and o.state in {LIVE_STATES}
        ) as waits_for
    from iccm.model_versions m
    left join lateral (
        select g.production_version as against
        from (select status, production_version from iccm.gate_verdicts
              where version = m.version order by id desc limit 1) g
        where g.status = 'pass' and m.status = 'candidate'
    ) passed on true
    left join lateral (
        select dataset_digest from iccm.phase4_training_runs r
        where r.candidate_version = m.version order by id desc limit 1
    ) r on true
    order by m.version
    """
)
_LIVE_ROLLOUTS = sa.text(f"select candidate, production from iccm.rollouts where state in {LIVE_STATES}")
_UNFINISHED_RUNS = sa.text(
    """
    select base_version, requested_base, candidate_version, dataset_digest from iccm.phase4_training_runs
    where status in ('requested', 'waiting', 'running') or (status = 'failed' and attempt < :attempts)
    """
)
# Rows of a live rollout, the stored scores of a serving version (its baseline) and the answers that a version
# was trained on (its lineage) are retained at any age.
_OLD_ROWS = {
    "requests": f"""
        delete from iccm.requests where ctid = any(array(
            select q.ctid from iccm.requests q
            where q.created_at < :before and not exists (
                select from iccm.rollouts o
                where o.id = q.rollout_id and o.state in {LIVE_STATES})
            limit :batch))
    """,
    "reconstructions": """
        delete from iccm.reconstructions where ctid = any(array(
            select q.ctid from iccm.reconstructions q where q.created_at < :before limit :batch))
    """,
    "canary_results": """
        delete from iccm.canary_results where ctid = any(array(
            select q.ctid from iccm.canary_results q
            where q.created_at < :before and not (q.version = any(:retained))
              and not (q.model_digest = any(:retained_digests))
            limit :batch))
    """,
    "sampled_answers": """
        delete from iccm.sampled_answers where ctid = any(array(
            select q.ctid from iccm.sampled_answers q
            where q.created_at < :before and not exists (
                select from iccm.training_run_examples e where e.sampled_answer_id = q.id)
            limit :batch))
    """,
}


@dataclass
class MaintenanceReport:
    """What was deleted and what was retained."""

    decisions: list[RetentionDecision] = field(default_factory=list)
    freed_bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    staging: list[str] = field(default_factory=list)

    @property
    def deleted(self) -> list[RetentionDecision]:
        """The deleted checkpoints and datasets."""
        return [decision for decision in self.decisions if decision.delete]


def apply_retention(engine: sa.Engine, settings: Settings) -> MaintenanceReport:
    """Delete what is past its retention. Stopped halfway, the next call continues."""
    report = MaintenanceReport()
    _delete_files(engine, settings, report)
    _clean_storage(settings, report)
    mv = t.model_versions.c
    with engine.connect() as conn:
        query = sa.select(mv.version, mv.parent_version, mv.digest).where(mv.status.in_(IN_SERVICE))
        serving = conn.execute(query).all()
    retained = {
        "retained": sorted({name for row in serving for name in row[:2] if name}),
        "retained_digests": sorted(row.digest for row in serving),
    }
    for table, statement in _OLD_ROWS.items():
        report.rows[table] = _delete_rows(engine, settings, statement, retained)
    return report


def retention_decisions(conn: sa.Connection, settings: Settings) -> list[RetentionDecision]:
    """Return what `apply_retention` would decide on the files now."""
    versions = [RetainableVersion(*row) for row in conn.execute(_VERSIONS)]
    store, datasets = ModelStore.open(settings), DatasetStore.open(settings)
    models = _stored(
        (store.root / digest for digest in store.list_digests()), store.list_shared(), store.list_bases()
    )
    directories = sorted(datasets.root.iterdir()) if datasets.root.is_dir() else []
    local = (each for each in directories if each.is_dir() and each.name != STAGING)
    stored = _stored(local, datasets.list_shared())
    return decide_retention(
        versions, _load_required_artifacts(conn, settings), models, stored, now(conn), settings.retention
    )


def _delete_files(engine: sa.Engine, settings: Settings, report: MaintenanceReport) -> None:
    models = ModelStore.open(settings)
    stores: dict[str, ModelStore | DatasetStore] = {
        "model": models,
        "training set": DatasetStore.open(settings),
    }
    mv = t.model_versions
    with engine.begin() as conn:
        acquire_lock(conn, Lock.BACKUP)  # first: a deployment does not wait for a backup
        acquire_lock(conn, Lock.DEPLOYMENT)
        acquire_lock(conn, Lock.TRAINING_RUNS)
        report.decisions = retention_decisions(conn, settings)
        # An adapter before its base, which the store would not delete before it.
        adapters = models.list_bases()
        for decision in sorted(report.deleted, key=lambda decision: decision.name not in adapters):
            if decision.kind == "model":
                # The version's row says that its weights are deleted.
                removed = {"removed": {"at": now(conn).isoformat(), "reason": decision.reason}}
                metrics = mv.c.metrics.op("||")(sa.literal(removed, mv.c.metrics.type))
                conn.execute(mv.update().where(mv.c.digest == decision.name).values(metrics=metrics))
            report.freed_bytes += stores[decision.kind].delete(decision.name)


def _clean_storage(settings: Settings, report: MaintenanceReport) -> None:
    """Remove what killed publishers left, and what other homes have erased; keep the cache in its size."""
    report.staging = ModelStore(settings.home).remove_stale_staging()
    storage = open_storage(settings)
    if storage is None:
        return
    for kind in KINDS:
        report.staging += storage.storage.remove_abandoned(kind)
        storage.prune(kind)
    storage.make_room(0)


def _load_required_artifacts(conn: sa.Connection, settings: Settings) -> RequiredArtifacts:
    unfinished = conn.execute(_UNFINISHED_RUNS, {"attempts": settings.triggers.max_attempts}).all()
    versions = {name for row in conn.execute(_LIVE_ROLLOUTS) for name in row}
    versions |= {name for row in unfinished for name in row[:3]}
    datasets = {row.dataset_digest for row in unfinished}
    return RequiredArtifacts(frozenset(filter(None, versions)), frozenset(filter(None, datasets)))


def _delete_rows(
    engine: sa.Engine, settings: Settings, statement: str, retained: dict[str, list[str]]
) -> int:
    deleted, batch = 0, BATCH_SIZE
    while batch == BATCH_SIZE:
        with engine.begin() as conn:
            values = {"before": now(conn) - settings.retention.history_retention, "batch": BATCH_SIZE}
            batch = conn.execute(sa.text(statement), {**retained, **values}).rowcount
        deleted += batch
    return deleted


def _stored(
    directories: Iterable[Path],
    shared: Mapping[str, datetime],
    bases: Mapping[str, str] = MappingProxyType({}),
) -> list[StoredDirectory]:
    """Return directories with their age by the machine's clock, which dates files, unlike the platform's.

    ``shared`` is what the storage has, and since when: a copy of it in the home may be younger. ``bases`` are
    those of the adapters.
    """
    written = {each.name: each.stat().st_mtime for each in directories}
    written |= {name: modified.timestamp() for name, modified in shared.items()}
    return [
        StoredDirectory(name, max(0.0, time.time() - at) / 86400, bases.get(name))
        for name, at in sorted(written.items())
    ]

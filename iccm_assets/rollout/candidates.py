"""Which version a step of a retrain is about: the one this run trained, one named by hand, or the newest."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.errors import ModelNotFound
from iccm_assets.learning import versions
from iccm_assets.store import tables as t


def trained_in(engine: sa.Engine, dagster_run_id: str, named: str = "") -> str:
    """The version's name; raises ``ModelNotFound`` when there is no candidate at all."""
    runs = t.phase4_training_runs.c
    with engine.connect() as conn:
        if named:
            return versions.get(conn, named).version
        trained = conn.execute(
            sa.select(runs.candidate_version).where(runs.dagster_run_id == dagster_run_id)
        ).scalar_one_or_none()
        newest = versions.newest_candidate(conn)
    if trained is None and newest is None:
        raise ModelNotFound(
            "no candidate", hint="Materialize fine_tuned_checkpoint first, or name a version."
        )
    return trained or newest.version  # type: ignore[union-attr]

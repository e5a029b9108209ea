"""Which version a step of a retrain works on: the one this run trained, one named by hand, or the newest."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.errors import ModelNotFoundError
from iccm_assets.learning import versions
from iccm_assets.store import tables as t


def resolve_candidate(engine: sa.Engine, dagster_run_id: str, version: str = "") -> str:
    """Return the version's name; raises ``ModelNotFound`` when there is no candidate at all."""
    runs = t.phase4_training_runs.c
    query = sa.select(runs.candidate_version).where(runs.dagster_run_id == dagster_run_id)
    with engine.connect() as conn:
        if version:
            return versions.get_version(conn, version).version
        if trained := conn.execute(query).scalar_one_or_none():
            return str(trained)
        newest = versions.latest_candidate(conn)
    if newest is None:
        raise ModelNotFoundError(
            "no candidate", hint="Materialize fine_tuned_checkpoint first, or name a version."
        )
    return newest.version

"""The registry of model versions: rows of `model_versions`, the only source of a version's status.

The weights are in the content-addressed model store; a row says what they are used for. Changing the version
in production is the task of `rollout.deployment`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.store import tables as t
from iccm_assets.store.clock import now
from iccm_assets.store.locks import Lock, acquire_lock
from iccm_assets.store.naming import resolve_version


@dataclass(frozen=True)
class ModelVersion:
    """One row of `model_versions`."""

    version: str
    parent_version: str | None
    status: str
    digest: str
    path: str
    metrics: dict[str, Any]
    created_at: datetime
    deployed_at: datetime | None


_SELECT = sa.select(*(t.model_versions.c[field.name] for field in fields(ModelVersion)))


def get_version(conn: sa.Connection, version: str) -> ModelVersion:
    """Return a version by its name, ``production``, or the start of its digest.

    Raises ``VersionNotFound``, which lists the versions that exist.
    """
    name = resolve_version(conn, version)
    return ModelVersion(*conn.execute(_SELECT.where(t.model_versions.c.version == name)).one())


def get_production_version(conn: sa.Connection) -> ModelVersion | None:
    """Return the version in production; None before the platform is bootstrapped."""
    row = conn.execute(_SELECT.where(t.model_versions.c.status == "production")).one_or_none()
    return ModelVersion(*row) if row else None


def register_version(
    conn: sa.Connection,
    *,
    digest: str,
    path: str,
    parent: str | None,
    status: str,
    metrics: dict[str, Any] | None = None,
) -> ModelVersion:
    """Register a published model; the same digest under the same parent keeps its name.

    Names count up: ``v1-1a2b3c4d``, ``v2-…``; the second part is the start of the digest.
    """
    mv = t.model_versions
    acquire_lock(conn, Lock.MODEL_VERSIONS)
    name = conn.execute(
        sa.select(mv.c.version).where(mv.c.digest == digest, mv.c.parent_version.is_not_distinct_from(parent))
    ).scalar_one_or_none()
    if name is None:
        number = conn.execute(sa.select(sa.func.count()).select_from(mv)).scalar_one() + 1
        name = f"v{number}-{digest[:8]}"
        conn.execute(
            mv.insert().values(
                version=name,
                parent_version=parent,
                status=status,
                digest=digest,
                path=path,
                metrics=metrics or {},
                created_at=now(conn),
            )
        )
    return get_version(conn, name)


def latest_candidate(conn: sa.Connection) -> ModelVersion | None:
    """Return the version registered last that is still open (candidate or inconclusive)."""
    row = conn.execute(
        _SELECT.where(t.model_versions.c.status.in_(["candidate", "inconclusive"]))
        .order_by(t.model_versions.c.created_at.desc())
        .limit(1)
    ).one_or_none()
    return ModelVersion(*row) if row else None

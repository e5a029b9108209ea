"""The registry of model versions: rows of `model_versions`, the only source of a version's status.

The weights are in the content-addressed model store; a row says what they are used for. Changing the version
in production is the task of `rollout.deployment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import ModelNotFoundError, VersionNotFoundError
from iccm_assets.registry.manifest import is_digest
from iccm_assets.settings import get_settings


@dataclass(frozen=True)
class ModelVersion:
    """One row of `model_versions`; its path is absolute in this process's home.

    Its kind is ``full``, or ``adapter`` with the digest of the whole model that it changes.
    """

    version: str
    parent_version: str | None
    status: str
    digest: str
    path: str
    metrics: dict[str, Any]
    created_at: datetime
    deployed_at: datetime | None
    kind: str = "full"
    base_digest: str | None = None


PRODUCTION = "production"
MAX_LISTED_VERSIONS = 8
# Digests are hexadecimal; left() and length() compare literally, whereas `like` would interpret % and _.
_MATCHING_VERSIONS = sa.text(
    """
    select version from iccm.model_versions
    where version = :name or left(digest, length(cast(:name as text))) = :name
    order by version = :name desc limit 3
    """
)
_ALL_VERSIONS = sa.text("select version from iccm.model_versions order by created_at desc, version desc")
_SELECT = sa.select(*(t.model_versions.c[field.name] for field in fields(ModelVersion)))


def resolve_path(path: str) -> str:
    """Return a stored path of a model as an absolute one: the store is in the home, wherever that lies."""
    return str(get_settings().home / path)


def relative_path(path: str) -> str:
    """Return the path of a model as it is stored: relative to the home, unless it lies elsewhere.

    What another home has published in the storage is downloaded to the same place of this one.
    """
    settings, name = get_settings(), Path(path).name
    if settings.storage and is_digest(name) and Path(path).parent.name == "models":
        return f"models/{name}"
    home = settings.home
    return str(Path(path).relative_to(home)) if Path(path).is_relative_to(home) else path


def _from_row(row: sa.Row[Any]) -> ModelVersion:
    return ModelVersion(**{**row._mapping, "path": resolve_path(row.path)})


def get_version(conn: sa.Connection, version: str) -> ModelVersion:
    """Return a version by its name, ``production``, or the start of its digest.

    Raises ``VersionNotFoundError``, which lists the versions that exist.
    """
    name = resolve_version(conn, version)
    return _from_row(conn.execute(_SELECT.where(t.model_versions.c.version == name)).one())


def get_production_version(conn: sa.Connection) -> ModelVersion | None:
    """Return the version in production; None before the platform is bootstrapped."""
    row = conn.execute(_SELECT.where(t.model_versions.c.status == PRODUCTION)).one_or_none()
    return _from_row(row) if row else None


def register_version(
    conn: sa.Connection,
    *,
    digest: str,
    path: str,
    parent: str | None,
    status: str,
    metrics: dict[str, Any] | None = None,
    base_digest: str | None = None,
) -> ModelVersion:
    """Register a published model; the same digest with the same parent keeps its name.

    With a ``base_digest`` it is an adapter of that model.
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
                kind="full" if base_digest is None else "adapter",
                base_digest=base_digest,
                parent_version=parent,
                status=status,
                digest=digest,
                path=relative_path(path),
                metrics=metrics or {},
                created_at=now(conn),
            )
        )
    return get_version(conn, name)


def merge_metrics(conn: sa.Connection, version: str, **metrics: Any) -> None:
    """Set these keys of a version's metrics; the others stay."""
    mv = t.model_versions
    merged = mv.c.metrics.op("||")(sa.literal(metrics, mv.c.metrics.type))
    conn.execute(mv.update().where(mv.c.version == version).values(metrics=merged))


def get_latest_candidate(conn: sa.Connection) -> ModelVersion | None:
    """Return the version registered last that is still open (candidate or inconclusive)."""
    row = conn.execute(
        _SELECT.where(t.model_versions.c.status.in_(["candidate", "inconclusive"]))
        .order_by(t.model_versions.c.created_at.desc())
        .limit(1)
    ).one_or_none()
    return _from_row(row) if row else None


def resolve_version(conn: sa.Connection, name: str) -> str:
    """Resolve a version's name; raises ``VersionNotFoundError``, which lists the existing versions."""
    if name == PRODUCTION:
        production = get_production_version(conn)
        if production is None:
            raise VersionNotFoundError(
                "there is no version in production yet", hint="`iccm retrain` starts with the base model."
            )
        return production.version
    # PostgreSQL text cannot hold NUL: the driver would raise instead of finding nothing.
    valid = name and "\x00" not in name
    matches = conn.execute(_MATCHING_VERSIONS, {"name": name}).scalars().all() if valid else []
    if matches and (len(matches) == 1 or matches[0] == name):
        return str(matches[0])
    raise _not_found(name, matches, conn.execute(_ALL_VERSIONS).scalars().all())


def _not_found(name: str, matches: Sequence[str], versions: Sequence[str]) -> VersionNotFoundError:
    listed = ", ".join(versions[:MAX_LISTED_VERSIONS]) or "none yet"
    more = f" and {len(versions) - MAX_LISTED_VERSIONS} older" if len(versions) > MAX_LISTED_VERSIONS else ""
    ambiguous = f": more than one digest starts with it ({', '.join(matches)})" if matches else ""
    return VersionNotFoundError(f"{name!r}{ambiguous}", hint=f"There are: {listed}{more}.")


def resolve_candidate(engine: sa.Engine, dagster_run_id: str, version: str = "") -> str:
    """Return the name of the given version, else of the Dagster run's candidate, else of the newest one.

    Raises ``ModelNotFoundError`` if there is no candidate.
    """
    runs = t.phase4_training_runs.c
    query = sa.select(runs.candidate_version).where(runs.dagster_run_id == dagster_run_id)
    with engine.connect() as conn:
        if version:
            return get_version(conn, version).version
        if trained := conn.execute(query).scalar_one_or_none():
            return str(trained)
        newest = get_latest_candidate(conn)
    if newest is None:
        raise ModelNotFoundError(
            "no candidate", hint="Materialize fine_tuned_checkpoint first, or name a version."
        )
    return newest.version

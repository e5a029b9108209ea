"""Authorize deployments, and deploy without a rollout.

Every change is one transaction: demote, promote, event row. A candidate is deployed on the verdict stored
for *that* version, read again here: launching the deployment alone cannot bypass the gate.

Deployments go through a rollout (opening.py), which also starts with `require_authorized`. `deploy` is for
the first production version, and for people and demos that skip the rollout (E4, M1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.notify import notify_routing
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.models.model_probe import import_probed_model, probe_model
from iccm_assets.registry import versions
from iccm_assets.registry.affected_versions import find_erased_in_lineage
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore, fetch_model, verify_model
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.rollout import repository
from iccm_assets.rollout.actions import DeploymentEvent
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class Authorization:
    """Whether a version may be deployed, the reason, and the evidence."""

    allowed: bool
    reason: str
    evidence: dict[str, Any]


def authorization_decision(
    version: str,
    status: str,
    production: str | None,
    verdict: dict[str, Any] | None,
    force_reason: str | None,
    erased: int = 0,
) -> Authorization:
    """Decide, without I/O, whether this version may be deployed on the newest verdict stored for it.

    ``erased`` counts the erased conversations that it was trained on and production was not.
    """
    gate = verdict or {}
    evidence = {"verdict": gate.get("status"), "production": production, "forced": bool(force_reason)}
    if status == "production":
        return Authorization(False, f"{version} is in production already", evidence)
    if force_reason:
        return Authorization(True, f"forced by a person: {force_reason}", evidence)
    reasons = "; ".join(map(str, gate.get("reasons", [])))
    refusals = (
        (erased > 0, f"{version} was trained on {erased} conversations erased since"),
        (verdict is None, f"{version} was never evaluated: no quality-gate verdict"),
        (gate.get("status") != "pass", f"the quality gate says {gate.get('status')}: {reasons}"),
        (status not in ("candidate", "inconclusive"), f"{version} has status {status}"),
        (
            gate.get("production") != production,
            f"its verdict compares it with {gate.get('production')}, but {production} serves now",
        ),
    )
    refusal = next((reason for refused, reason in refusals if refused), None)
    return Authorization(refusal is None, refusal or f"the quality gate says pass: {reasons}", evidence)


def require_authorized(conn: sa.Connection, version: str, force_reason: str | None = None) -> Authorization:
    """Apply `authorization_decision` to the current rows.

    Raises ``OperationNotAllowedError`` with its reason.
    """
    candidate, serving = versions.get_version(conn, version), versions.get_production_version(conn)
    production = serving.version if serving else None
    erased = find_erased_in_lineage(conn, candidate.version) - find_erased_in_lineage(conn, production)
    verdict = get_latest_verdict(conn, candidate.version)
    authorization = authorization_decision(
        candidate.version, candidate.status, production, verdict, force_reason, len(erased)
    )
    if not authorization.allowed:
        raise OperationNotAllowedError(
            f"{version} is not deployed, {authorization.reason}",
            hint="To deploy it anyway: iccm deploy VERSION --force --reason '…'.",
        )
    return authorization


def get_latest_verdict(conn: sa.Connection, version: str) -> dict[str, Any] | None:
    """Return the last gate verdict stored for a version, with the production version it compares with."""
    gv = t.gate_verdicts.c
    query = sa.select(gv.verdict, gv.production_version).where(gv.version == version)
    row = conn.execute(query.order_by(gv.id.desc()).limit(1)).one_or_none()
    return {**row.verdict, "production": row.production_version} if row else None


def check_deployable(
    engine: sa.Engine, settings: Settings, version: ModelVersion, force_reason: str | None = None
) -> None:
    """Raise unless a version may be deployed, its files are intact, and it loads and answers.

    An evaluation has loaded both its versions; any other one is loaded here. Raises
    ``OperationNotAllowedError``, ``CorruptCheckpointError``, ``ModelNotFoundError`` or ``ModelError``.
    """
    gv = t.gate_verdicts.c
    evaluated = sa.or_(gv.version == version.version, gv.production_version == version.version)
    with engine.connect() as conn:
        require_authorized(conn, version.version, force_reason)
        has_answered = conn.execute(sa.select(sa.exists().where(evaluated))).scalar_one()
    directory = fetch_model(version.path, settings)
    verify_model(directory, settings)
    if not has_answered:
        probe_model(directory, settings)


def require_no_live_rollout(conn: sa.Connection, version: str) -> None:
    """Raise ``OperationNotAllowedError`` while a rollout is live."""
    if (live := repository.get_live_rollout(conn)) is not None:
        raise OperationNotAllowedError(
            f"rollout {live.id} of {live.candidate} is live, {version} has to wait",
            hint="See iccm rollout show; iccm rollout abort ends it.",
        )


def deploy(
    engine: sa.Engine, version: str, *, actor: str, force_reason: str | None = None, note: str = ""
) -> tuple[ModelVersion, Authorization]:
    """Put a version in production immediately, without a rollout; ``note`` is recorded with the reason.

    Raises ``OperationNotAllowedError`` with the reason when it may not be, or while a rollout is live.
    """
    with engine.begin() as conn:
        repository.lock_deployment(conn)
        authorization = require_authorized(conn, version, force_reason)
        require_no_live_rollout(conn, version)
        if note:
            reason = f"{authorization.reason}; without a rollout: {note}"
            authorization = Authorization(True, reason, {**authorization.evidence, "without_rollout": note})
        candidate = versions.get_version(conn, version)
        promoted = promote(conn, candidate, authorization, actor=actor, forced=bool(force_reason))
    return promoted, authorization


def promote(
    conn: sa.Connection,
    candidate: ModelVersion,
    authorization: Authorization,
    *,
    actor: str,
    forced: bool = False,
) -> ModelVersion:
    """Demote the version in production, promote the candidate, record the event; the caller's transaction."""
    deployed_at = now(conn)
    previous = repository.swap_production(conn, candidate.version, "retired", deployed_at)
    event = DeploymentEvent(
        event_type="bootstrapped" if previous is None else "forced" if forced else "promoted",
        timestamp=deployed_at,
        from_state=candidate.status,
        to_state="production",
        version=candidate.version,
        weight=1.0,
        notes=authorization.reason,
        evidence={**authorization.evidence, "previous": previous},
        actor=actor,
    )
    repository.insert_event(conn, event)
    notify_routing(conn)
    return versions.get_version(conn, candidate.version)


def bootstrap(conn: sa.Connection, *, digest: str, path: str, base_model: str) -> ModelVersion:
    """Make the base model the first production version; return the serving version when there is one."""
    repository.lock_deployment(conn)
    if (serving := versions.get_production_version(conn)) is not None:
        return serving
    metrics = {"base_model": base_model}
    base = versions.register_version(
        conn, digest=digest, path=path, parent=None, status="candidate", metrics=metrics
    )
    authorization = Authorization(True, f"first production version, from {base_model}", {"previous": None})
    return promote(conn, base, authorization, actor="bootstrap")


def ensure_production(
    engine: sa.Engine, store: ModelStore, settings: Settings
) -> tuple[ModelVersion, Manifest]:
    """Return the version in production and its verified manifest; the base model where there is none yet.

    The base model has to load and to answer first. Raises ``ModelNotFoundError``, ``ModelError`` or
    ``CorruptCheckpointError``; the database is unchanged then.
    """
    with engine.connect() as conn:
        serving = versions.get_production_version(conn)
    if serving is None:
        published = import_probed_model(store, settings.base_model, settings)
        path, base = str(published.path), published.manifest.base
        with engine.begin() as conn:
            serving = bootstrap(conn, digest=published.digest, path=path, base_model=base)
    return serving, verify_model(fetch_model(serving.path, settings), settings)

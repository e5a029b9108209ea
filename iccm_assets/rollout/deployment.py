"""Who may be deployed, and deploying at once: bootstrapping, and promoting without a rollout.

Every change is one transaction: demote, promote, event row (M1). A candidate is deployed on the verdict
stored for *that* version, read again here (E4): launching the deployment alone cannot bypass the gate.

Deployments go through a rollout (opening.py), whose entrance `authorise` is, too. `deploy` is for the first
production version, and for people and demos that want no traffic in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import NotAllowed
from iccm_assets.governance.learners import erased_in_line
from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.rollout import records
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now
from iccm_assets.store.notify import notify_routing


@dataclass(frozen=True)
class Authorisation:
    """Whether a version may be deployed, why, and on which evidence."""

    allowed: bool
    reason: str
    evidence: dict[str, Any]


def decide(
    version: str,
    status: str,
    parent: str | None,
    production: str | None,
    verdict: dict[str, Any] | None,
    force_reason: str | None,
    erased: int = 0,
) -> Authorisation:
    """May this version be deployed? Pure; the verdict is the newest stored for this version (E4).

    ``erased`` counts the erased conversations it has learned from and production has not (V2).
    """
    seen = verdict or {}
    evidence = {"verdict": seen.get("status"), "production": production, "forced": bool(force_reason)}
    if status == "production":
        return Authorisation(False, f"{version} is in production already", evidence)
    if force_reason:
        return Authorisation(True, f"forced by a person: {force_reason}", evidence)
    if erased:
        return Authorisation(False, f"{version} learned from {erased} conversations erased since", evidence)
    if verdict is None:
        return Authorisation(False, f"{version} was never evaluated: no quality-gate verdict", evidence)
    reasons = "; ".join(str(one) for one in seen.get("reasons", []))
    if seen.get("status") != "pass":
        return Authorisation(False, f"the quality gate says {seen.get('status')}: {reasons}", evidence)
    if status not in ("candidate", "inconclusive"):
        return Authorisation(False, f"{version} has status {status}", evidence)
    if seen.get("production") != production:
        against = seen.get("production")
        return Authorisation(
            False, f"its verdict compares it with {against}, but {production} serves now", evidence
        )
    return Authorisation(True, f"the quality gate says pass: {reasons}", evidence)


def authorise(conn: sa.Connection, version: str, force_reason: str | None = None) -> Authorisation:
    """`decide` on what the database says now."""
    candidate = versions.get(conn, version)
    serving = versions.production(conn)
    return decide(
        candidate.version,
        candidate.status,
        candidate.parent_version,
        serving.version if serving else None,
        newest_verdict(conn, candidate.version),
        force_reason,
        len(
            erased_in_line(conn, candidate.version)
            - erased_in_line(conn, serving.version if serving else None)
        ),
    )


def newest_verdict(conn: sa.Connection, version: str) -> dict[str, Any] | None:
    """The last gate verdict stored for a version, with the production version it was measured against."""
    row = conn.execute(
        sa.select(t.gate_verdicts.c.verdict, t.gate_verdicts.c.production_version)
        .where(t.gate_verdicts.c.version == version)
        .order_by(t.gate_verdicts.c.id.desc())
        .limit(1)
    ).one_or_none()
    return {**row.verdict, "production": row.production_version} if row else None


def refuse_unless_allowed(version: str, authorisation: Authorisation) -> None:
    """Raise ``NotAllowed`` with the reason when a version may not be deployed."""
    if not authorisation.allowed:
        raise NotAllowed(
            f"{version} is not deployed, {authorisation.reason}",
            hint="A person may deploy it anyway: iccm deploy VERSION --force --reason '…'.",
        )


def deploy(
    engine: sa.Engine, version: str, *, actor: str, force_reason: str | None = None, note: str = ""
) -> tuple[ModelVersion, Authorisation]:
    """Put a version in production at once, without a rollout; ``note`` is recorded with the reason.

    Raises ``NotAllowed`` with the reason when it may not be, or while a rollout is live.
    """
    with engine.begin() as conn:
        records.lock_deployment(conn)
        authorisation = authorise(conn, version, force_reason)
        refuse_unless_allowed(version, authorisation)
        if (live := records.live(conn)) is not None:
            raise NotAllowed(
                f"rollout {live.id} of {live.candidate} is live, {version} waits",
                hint="See iccm rollout show; iccm rollout abort makes room.",
            )
        if note:
            reason = f"{authorisation.reason}; at once: {note}"
            authorisation = Authorisation(True, reason, {**authorisation.evidence, "at_once": note})
        promoted = promote(
            conn, versions.get(conn, version), authorisation, actor=actor, forced=bool(force_reason)
        )
    return promoted, authorisation


def promote(
    conn: sa.Connection,
    candidate: ModelVersion,
    authorisation: Authorisation,
    *,
    actor: str,
    forced: bool = False,
) -> ModelVersion:
    """Demote the version in production, promote the candidate, record the event; the caller's transaction."""
    at = now(conn)
    former = records.swap_production(conn, candidate.version, "retired", at)
    conn.execute(
        t.deployment_events.insert().values(
            timestamp=at,
            event_type="bootstrapped" if former is None else "forced" if forced else "promoted",
            from_state=candidate.status,
            to_state="production",
            version=candidate.version,
            weight=1.0,
            evidence={**authorisation.evidence, "former": former},
            notes=authorisation.reason,
            actor=actor,
        )
    )
    notify_routing(conn)
    return versions.get(conn, candidate.version)


def bootstrap(conn: sa.Connection, *, digest: str, path: str, base_model: str) -> ModelVersion:
    """The first production version, from the base model; the serving version when there is one."""
    records.lock_deployment(conn)
    serving = versions.production(conn)
    if serving is not None:
        return serving
    base = versions.register(
        conn,
        digest=digest,
        path=path,
        parent=None,
        status="candidate",
        metrics={"base_model": base_model},
    )
    reason = Authorisation(True, f"first production version, from {base_model}", {"former": None})
    return promote(conn, base, reason, actor="bootstrap")

"""Deploying as an asset does it: a rollout, found open already or opened now, or at once if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import verify
from iccm_assets.rollout import deployment, records
from iccm_assets.rollout.opening import open_rollout
from iccm_assets.rollout.state import State
from iccm_assets.rollout.view import waiting_for
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class Delivered:
    """The version, and what is told about it: plain numbers and words."""

    version: ModelVersion
    metadata: dict[str, Any]


def deliver(
    engine: sa.Engine, settings: Settings, version: str, *, actor: str, rollout: bool = True
) -> Delivered:
    """Open the version's rollout; its own live one is found again, so a step that is retried changes nothing.

    Without ``rollout`` it is promoted at once. Raises what `open_rollout` and `deployment.deploy` do.
    """
    if not rollout:
        with engine.connect() as conn:
            verify(Path(versions.get(conn, version).path))
        promoted, authorisation = deployment.deploy(engine, version, actor=actor)
        return _promoted(promoted, authorisation)
    with engine.connect() as conn:
        live, candidate = records.live(conn), versions.get(conn, version)
    if live is not None and live.candidate == candidate.version:
        return Delivered(candidate, _rollout(live, live.reason or "its rollout is open already"))
    opened = open_rollout(engine, settings, candidate.version, actor=actor)
    if opened.state is None:
        return _promoted(opened.version, opened.authorisation)
    return Delivered(opened.version, _rollout(opened.state, opened.authorisation.reason))


def _rollout(state: State, reason: str) -> dict[str, Any]:
    policy = state.policy
    hours = sum(policy.stage_seconds) / 3600
    sessions = ", ".join(str(one) for one in policy.stage_sessions)
    return {
        "version": state.candidate,
        "former_version": state.production,
        "reason": reason,
        "weight": state.weight,
        "rollout": state.id,
        "state": state.state,
        "stage": state.stage,
        "emergency": state.emergency,
        "forecast": f"at least {hours:g} h healthy, and {sessions} scored canary-arm sessions in its stages; "
        f"waits for {'; '.join(waiting_for(state)) or 'the next tick'}",
    }


def _promoted(version: ModelVersion, authorisation: deployment.Authorisation) -> Delivered:
    return Delivered(
        version,
        {
            "version": version.version,
            "former_version": authorisation.evidence["production"] or "",
            "reason": authorisation.reason,
            "weight": 1.0,
            "state": version.status,
        },
    )

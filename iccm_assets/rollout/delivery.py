"""Deploying as an asset does it: a rollout, its live one or a new one, or at once if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import verify
from iccm_assets.rollout import deployment, records
from iccm_assets.rollout.opening import OpenResult, open_rollout
from iccm_assets.rollout.state import State
from iccm_assets.rollout.view import list_waiting_conditions
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class DeploymentResult:
    """The version, and its metadata: plain numbers and text."""

    version: ModelVersion
    metadata: dict[str, Any]


def deploy_candidate(
    engine: sa.Engine, settings: Settings, version: str, *, actor: str, rollout: bool = True
) -> DeploymentResult:
    """Open the version's rollout; with a live one of its own, nothing changes, so a step may be retried.

    Without ``rollout`` it is promoted at once. Raises what `open_rollout` and `deployment.deploy` do.
    """
    with engine.connect() as conn:
        candidate, live = (
            versions.get_version(conn, version),
            records.get_live_rollout(conn) if rollout else None,
        )
    if live is not None and live.candidate == candidate.version:
        return DeploymentResult(
            candidate, _rollout_metadata(live, live.reason or "its rollout is open already")
        )
    if rollout:
        opened = open_rollout(engine, settings, candidate.version, actor=actor)
    else:
        verify(Path(candidate.path))
        opened = OpenResult(*deployment.deploy(engine, version, actor=actor), None)
    authorization = opened.authorization
    if opened.state is not None:
        return DeploymentResult(opened.version, _rollout_metadata(opened.state, authorization.reason))
    metadata = {
        "version": opened.version.version,
        "previous_version": authorization.evidence["production"] or "",
        "reason": authorization.reason,
        "weight": 1.0,
        "state": opened.version.status,
    }
    return DeploymentResult(opened.version, metadata)


def _rollout_metadata(state: State, reason: str) -> dict[str, Any]:
    policy = state.policy
    hours, sessions = sum(policy.stage_seconds) / 3600, ", ".join(map(str, policy.stage_sessions))
    return {
        "version": state.candidate,
        "previous_version": state.production,
        "reason": reason,
        "weight": state.weight,
        "rollout": state.id,
        "state": state.state,
        "stage": state.stage,
        "emergency": state.emergency,
        "forecast": f"at least {hours:g} h healthy, and {sessions} scored canary-arm sessions in its stages; "
        f"waiting for: {'; '.join(list_waiting_conditions(state)) or 'the next tick'}",
    }

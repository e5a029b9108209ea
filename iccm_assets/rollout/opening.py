"""Open the rollout of an authorized version, without traffic yet and under the current settings (R1-R8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.notify import notify_routing
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.registry import versions
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.rollout import deployment, repository
from iccm_assets.rollout.actions import DeploymentEvent
from iccm_assets.rollout.deployment import Authorization
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State
from iccm_assets.rollout.summary import list_waiting_conditions
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class OpenResult:
    """The version to deploy, its authorization, and its rollout.

    ``state`` is None where there was no production version to compare with: the version was promoted
    immediately.
    """

    version: ModelVersion
    authorization: Authorization
    state: State | None


def open_rollout(
    engine: sa.Engine, settings: Settings, version: str, *, actor: str, force_reason: str | None = None
) -> OpenResult:
    """Check that the version answers and open its rollout; the first production version skips the rollout.

    ``force_reason`` skips the quality gate, not the rollout. The rollout of a version that an emergency
    retrain made is an emergency, too.

    Raises ``OperationNotAllowedError`` when the version may not be deployed or a rollout is live already
    (the database decides races), ``CorruptCheckpointError`` or ``ModelNotFoundError`` for its files,
    ``ModelError`` if it cannot answer; nothing has changed then.
    """
    with engine.connect() as conn:
        candidate, serving = versions.get_version(conn, version), versions.get_production_version(conn)
    if candidate.status == "production":
        raise OperationNotAllowedError(f"{candidate.version} is in production already")
    deployment.check_deployable(engine, settings, candidate, force_reason)
    if serving is None:
        first = deployment.deploy(engine, candidate.version, actor=actor, force_reason=force_reason)
        return OpenResult(*first, None)
    with engine.begin() as conn:
        return _open(conn, settings, candidate.version, actor=actor, force_reason=force_reason)


def _open(
    conn: sa.Connection, settings: Settings, version: str, *, actor: str, force_reason: str | None = None
) -> OpenResult:
    """Open a rollout in the caller's transaction, of a version whose files the caller has verified."""
    repository.lock_deployment(conn)
    authorization = deployment.require_authorized(conn, version, force_reason)
    candidate, serving = versions.get_version(conn, version), versions.get_production_version(conn)
    if serving is None:
        raise OperationNotAllowedError(
            f"nothing is in production, so there is no version to roll out {version} against"
        )
    state = _insert(
        conn,
        candidate=candidate.version,
        production=serving.version,
        **_training_run(conn, candidate.version),
        policy=asdict(Policy.from_settings(settings.rollout, settings.evaluation)),
        reason=authorization.reason,
    )
    repository.set_status(conn, candidate.version, "canary")
    event = DeploymentEvent(
        event_type="opened",
        timestamp=state.opened_at,
        from_state=candidate.status,
        to_state=state.state,
        version=state.candidate,
        weight=0.0,
        notes=authorization.reason,
        evidence={**authorization.evidence, "emergency": state.emergency},
        actor=actor,
    )
    repository.append_events(conn, state.id, (event,))
    notify_routing(conn)
    return OpenResult(versions.get_version(conn, candidate.version), authorization, state)


def _training_run(conn: sa.Connection, version: str) -> dict[str, Any]:
    """Return the retrain that made the version, and whether it was an emergency, as columns of `rollouts`."""
    runs = t.phase4_training_runs.c
    query = sa.select(runs.id, runs.emergency).where(runs.candidate_version == version)
    row = conn.execute(query.order_by(runs.id.desc()).limit(1)).one_or_none()
    return {} if row is None else {"training_run_id": row.id, "emergency": row.emergency}


def _insert(conn: sa.Connection, **values: Any) -> State:
    """Insert the row; the index that allows one live rollout decides between two concurrent openings."""
    values["opened_at"] = values["stage_entered_at"] = now(conn)
    query = insert(t.rollouts).values(values).on_conflict_do_nothing().returning(t.rollouts)
    if (row := conn.execute(query).one_or_none()) is not None:
        return State.from_row(row._asdict())
    deployment.require_no_live_rollout(conn, values["candidate"])
    raise OperationNotAllowedError(
        f"another rollout was live; repeat the deployment of {values['candidate']}"
    )


def deploy_candidate(
    engine: sa.Engine, settings: Settings, version: str, *, actor: str, rollout: bool = True
) -> tuple[ModelVersion, dict[str, Any]]:
    """Open the version's rollout; return the version and its metadata, plain numbers and text.

    With a live rollout of its own, nothing changes, so a step may be retried. Without ``rollout`` it is
    promoted immediately. Raises what `open_rollout` and `deployment.deploy` do.
    """
    with engine.connect() as conn:
        candidate = versions.get_version(conn, version)
        live = repository.get_live_rollout(conn) if rollout else None
    if live is not None and live.candidate == candidate.version:
        return candidate, _rollout_metadata(live, live.reason or "its rollout is open already")
    if rollout:
        opened = open_rollout(engine, settings, candidate.version, actor=actor)
    else:
        deployment.check_deployable(engine, settings, candidate)
        opened = OpenResult(*deployment.deploy(engine, version, actor=actor), None)
    authorization = opened.authorization
    if opened.state is not None:
        return opened.version, _rollout_metadata(opened.state, authorization.reason)
    metadata = {
        "version": opened.version.version,
        "previous_version": authorization.evidence["production"] or "",
        "reason": authorization.reason,
        "weight": 1.0,
        "state": opened.version.status,
    }
    return opened.version, metadata


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

"""Opening a rollout: a version that may be deployed, no traffic yet, and the numbers of today (R1-R8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import NotAllowed
from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import verify
from iccm_assets.rollout import deployment, records
from iccm_assets.rollout.deployment import Authorisation
from iccm_assets.rollout.outcome import Event
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now
from iccm_assets.store.notify import notify_routing


@dataclass(frozen=True)
class Opened:
    """What became of the wish to deploy ``version``: a rollout's state.

    ``state`` is None where there was no production version to roll out against: it was promoted at once.
    """

    version: ModelVersion
    authorisation: Authorisation
    state: State | None


def open_rollout(
    engine: sa.Engine,
    settings: Settings,
    version: str,
    *,
    actor: str,
    force_reason: str | None = None,
    training_run_id: int | None = None,
    emergency: bool = False,
) -> Opened:
    """Verify the version's files and open its rollout; the first production version is promoted at once.

    ``force_reason`` skips the quality gate, not the rollout. The retrain that made the version is looked up
    where none is given; an emergency one makes the rollout one.

    Raises ``NotAllowed`` when the version may not be deployed or a rollout is live already (the database
    decides races), ``DamagedCheckpoint`` or ``ModelNotFound`` for its files; nothing was changed then.
    """
    with engine.connect() as conn:
        candidate = versions.get(conn, version)
        serving = versions.production(conn)
    if candidate.status == "production":
        raise NotAllowed(f"{candidate.version} is in production already")
    verify(Path(candidate.path))
    if serving is None:
        first, authorisation = deployment.deploy(
            engine, candidate.version, actor=actor, force_reason=force_reason
        )
        return Opened(first, authorisation, None)
    with engine.begin() as conn:
        return begin(
            conn,
            settings,
            candidate.version,
            actor=actor,
            force_reason=force_reason,
            training_run_id=training_run_id,
            emergency=emergency,
        )


def begin(
    conn: sa.Connection,
    settings: Settings,
    version: str,
    *,
    actor: str,
    force_reason: str | None = None,
    training_run_id: int | None = None,
    emergency: bool = False,
) -> Opened:
    """`open_rollout` in the caller's transaction, of a version whose files the caller has verified."""
    records.lock_deployment(conn)
    authorisation = deployment.authorise(conn, version, force_reason)
    deployment.refuse_unless_allowed(version, authorisation)
    candidate, serving = versions.get(conn, version), versions.production(conn)
    if serving is None:
        raise NotAllowed(f"nothing is in production, so {version} has nothing to be rolled out against")
    run_id, urgent = _training_run(conn, candidate.version, training_run_id)
    row = _insert(
        conn,
        candidate=candidate.version,
        production=serving.version,
        training_run_id=run_id,
        emergency=emergency or urgent,
        policy=Policy.frozen(settings.rollout, settings.evaluation).to_json(),
        reason=authorisation.reason,
    )
    conn.execute(
        t.model_versions.update()
        .where(t.model_versions.c.version == candidate.version)
        .values(status="canary")
    )
    state = State.from_row(row)
    records.append_events(conn, state.id, (_opened(state, candidate, authorisation, actor),))
    notify_routing(conn)
    return Opened(versions.get(conn, candidate.version), authorisation, state)


def _opened(state: State, candidate: ModelVersion, authorisation: Authorisation, actor: str) -> Event:
    return Event(
        event_type="opened",
        at=state.opened_at,
        from_state=candidate.status,
        to_state=state.state,
        version=state.candidate,
        weight=0.0,
        notes=authorisation.reason,
        evidence={**authorisation.evidence, "emergency": state.emergency},
        actor=actor,
    )


def _training_run(conn: sa.Connection, version: str, given: int | None) -> tuple[int | None, bool]:
    """The retrain that made the version, and whether it was an emergency."""
    runs = t.phase4_training_runs.c
    which = runs.candidate_version == version if given is None else runs.id == given
    row = conn.execute(
        sa.select(runs.id, runs.emergency).where(which).order_by(runs.id.desc()).limit(1)
    ).one_or_none()
    if row is None and given is not None:
        raise NotAllowed(f"there is no training run {given}")
    return (None, False) if row is None else (row.id, row.emergency)


def _insert(conn: sa.Connection, **values: Any) -> Any:
    """The new row; the index that allows one live rollout decides between two that open at once."""
    at = now(conn)
    try:
        with conn.begin_nested():
            return (
                conn.execute(
                    t.rollouts.insert()
                    .values(**values, opened_at=at, stage_entered_at=at)
                    .returning(t.rollouts)
                )
                .one()
                ._mapping
            )
    except sa.exc.IntegrityError as error:
        if getattr(getattr(error.orig, "diag", None), "constraint_name", None) != "rollouts_one_live":
            raise
    live = records.live(conn)
    which = "a rollout" if live is None else f"rollout {live.id} of {live.candidate}"
    raise NotAllowed(
        f"{which} is live, {values['candidate']} waits",
        hint="See iccm rollout show; iccm rollout abort makes room.",
    )

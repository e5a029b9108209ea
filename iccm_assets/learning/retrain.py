"""One retraining from its claimed row to a registered candidate: what the asset does, in its order.

`attempt` claims the row and marks it failed when anything below it fails; `prepare` chooses the examples,
writes the snapshot and describes the trainer's job; `register` gives what was published its version row.
The row stays `running` until the evaluation gives it its outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.curation.pool import lock_pool
from iccm_assets.errors import IccmError, ModelNotFound, TrainingError
from iccm_assets.learning import proposal, training_runs, triggers, versions
from iccm_assets.learning.dataset import (
    Dataset,
    DatasetStore,
    Example,
    compose,
    load_rehearsal,
    rehearsal_remark,
)
from iccm_assets.learning.directories import remove_tree
from iccm_assets.learning.job import TrainingJob, TrainingOutcome
from iccm_assets.learning.training_runs import TrainingRun
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings, get_settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now


@dataclass(frozen=True)
class Claimed:
    """A training run in this process's hands; `fence` is what it may publish with."""

    run: TrainingRun
    fence: int


@dataclass(frozen=True)
class Skipped:
    """Nothing is trained now, and why (T5, T6)."""

    reason: str


@dataclass(frozen=True)
class Plan:
    """What the trainer is asked to do, and why these examples."""

    job: TrainingJob
    dataset: Dataset
    base: ModelVersion
    reason: str


@contextmanager
def attempt(
    engine: sa.Engine, run: TrainingRun, dagster_run_id: str, dispatch: int | None = None
) -> Iterator[Claimed | Skipped]:
    """Claim the row for one attempt; what fails inside is recorded on the row and raised again.

    Yields ``Skipped`` when the row has to wait for its turn. ``dispatch`` is the one this Dagster run was
    started by, if it was.
    """
    with engine.begin() as conn:
        fence = training_runs.claim(conn, run.id, dagster_run_id, dispatch=dispatch)
        current = training_runs.get(conn, run.id)
    if fence is None:
        yield Skipped(f"training run {run.id} waits: {current.notes or ''}")
        return
    with failing(engine, Claimed(current, fence)):
        yield Claimed(current, fence)


@contextmanager
def failing(engine: sa.Engine, claimed: Claimed) -> Iterator[None]:
    """Keep the attempt's heart beating, and mark it failed, with the error's words, when the block raises."""
    every = training_runs.seconds_between_beats(get_settings().training.heartbeat_timeout_seconds)
    try:
        with training_runs.kept_alive(engine, claimed.run.id, claimed.fence, every):
            yield
    except BaseException as error:
        with engine.begin() as conn:
            if training_runs.still_current(conn, claimed.run.id, claimed.fence):
                said = f"{type(error).__name__}: {error}"[:2000]
                training_runs.finish(conn, claimed.run.id, claimed.fence, "failed", error=said)
        raise


def prepare(engine: sa.Engine, settings: Settings, claimed: Claimed) -> Plan | Skipped:
    """Choose the examples (T7), write the snapshot and record both; ``Skipped`` below the floor (T5)."""
    emergency = claimed.run.emergency
    with engine.begin() as conn:
        base = _base(conn, claimed.run.requested_base)
        at = now(conn)
        chosen_from = settings.selection.over(claimed.run.requested_window_days)
        selection = proposal.propose(conn, at, chosen_from, emergency, base=claimed.run.requested_base)
        if below := triggers.below_floor(len(selection.chosen), settings.triggers):
            training_runs.finish(
                conn, claimed.run.id, claimed.fence, "skipped", notes=below.reason, base_version=base.version
            )
            return Skipped(f"{below.reason}; {selection.reason}")
        chosen = {row.conversation_id for row in selection.chosen}
        new, pinned = _pool_examples(conn, chosen)
    dataset = compose(
        new,
        load_rehearsal(settings.rehearsal),
        pinned,
        rehearsal_fraction=settings.training.rehearsal_fraction,
        validation_share=settings.training.validation_share,
        seed=settings.training.seed,
    )
    directory = DatasetStore(settings.home).write(dataset)
    job = TrainingJob(
        home=str(settings.home),
        base=base.path,
        dataset=str(directory),
        config=settings.training,
        run_id=str(claimed.run.id),
        attempt=claimed.run.attempt,
        fence=claimed.fence,
        emergency=emergency,
        training_run_id=claimed.run.id,
    )
    with engine.begin() as conn:
        _refuse_erased(conn, dataset, directory)
        _record_lineage(conn, claimed.run.id, dataset)
        training_runs.record(
            conn,
            claimed.run.id,
            claimed.fence,
            base_version=base.version,
            dataset_digest=dataset.digest,
            training_timestamp=at,
            config=settings.training.model_dump(mode="json"),
        )
    remark = rehearsal_remark(dataset, settings.training.rehearsal_fraction, settings.rehearsal)
    return Plan(job, dataset, base, "; ".join(part for part in (selection.reason, remark) if part))


def register(engine: sa.Engine, claimed: Claimed, plan: Plan, outcome: TrainingOutcome) -> ModelVersion:
    """Give the published candidate its version row, and pin what it learned from (P2)."""
    learned = [one.conversation_id for one in plan.dataset.examples if one.conversation_id is not None]
    metrics = {
        "training": {
            "validation_loss": outcome.best_validation_loss,
            "initial_validation_loss": outcome.initial_validation_loss,
            "best_epoch": outcome.best_epoch,
            "movement": vars(outcome.movement),
            "counts": dict(outcome.counts),
        }
    }
    with engine.begin() as conn:
        candidate = versions.register(
            conn,
            digest=outcome.digest,
            path=outcome.path,
            parent=plan.base.version,
            status="candidate",
            metrics=metrics,
        )
        training_runs.record(conn, claimed.run.id, claimed.fence, candidate_version=candidate.version)
        lock_pool(conn)  # a fold between choosing and pinning could have taken a row out
        pool = t.phase4_training_data
        conn.execute(pool.update().where(pool.c.conversation_id.in_(learned)).values(pinned=True))
    return candidate


def describe(candidate: ModelVersion, plan: Plan, outcome: TrainingOutcome) -> dict[str, Any]:
    """The materialization's plain metadata; numbers become plots over time."""
    return {
        "version": candidate.version,
        "parent_version": plan.base.version,
        "selection": plan.reason,
        "dataset_digest": outcome.dataset_digest,
        **{f"examples {name}": count for name, count in outcome.counts.items()},
        "validation_loss": outcome.best_validation_loss,
        "initial_validation_loss": outcome.initial_validation_loss,
        "best_epoch": outcome.best_epoch,
        "weight_movement": outcome.movement.relative,
        "weights_changed": outcome.movement.changed_share,
        "parameters": outcome.parameters,
        "device": outcome.device,
        "resumed_from_step": outcome.resumed_from_step,
        **{f"seconds {name}": value for name, value in outcome.seconds.items()},
    }


def running_in(engine: sa.Engine, dagster_run_id: str) -> Claimed | None:
    """The attempt this Dagster run is carrying, if any."""
    runs = t.phase4_training_runs.c
    with engine.connect() as conn:
        run_id = conn.execute(
            sa.select(runs.id).where(runs.status == "running", runs.dagster_run_id == dagster_run_id)
        ).scalar_one_or_none()
        if run_id is None:
            return None
        run = training_runs.get(conn, run_id)
    return Claimed(run, run.fence)


def conclude(engine: sa.Engine, claimed: Claimed, candidate: str) -> TrainingRun:
    """Write the newest verdict of the candidate into the run's row: its outcome (E4)."""
    gv = t.gate_verdicts
    with engine.begin() as conn:
        row = conn.execute(
            sa.select(gv).where(gv.c.version == candidate).order_by(gv.c.id.desc()).limit(1)
        ).one_or_none()
        if row is None:
            raise IccmError(f"{candidate} has no verdict")
        return training_runs.finish(
            conn,
            claimed.run.id,
            claimed.fence,
            training_runs.VERDICT_STATUS[row.status],
            notes="; ".join(row.verdict["reasons"]),
            improvement=row.improvement,
            verdict=row.status,
        )


def _base(conn: sa.Connection, requested: str | None) -> ModelVersion:
    """The version to train from: the one asked for, else the one in production."""
    if requested is not None:
        return versions.get(conn, requested)
    serving = versions.production(conn)
    if serving is None:
        raise ModelNotFound("no production version", hint="Materialize base_model first.")
    return serving


def _pool_examples(conn: sa.Connection, chosen: set[int]) -> tuple[list[Example], list[Example]]:
    """The chosen rows, and the pinned others that still qualify, for rehearsal (P4, L3)."""
    pool = t.phase4_training_data.c
    rows = conn.execute(
        sa.select(pool.conversation_id, pool.source_code, pool.requirements).where(
            sa.or_(pool.conversation_id.in_(chosen), sa.and_(pool.pinned, pool.qualifies))
        )
    ).all()
    new, pinned = [], []
    for conversation_id, source, requirements in rows:
        if conversation_id in chosen:
            new.append(Example(conversation_id, source, requirements, "new", "pool"))
        else:
            pinned.append(Example(conversation_id, source, requirements, "rehearsal", "pinned"))
    return new, pinned


def _refuse_erased(conn: sa.Connection, dataset: Dataset, directory: Path) -> None:
    """An erasure since the examples were chosen: its text has just been written again, and must go (V2)."""
    c = t.conversations.c
    ids = [one.conversation_id for one in dataset.examples if one.conversation_id is not None]
    rows = conn.execute(
        sa.select(c.id, c.erased_at)
        .where(c.id.in_(ids))
        .order_by(c.id)
        .with_for_update(read=True, key_share=True)
    )
    erased = [row.id for row in rows if row.erased_at is not None]
    if erased:
        remove_tree(directory)
        named = ", ".join(map(str, erased[:5]))
        raise TrainingError(f"{len(erased)} chosen conversations were erased meanwhile ({named})")


def _record_lineage(conn: sa.Connection, run_id: int, dataset: Dataset) -> None:
    """The conversations of this attempt's dataset; an earlier attempt's are replaced."""
    examples = t.training_run_examples
    conn.execute(examples.delete().where(examples.c.training_run_id == run_id))
    rows = [
        {"training_run_id": run_id, "conversation_id": one.conversation_id, "role": one.role}
        for one in dataset.examples
        if one.conversation_id is not None
    ]
    conn.execute(examples.insert(), rows)

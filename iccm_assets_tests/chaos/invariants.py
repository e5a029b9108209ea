"""What a retrain has left behind, and what of it no kill excuses: the facts, and a pure judgement of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from dagster import RunsFilter

from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.defs.automation.training_run_tags import TRAINING_RUN_TAG
from iccm_assets.errors import IccmError
from iccm_assets.registry import training_runs
from iccm_assets.registry.manifest import verify
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets_tests.chaos.chaos_instance import RUN_WORKER, TRAINER, Instance

MAX_ATTEMPTS = 3
GATE = ("gate_passed", "gate_failed", "inconclusive")


@dataclass(frozen=True)
class Aftermath:
    """A training run and everything a kill could have left in the way, some time after it was over.

    ``runs`` are the statuses of its Dagster runs; ``rollouts`` counts those of its candidate; ``staging``
    names its directories that were never published; ``damaged`` what does not fit its manifest.
    """

    run: TrainingRun
    moved: bool
    runs: tuple[str, ...]
    unfinished_runs: tuple[str, ...]
    rollouts: int
    alerts: int
    live_rollouts: int
    productions: int
    staging: tuple[str, ...]
    damaged: tuple[str, ...]
    unknown_models: tuple[str, ...]
    slots: tuple[str, ...]
    processes: tuple[str, ...]


def violations(seen: Aftermath) -> list[str]:
    """Everything about it that must not be, in words; empty when the trigger ended once and left nothing."""
    run = seen.run
    finished, failed = run.status in (*GATE, "skipped"), run.status == "failed"
    passed = run.status == "gate_passed"
    found = {
        f"the row is {run.status}, no outcome": not (finished or failed),
        f"failed after {run.attempt} of {MAX_ATTEMPTS} attempts": failed and run.attempt < MAX_ATTEMPTS,
        "failed without a reason": failed and not run.error,
        f"{seen.alerts} alerts of its failure": seen.alerts != int(failed),
        "an outcome without a candidate": run.status in GATE and not run.candidate_version,
        f"passed, and {seen.rollouts} rollouts of its candidate": passed and seen.rollouts != 1,
        f"not passed, and {seen.rollouts} rollouts of its candidate": not passed and seen.rollouts != 0,
        "the row still changes after its outcome": seen.moved,
        f"{seen.runs.count('SUCCESS')} Dagster runs succeeded": seen.runs.count("SUCCESS") > 1,
        f"Dagster runs not ended: {', '.join(seen.unfinished_runs)}": bool(seen.unfinished_runs),
        f"{seen.live_rollouts} live rollouts": seen.live_rollouts > 1,
        f"{seen.productions} versions in production": seen.productions != 1,
        f"staging left by a finished run: {', '.join(seen.staging)}": finished and bool(seen.staging),
        f"damaged models: {', '.join(seen.damaged)}": bool(seen.damaged),
        f"models no version names: {', '.join(seen.unknown_models)}": finished and bool(seen.unknown_models),
        f"slots taken: {', '.join(seen.slots)}": bool(seen.slots),
        f"orphans: {', '.join(seen.processes)}": bool(seen.processes),
    }
    return [words for words, wrong in found.items() if wrong]


def look(instance: Instance, run_id: int) -> Aftermath:
    """Read it out of the database, Dagster, the model store and the list of processes."""
    store = ModelStore(Path(instance.environment["ICCM_HOME"]))
    with instance.engine.connect() as conn:
        before = training_runs.get_run(conn, run_id)
        versions = conn.execute(sa.text("select digest, path from iccm.model_versions")).all()
        counts = conn.execute(
            sa.text(
                f"""
                select (select count(*) from iccm.rollouts where candidate = :candidate),
                       (select count(*) from iccm.alerts where key = :key),
                       (select count(*) from iccm.rollouts
                        where state in {LIVE_STATES}),
                       (select count(*) from iccm.model_versions where status = 'production')
                """
            ),
            {"candidate": before.candidate_version, "key": f"training_run:{run_id}:failed"},
        ).one()
    paths = {Path(path) for _, path in versions} | {store.root / digest for digest in store.list_digests()}
    staging = sorted(one.name for one in store.staging_root.glob(f"{run_id}-*"))
    runs = instance.dagster.get_runs(RunsFilter(tags={TRAINING_RUN_TAG: str(run_id)}))
    everything = instance.dagster.get_runs()
    alive = instance.processes()
    with instance.engine.connect() as conn:
        after = training_runs.get_run(conn, run_id)
    return Aftermath(
        run=after,
        moved=before != after,
        runs=tuple(one.status.value for one in runs),
        unfinished_runs=tuple(
            f"{one.run_id[:8]} {one.status.value}" for one in everything if not one.is_finished
        ),
        rollouts=counts[0],
        alerts=counts[1],
        live_rollouts=counts[2],
        productions=counts[3],
        staging=tuple(staging),
        damaged=tuple(found for path in sorted(paths) if (found := _damage(path))),
        unknown_models=tuple(sorted(set(store.list_digests()) - {digest for digest, _ in versions})),
        slots=tuple(_taken(instance)),
        processes=tuple(f"{kind} {one.pid}" for kind in (RUN_WORKER, TRAINER) for one in alive[kind]),
    )


def _damage(path: Path) -> str:
    try:
        verify(path)
    except IccmError as error:
        return f"{path.name[:12]}: {error}"
    return ""


def _taken(instance: Instance) -> list[str]:
    """Slots of Dagster's pools that somebody holds or waits for."""
    storage = instance.dagster.event_log_storage
    taken = []
    for key in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(key)
        if info.active_slot_count or info.pending_step_count:
            taken.append(f"{key} ({info.active_slot_count} held, {info.pending_step_count} waiting)")
    return taken

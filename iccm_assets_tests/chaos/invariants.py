"""The aftermath of a retrain, and the invariants that must hold whatever was killed."""

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


def violations(aftermath: Aftermath) -> list[str]:
    """Return the violated invariants in words; empty if the trigger ended once without leftovers."""
    run = aftermath.run
    finished, failed = run.status in (*GATE, "skipped"), run.status == "failed"
    passed = run.status == "gate_passed"
    rules = {
        f"the row is {run.status}, no outcome": not (finished or failed),
        f"failed after {run.attempt} of {MAX_ATTEMPTS} attempts": failed and run.attempt < MAX_ATTEMPTS,
        "failed without a reason": failed and not run.error,
        f"{aftermath.alerts} alerts of its failure": aftermath.alerts != int(failed),
        "an outcome without a candidate": run.status in GATE and not run.candidate_version,
        f"passed, and {aftermath.rollouts} rollouts of its candidate": passed and aftermath.rollouts != 1,
        f"not passed, and {aftermath.rollouts} rollouts of its candidate": not passed
        and aftermath.rollouts != 0,
        "the row still changes after its outcome": aftermath.moved,
        f"{aftermath.runs.count('SUCCESS')} Dagster runs succeeded": aftermath.runs.count("SUCCESS") > 1,
        f"Dagster runs not ended: {', '.join(aftermath.unfinished_runs)}": bool(aftermath.unfinished_runs),
        f"{aftermath.live_rollouts} live rollouts": aftermath.live_rollouts > 1,
        f"{aftermath.productions} versions in production": aftermath.productions != 1,
        f"staging left by a finished run: {', '.join(aftermath.staging)}": finished
        and bool(aftermath.staging),
        f"damaged models: {', '.join(aftermath.damaged)}": bool(aftermath.damaged),
        f"models no version names: {', '.join(aftermath.unknown_models)}": finished
        and bool(aftermath.unknown_models),
        f"slots taken: {', '.join(aftermath.slots)}": bool(aftermath.slots),
        f"orphans: {', '.join(aftermath.processes)}": bool(aftermath.processes),
    }
    return [words for words, wrong in rules.items() if wrong]


def load_aftermath(instance: Instance, run_id: int) -> Aftermath:
    """Read the aftermath from the database, Dagster, the model store and the process list."""
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
    paths = {store.root.parent / path for _, path in versions} | {
        store.root / digest for digest in store.list_digests()
    }
    staging = sorted(path.name for path in store.staging_root.glob(f"{run_id}-*"))
    runs = instance.dagster.get_runs(RunsFilter(tags={TRAINING_RUN_TAG: str(run_id)}))
    everything = instance.dagster.get_runs()
    alive = instance.processes()
    with instance.engine.connect() as conn:
        after = training_runs.get_run(conn, run_id)
    return Aftermath(
        run=after,
        moved=before != after,
        runs=tuple(run.status.value for run in runs),
        unfinished_runs=tuple(
            f"{run.run_id[:8]} {run.status.value}" for run in everything if not run.is_finished
        ),
        rollouts=counts[0],
        alerts=counts[1],
        live_rollouts=counts[2],
        productions=counts[3],
        staging=tuple(staging),
        damaged=tuple(damage for path in sorted(paths) if (damage := _damage(path))),
        unknown_models=tuple(sorted(set(store.list_digests()) - {digest for digest, _ in versions})),
        slots=tuple(_occupied_slots(instance)),
        processes=tuple(f"{kind} {process.pid}" for kind in (RUN_WORKER, TRAINER) for process in alive[kind]),
    )


def _damage(path: Path) -> str:
    try:
        verify(path)
    except IccmError as error:
        return f"{path.name[:12]}: {error}"
    return ""


def _occupied_slots(instance: Instance) -> list[str]:
    """Return the slots of Dagster's pools that are held or waited for."""
    storage = instance.dagster.event_log_storage
    occupied = []
    for key in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(key)
        if info.active_slot_count or info.pending_step_count:
            occupied.append(f"{key} ({info.active_slot_count} held, {info.pending_step_count} waiting)")
    return occupied

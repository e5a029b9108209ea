"""The trainer: one process, one candidate (L1-L7).

``python -m iccm_assets.learning.trainer`` under Dagster Pipes takes a ``TrainingJob`` from the extra
``job`` and answers with a custom message that ``job.read_reply`` understands; with a file name it takes
the job from that file and writes the reply to stdout. ``train`` is the same without a process around it.

Nothing is published before the weights are finite, have moved, and the fence still holds. A trainer that
is killed leaves a staging directory; the next attempt goes on from its last whole epoch, to the same bits,
if it trains the very same thing, and removes it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from iccm_assets.errors import (
    DatabaseError,
    DatabaseUnreachable,
    IccmError,
    NothingLearned,
    StaleFence,
    TrainingError,
)
from iccm_assets.learning.job import LossPoint, TrainingJob, TrainingOutcome, reply_of
from iccm_assets.orphans import end_with_starter

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

    from iccm_assets.learning.dataset import Dataset
    from iccm_assets.learning.finetune import Trained
    from iccm_assets.models.manifest import Manifest
    from iccm_assets.models.seq import LoadedModel

HEARTBEAT_SECONDS = 5.0
PUBLISH_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
OBSERVE_SECONDS = 30.0  # at most one observation in the Dagster UI for so long (L7)
SCRATCH = "scratch"
# In times the model: the best, the last and the next checkpoint of the Trainer, bare, or with the optimiser's
# two numbers per weight. The candidate is written when they are gone.
DISK_FACTOR = 3
RESUMABLE_DISK_FACTOR = 9


def train(
    job: TrainingJob,
    *,
    progress: Callable[[LossPoint], None] = lambda point: None,
    still_current: Callable[[], bool] = lambda: True,
) -> TrainingOutcome:
    """Fine-tune the base on the dataset and publish the candidate in the model store.

    ``progress`` is called for each step and evaluation. ``still_current`` is the heartbeat: called every
    few seconds, and once before publishing; false means another attempt has taken over.
    Raises ``ModelNotFound``, ``DamagedCheckpoint``, ``InputError`` for the inputs, ``NothingLearned``,
    ``TrainingDiverged``, ``StaleFence``, else ``TrainingError``; nothing is published then.
    """
    from iccm_assets.learning.candidate import write_candidate
    from iccm_assets.learning.dataset import read_dataset
    from iccm_assets.learning.directories import remove_tree
    from iccm_assets.learning.finetune import fine_tune
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.models.seq import load_model

    started = time.perf_counter()
    dataset = read_dataset(Path(job.dataset))
    store = ModelStore(Path(job.home))
    with _named_failures():
        loaded = load_model(job.base)
        resumable = _preflight(job, loaded, store.free_bytes())
        staging = store.open_staging(job.run_id, job.attempt, job.fence, inherit=SCRATCH)
        loaded_at = time.perf_counter()
        try:
            trained = fine_tune(
                loaded,
                dataset,
                job.config,
                epochs=job.epochs,
                scratch=staging / SCRATCH,
                on_point=_watched(progress, still_current),
                identity=_identity(job, loaded, dataset) if resumable else None,
            )
            if trained.movement.changed_share == 0.0:
                raise NothingLearned(
                    f"learning rate {job.config.learning_rate:g}, {len(trained.history)} records"
                )
            trained_at = time.perf_counter()
            remove_tree(staging / SCRATCH)
            manifest = write_candidate(job, loaded, dataset, trained, staging)
            published = store.publish(staging, manifest, _patient(still_current))
        finally:
            remove_tree(staging)
    seconds = {
        "load": round(loaded_at - started, 3),
        "train": round(trained_at - loaded_at, 3),
        "publish": round(time.perf_counter() - trained_at, 3),
    }
    return _outcome(published.manifest, published.path, loaded, dataset, trained, seconds)


def _outcome(
    manifest: Manifest,
    path: Path,
    loaded: LoadedModel,
    dataset: Dataset,
    trained: Trained,
    seconds: dict[str, float],
) -> TrainingOutcome:
    evaluations = {p.step: p for p in trained.history if p.validation_loss is not None}
    best, first = evaluations[trained.best_step], evaluations[min(evaluations)]
    return TrainingOutcome(
        digest=manifest.digest,
        path=str(path),
        weights_digest=manifest.weights_digest,
        parent_digest=loaded.digest,
        dataset_digest=dataset.digest,
        counts=dataset.counts,
        history=trained.history,
        best_epoch=best.epoch,
        best_validation_loss=float(best.validation_loss or 0.0),
        initial_validation_loss=float(first.validation_loss or 0.0),
        stopped_early=trained.stopped_early,
        movement=trained.movement,
        parameters=trained.parameters,
        device=manifest.device or "",
        seconds=seconds,
        resumed_from_step=trained.resumed_from_step,
    )


def _preflight(job: TrainingJob, loaded: LoadedModel, free: int) -> bool:
    """Refuse a machine on which this cannot end well; whether checkpoints to go on from fit as well."""
    from iccm_assets.models.seq import device_class

    here = device_class(loaded.model.device)
    if job.device not in (None, here):
        raise TrainingError(f"bits of {job.device} are wanted and this machine computes on {here}")
    size = 4 * sum(weight.numel() for weight in loaded.model.parameters())
    if free < DISK_FACTOR * size:
        raise TrainingError(
            f"{free / 1e9:.2f} GB are free and {DISK_FACTOR * size / 1e9:.2f} GB are needed"
            " (three times the model)",
            hint="Free space below $ICCM_HOME.",
        )
    return bool(free >= RESUMABLE_DISK_FACTOR * size)


def _identity(job: TrainingJob, loaded: LoadedModel, dataset: Dataset) -> str:
    """Everything the weights depend on: only a training equal in all of it may be gone on with."""
    from iccm_assets.learning.model_store import training_provenance
    from iccm_assets.models.manifest import sha256_json
    from iccm_assets.models.seq import device_class

    device = device_class(loaded.model.device)
    return sha256_json([loaded.digest, dataset.digest, job.recipe, device, training_provenance()])


def _watched(
    progress: Callable[[LossPoint], None], still_current: Callable[[], bool]
) -> Callable[[LossPoint], None]:
    """Report each point, and ask now and then whether the run is still ours."""
    last = time.monotonic()

    def on_point(point: LossPoint) -> None:
        nonlocal last
        progress(point)
        if time.monotonic() - last >= HEARTBEAT_SECONDS:
            last = time.monotonic()
            # A database that is away for a moment is no reason to throw hours of training away: the
            # fence is asked again before anything is published.
            with suppress(DatabaseError):
                if not still_current():
                    raise StaleFence(f"noticed at step {point.step}")

    return on_point


def _patient(still_current: Callable[[], bool]) -> Callable[[], bool]:
    """Ask for the fence again while the database is away; the last refusal is raised."""

    def ask() -> bool:
        for pause in PUBLISH_RETRY_SECONDS:
            try:
                return still_current()
            except DatabaseError:
                time.sleep(pause)
        return still_current()

    return ask


@contextmanager
def _named_failures() -> Iterator[None]:
    """Turn what torch and the system throw into the platform's errors, keeping the cause (L4)."""
    from safetensors import SafetensorError

    try:
        yield
    except IccmError:
        raise
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        hint = "Free space below $ICCM_HOME and launch the run again." if full else ""
        raise TrainingError("no space left on the device" if full else str(error), hint=hint) from error
    except MemoryError as error:
        raise TrainingError(
            "out of memory", hint="Use ICCM_TRAINING__METHOD=lora or a smaller batch."
        ) from error
    except RuntimeError as error:  # torch's own errors, CUDA out of memory among them
        raise TrainingError(str(error).strip().splitlines()[0]) from error


def _fence(training_run_id: int | None, fence: int) -> Callable[[], bool]:
    """The heartbeat of a run's row: writes the time and says whether the fence is still ours."""
    if training_run_id is None:
        return lambda: True
    import sqlalchemy as sa

    from iccm_assets.learning.training_runs import heartbeat
    from iccm_assets.store.database import connect

    run_id, engine = training_run_id, connect()

    def still_current() -> bool:
        try:
            with engine.begin() as conn:
                heartbeat(conn, run_id, fence)
        except StaleFence:
            return False
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnreachable(str(error).splitlines()[0]) from error
        return True

    return still_current


def prepare_process() -> None:
    """Environment of a trainer process, set before torch is imported: repeatable sums, no telemetry."""
    for name, value in {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_WAIT_POLICY": "PASSIVE",  # see models/__init__.py
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def _told(pipes: PipesContext) -> Callable[[LossPoint], None]:
    """Every point is a line in the run's log; one now and then is sent to be observed (L7)."""
    last = -OBSERVE_SECONDS

    def tell(point: LossPoint) -> None:
        nonlocal last
        pipes.log.info(point.line())
        if time.monotonic() - last >= OBSERVE_SECONDS:
            last = time.monotonic()
            pipes.report_custom_message({"point": asdict(point)})

    return tell


def _under_dagster() -> None:
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        try:
            job = TrainingJob.from_dict(pipes.get_extra("job"))
            outcome: TrainingOutcome | IccmError = train(
                job,
                progress=_told(pipes),
                still_current=_fence(job.training_run_id, job.fence),
            )
        except IccmError as error:
            pipes.log.error(str(error))
            outcome = error
        pipes.report_custom_message(reply_of(outcome))


def _from_file(path: Path) -> int:
    log = logging.getLogger("iccm.trainer")
    try:
        job = TrainingJob.from_dict(json.loads(path.read_text(encoding="utf-8")))
        outcome: TrainingOutcome | IccmError = train(
            job,
            progress=lambda point: log.info(point.line()),
            still_current=_fence(job.training_run_id, job.fence),
        )
    except IccmError as error:
        outcome = error
    sys.stdout.write(json.dumps(reply_of(outcome)) + "\n")
    return 1 if isinstance(outcome, IccmError) else 0


def main() -> int:
    """Entry of the process; a named failure is an answer, anything else is a crash."""
    end_with_starter()
    prepare_process()
    if len(sys.argv) > 1:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        return _from_file(Path(sys.argv[1]))
    _under_dagster()
    return 0


if __name__ == "__main__":
    sys.exit(main())

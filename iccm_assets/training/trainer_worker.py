"""The trainer: one process trains one candidate (L1-L7).

``python -m iccm_assets.training.trainer_worker`` under Pipes reads a ``TrainingJob`` from the extra ``job``
and replies with a custom message for ``worker_protocol.parse_reply``; with a file name it reads the job from
that file and writes the reply to stdout. ``train`` does the same without a process.

Nothing is published unless the weights are finite, have changed, and the fence still holds. A killed trainer
leaves a staging directory behind; the next attempt removes it and, if it is the same training, resumes its
last complete epoch, with the same bits as a result.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.exc import SQLAlchemyError

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.db import database
from iccm_assets.db.worker_presence import exit_without_presence, is_on_cluster
from iccm_assets.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    IccmError,
    NoWeightsChangedError,
    StaleFenceError,
    TrainingError,
    first_line,
)
from iccm_assets.registry.hub import is_adapter, resolve
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.registry.manifest import sha256_json
from iccm_assets.registry.model_store import ModelStore, StoredModel, training_provenance
from iccm_assets.registry.training_runs import heartbeat
from iccm_assets.settings import get_settings
from iccm_assets.storage_cache import open_storage_at
from iccm_assets.training.accelerate_config import require_trainable
from iccm_assets.training.dataset import Dataset, DatasetStore, read_dataset
from iccm_assets.training.distributed_launch import train_in_processes
from iccm_assets.training.run_tracking import describe_start, start_reporter
from iccm_assets.training.training_method import choose_method
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome, parse_job, to_reply
from iccm_assets.worker_process import exit_with_parent, open_pipes

if TYPE_CHECKING:
    from types import ModuleType

    from iccm_assets.models.generation import LoadedModel
    from iccm_assets.training.finetuning import DescribeStart, FineTuneResult
    from iccm_assets.training.process_group import ProcessGroup

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
PUBLISH_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
OBSERVATION_INTERVAL_SECONDS = 30.0  # at most one observation in the Dagster UI per this interval (L7)
SCRATCH = "scratch"
# Disk space as a multiple of the model: the Trainer's best, last and next checkpoint, without or with the
# optimizer's two numbers per weight. The candidate is written after their deletion.
DISK_FACTOR = 3
RESUMABLE_DISK_FACTOR = 9


def train(
    job: TrainingJob,
    *,
    progress: Callable[[LossPoint], None] = lambda point: None,
    still_current: Callable[[], bool] = lambda: True,
    before_import: Callable[[str, bool], None] = lambda objective, uses_adapters: None,
    warn: Callable[[str], None] = log.warning,
) -> TrainingOutcome:
    """Fine-tune the base on the dataset and publish the candidate in the model store.

    ``progress`` is called for each step and evaluation, ``warn`` for each experiment tracker that cannot show
    the training. ``still_current`` is the heartbeat: called every few seconds, and once before publishing;
    false means that another attempt has taken over. ``before_import`` is called before torch is imported,
    with the objective and whether it needs ``peft``. Raises ``ModelNotFoundError``,
    ``CorruptCheckpointError``, ``InputError``, ``SettingsError`` for the inputs, ``NoWeightsChangedError``,
    ``TrainingDivergedError``, ``StaleFenceError``, else ``TrainingError``; nothing is published then.
    """
    started = time.perf_counter()
    inputs = load_inputs(job)
    job, store, dataset = inputs.job, inputs.store, inputs.dataset
    before_import(job.config.objective, inputs.uses_adapters)

    from iccm_assets.training.checkpoint_export import write_checkpoint

    with _translated_errors(), start_reporter(job.config, warn) as reporter:
        loaded, device, group = _load_parent(inputs)

        def stage() -> tuple[Path, bool]:
            resumable = _check_resources(job, loaded, device, store.free_bytes())
            return store.create_staging(job.run_id, job.attempt, job.fence, inherit=SCRATCH), resumable

        staging, resumable = stage() if group is None else group.call_in_main(stage)
        loaded_at, is_interrupted = time.perf_counter(), False
        try:
            trained = _load_objective(job)(
                loaded,
                dataset,
                job.config,
                epochs=job.epochs,
                scratch=staging / SCRATCH,
                on_progress=_with_heartbeat(progress, still_current),
                identity=_training_identity(job, loaded, dataset, device) if resumable else None,
                adapter=inputs.adapter,
                tracking=(reporter, _describe_tracked_run(job, loaded, dataset)),
                **({} if group is None else {"group": group}),
            )
            assert trained is not None  # this is the main process
            if trained.weight_change.changed_share == 0.0:
                raise NoWeightsChangedError(
                    f"learning rate {job.config.learning_rate:g}, {len(trained.history)} records"
                )
            trained_at = time.perf_counter()
            remove_tree(staging / SCRATCH)
            manifest = write_checkpoint(job, loaded, dataset, trained, staging, inputs.base, device)
            published = store.publish(staging, manifest, _with_retries(still_current))
        except Exception as error:
            # Where another process has died, its peers lose the connection: the next attempt resumes.
            is_interrupted = group is not None and not isinstance(error, IccmError)
            raise
        finally:
            if not is_interrupted:
                remove_tree(staging)
        seconds = {
            "load": round(loaded_at - started, 3),
            "train": round(trained_at - loaded_at, 3),
            "publish": round(time.perf_counter() - trained_at, 3),
        }
        reporter.finish()
    outcome = _build_outcome(published, dataset, trained, seconds)
    return outcome.model_copy(update={"tracker_runs": dict(reporter.runs)})


def assist_training(job: TrainingJob, *, progress: Callable[[LossPoint], None]) -> None:
    """Compute a share of each step of a training whose main process is another one (K4).

    Nothing is reported but ``progress``, and nothing is published here.
    """
    inputs = load_inputs(job)
    job = inputs.job
    skip_unused_libraries(job.config.objective, inputs.uses_adapters)
    with _translated_errors():
        loaded, device, group = _load_parent(inputs)
        assert group is not None
        # The main process decides; this one only hears where the checkpoints lie.
        staging, resumable = group.call_in_main(lambda: (Path(), False))
        _load_objective(job)(
            loaded,
            inputs.dataset,
            job.config,
            epochs=job.epochs,
            scratch=staging / SCRATCH,
            on_progress=progress,
            identity=_training_identity(job, loaded, inputs.dataset, device) if resumable else None,
            adapter=inputs.adapter,
            group=group,
        )


@dataclass(frozen=True)
class TrainingInputs:
    """What a job needs, found and checked: ``base`` is the parent itself, or an adapter's base.

    ``adapter`` is the one to train on, and ``job`` has the method that ``auto`` stands for.
    """

    job: TrainingJob
    store: ModelStore
    dataset: Dataset
    parent: Path
    base: Path

    @property
    def uses_adapters(self) -> bool:
        """Whether ``peft`` is needed."""
        return self.job.config.method == "lora" or self.parent != self.base

    @property
    def adapter(self) -> Path | None:
        """The adapter that is trained on."""
        return self.parent if self.job.config.method == "lora" and self.parent != self.base else None


def load_inputs(job: TrainingJob) -> TrainingInputs:
    """Find what a job names; one that cannot be trained fails here, before torch is imported."""
    storage = open_storage_at(job.storage, Path(job.home), get_settings().storage_max_cache_gib)
    store = ModelStore(Path(job.home), storage)
    dataset = read_dataset(DatasetStore(Path(job.home), storage).locate(job.dataset))
    parent = resolve(str(store.locate(job.base)))
    base = store.locate_base(parent) if is_adapter(parent) else parent
    job = job.model_copy(update={"config": choose_method(job.config, parent, base)})
    if job.accelerate is not None:
        require_trainable(job.config, job.accelerate)
    return TrainingInputs(job, store, dataset, parent, base)


def _load_parent(inputs: TrainingInputs) -> tuple[LoadedModel, str, ProcessGroup | None]:
    """Load the model to train; return it, the class of the device that trains it, and the processes."""
    from iccm_assets.models.generation import get_device_class
    from iccm_assets.training.parent_model import load_parent

    group, target = None, None
    if inputs.job.accelerate is not None:
        from iccm_assets.training.process_group import join_group

        group = join_group(inputs.job.accelerate)
        # A model that is divided among GPUs may be too large for one of them.
        target = "cpu" if group.is_sharded else None
    loaded = load_parent(inputs.parent, inputs.base, method=inputs.job.config.method, device=target)
    _resume_garbage_collection()
    return loaded, get_device_class(loaded.model.device if group is None else group.device), group


def _describe_tracked_run(job: TrainingJob, loaded: LoadedModel, dataset: Dataset) -> DescribeStart:
    """Describe the run to its trackers; the version that will be its name is known after the training."""
    tags = {
        "iccm.training_run": job.run_id,
        "iccm.attempt": str(job.attempt),
        "iccm.parent_digest": loaded.digest,
        "iccm.dataset_digest": dataset.digest,
    }
    return describe_start(Path(job.home), job.config, f"training-{job.run_id}", tags)


def _load_objective(job: TrainingJob) -> Callable[..., FineTuneResult | None]:
    """Return the function that trains for the job's objective; it imports what that needs."""
    if job.config.objective == "dpo":
        from iccm_assets.training.preference_training import fine_tune_preferences

        return fine_tune_preferences
    from iccm_assets.training.finetuning import fine_tune

    return fine_tune


def _build_outcome(
    published: StoredModel, dataset: Dataset, trained: FineTuneResult, seconds: dict[str, float]
) -> TrainingOutcome:
    evaluations = {point.step: point for point in trained.history if point.validation_loss is not None}
    best, first = evaluations[trained.best_step], evaluations[min(evaluations)]
    return TrainingOutcome(
        digest=published.digest,
        path=str(published.path),
        weights_digest=published.manifest.weights_digest,
        parent_digest=published.manifest.parent_digest or "",
        dataset_digest=dataset.digest,
        counts=trained.counts,
        history=trained.history,
        best_epoch=best.epoch,
        best_validation_loss=best.validation_loss or 0.0,
        initial_validation_loss=first.validation_loss or 0.0,
        weight_change=trained.weight_change,
        parameters=trained.parameters,
        device=published.manifest.device or "",
        method=str(published.manifest.config["method"]),
        base_digest=published.manifest.base_digest,
        seconds=seconds,
        resumed_from_step=trained.resumed_from_step,
    )


def _check_resources(job: TrainingJob, loaded: LoadedModel, device: str, free: int) -> bool:
    """Raise if the device or the free disk does not suffice; return whether resumable checkpoints fit."""
    if job.device not in (None, device):
        raise TrainingError(f"the job requires device class {job.device}, this machine has {device}")
    what, size = "model", 4 * sum(weight.numel() for weight in loaded.model.parameters())
    if job.config.method == "lora":
        from iccm_assets.training.adapter_training import compute_adapter_size

        what, size = "adapter", compute_adapter_size(loaded.model.config, job.config.lora_r).weight_bytes
    if free < DISK_FACTOR * size:
        raise TrainingError(
            f"{free / 1e9:.2f} GB are free and {DISK_FACTOR * size / 1e9:.2f} GB are required"
            f" (three times the {what})",
            hint="Free disk space below $ICCM_HOME.",
        )
    resumable = bool(free >= RESUMABLE_DISK_FACTOR * size)
    if job.accelerate is not None and job.accelerate.is_sharded and not resumable:
        required = RESUMABLE_DISK_FACTOR * size / 1e9
        raise TrainingError(
            f"{free / 1e9:.2f} GB are free and {required:.2f} GB are required for the checkpoints of FSDP"
            " (nine times the model)",
            hint="Free disk space below $ICCM_HOME.",
        )
    return resumable


def _training_identity(job: TrainingJob, loaded: LoadedModel, dataset: Dataset, device: str) -> str:
    """Return the hash of everything the weights depend on: only an equal training may resume another."""
    provenance = training_provenance(job.config.method)
    processes = [] if job.accelerate is None else [job.accelerate.describe_for_manifest()]
    return sha256_json([loaded.digest, dataset.digest, job.hyperparameters, device, provenance, *processes])


def _with_heartbeat(
    progress: Callable[[LossPoint], None], still_current: Callable[[], bool]
) -> Callable[[LossPoint], None]:
    """Report each point, and check the fence every few seconds."""
    last = time.monotonic()

    def on_point(point: LossPoint) -> None:
        nonlocal last
        progress(point)
        if time.monotonic() - last >= HEARTBEAT_SECONDS:
            last = time.monotonic()
            # A short outage of the database must not lose hours of training: the fence is checked
            # again before publishing.
            with suppress(DatabaseError):
                if not still_current():
                    raise StaleFenceError(f"detected at step {point.step}")

    return on_point


def _with_retries(still_current: Callable[[], bool]) -> Callable[[], bool]:
    """Check the fence again while the database is unreachable; the last error is raised."""

    def check() -> bool:
        for pause in PUBLISH_RETRY_SECONDS:
            try:
                return still_current()
            except DatabaseError:
                time.sleep(pause)
        return still_current()

    return check


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise the errors of torch and the system as the platform's errors, with their cause (L4)."""
    from safetensors import SafetensorError

    try:
        yield
    except IccmError:
        raise
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full:
            raise TrainingError(str(error)) from error
        hint = "Free disk space below $ICCM_HOME and launch the run again."
        raise TrainingError("no space left on the device", hint=hint) from error
    except MemoryError as error:
        raise TrainingError(
            "out of memory", hint="Use ICCM_TRAINING__METHOD=lora or a smaller batch."
        ) from error
    except RuntimeError as error:  # torch's own errors, CUDA out of memory among them
        raise TrainingError(first_line(error)) from error


def make_heartbeat(training_run_id: int | None, fence: int) -> Callable[[], bool]:
    """Return the heartbeat of a run's row: it writes the time and returns whether the fence still holds."""
    if training_run_id is None:
        return lambda: True
    run_id, engine = training_run_id, database.connect()

    def still_current() -> bool:
        try:
            with engine.begin() as conn:
                heartbeat(conn, run_id, fence)
        except StaleFenceError:
            return False
        except SQLAlchemyError as error:
            raise DatabaseUnreachableError(first_line(error)) from error
        return True

    return still_current


def prepare_process() -> None:
    """Prepare a trainer process before torch is imported: reproducible sums, no telemetry, no garbage yet."""
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
    gc.disable()


def _resume_garbage_collection() -> None:
    """Collect garbage again, but not among the objects of the libraries, if ``prepare_process`` paused it.

    Their import creates some hundred thousand objects that stay: to search them took a seventh of its time.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def skip_unused_libraries(objective: str, uses_adapters: bool) -> None:
    """Let ``transformers`` and ``accelerate`` do without optional packages that this training does not use.

    They import them if they are installed, which takes 0.6 CPU seconds: ``None`` is Python's way to hide one.
    """
    if objective == "dpo":  # trl uses them
        return
    for name in ("boto3", "scipy", "sklearn", *([] if uses_adapters else ["peft"])):
        sys.modules.setdefault(name, cast("ModuleType", None))


def _run_job(
    values: Any, progress: Callable[[LossPoint], None], warn: Callable[[str], None] = log.warning
) -> dict[str, Any]:
    """Train the job of these JSON values; return the outcome, or the platform's error, as JSON values."""
    try:
        job = parse_job(values)
        if is_on_cluster():
            job = job.move_home(get_settings().home)
        if job.accelerate is not None:
            load_inputs(job)
            return to_reply(train_in_processes(job, progress, warn))
        still_current = make_heartbeat(job.training_run_id, job.fence)
        outcome = train(
            job,
            progress=progress,
            still_current=still_current,
            before_import=skip_unused_libraries,
            warn=warn,
        )
        return to_reply(outcome)
    except IccmError as error:
        return to_reply(error)


def _reply_to_dagster() -> None:
    exit_without_presence(database.connect)
    with open_pipes() as pipes:
        last = -OBSERVATION_INTERVAL_SECONDS

        def report(point: LossPoint) -> None:
            """Log every point, and send one per interval as an observation (L7)."""
            nonlocal last
            pipes.log.info(point.to_log_line())
            if time.monotonic() - last >= OBSERVATION_INTERVAL_SECONDS:
                last = time.monotonic()
                pipes.report_custom_message({"point": asdict(point)})

        reply = _run_job(pipes.get_extra("job"), report, pipes.log.warning)
        if "error" in reply:
            pipes.log.error(str(IccmError.from_dict(reply["error"])))
        pipes.report_custom_message(reply)


def _reply_to_stdout(path: Path) -> int:
    reply = _run_job(
        json.loads(path.read_text(encoding="utf-8")), lambda point: log.info(point.to_log_line())
    )
    sys.stdout.write(json.dumps(reply) + "\n")
    return 1 if "error" in reply else 0


def main() -> int:
    """Run the process; an error of the platform is a reply, any other one a crash."""
    exit_with_parent()
    prepare_process()
    if len(sys.argv) > 1:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        return _reply_to_stdout(Path(sys.argv[1]))
    _reply_to_dagster()
    return 0


if __name__ == "__main__":
    sys.exit(main())

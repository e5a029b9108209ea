"""Check that a version can be reproduced, bit for bit, from its stored records (L5).

The trainer runs again with the parent, the training set, the configuration, the seed and the thread count of
the version's manifest, in a temporary directory; nothing is written to the store or the database.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import sqlalchemy as sa

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.db import tables as t
from iccm_assets.errors import CorruptCheckpointError, InputError, ModelError, TrainingError
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore, training_provenance
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import TrainingSettings
from iccm_assets.storage_cache import StorageCache
from iccm_assets.training.accelerate_config import AccelerateConfig
from iccm_assets.training.dataset import DATASET_MANIFEST_FILE, DatasetStore
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome, parse_reply
from iccm_assets.worker_process import kill_tree, parent_env, worker_command

WORKSPACE_DIRECTORY = ".verify"
ReproductionOutcome = Literal["reproduced", "differs", "impossible", "imported"]
LineCallback = Callable[[str], None]
TrainFunction = Callable[[TrainingJob, LineCallback], TrainingOutcome]


@dataclass(frozen=True)
class ReproductionReport:
    """The result of reproducing a version.

    ``imported``: it was not trained here. ``impossible``: its records no longer allow a comparison, for this
    ``reason``; ``erased`` are the ids of the missing conversations. ``same_digest`` also covers the other
    files, which contain versions of packages and may therefore differ where the weights do not.
    """

    version: str
    outcome: ReproductionOutcome
    reason: str
    weights_digest: str | None = None
    reproduced_weights_digest: str | None = None
    same_digest: bool | None = None
    erased: tuple[int, ...] = ()
    examples: int = 0
    seconds: float = 0.0


def reproduce_version(
    engine: sa.Engine,
    home: Path,
    version: ModelVersion,
    *,
    storage: StorageCache | None = None,
    train: TrainFunction | None = None,
    on_line: LineCallback = print,
) -> ReproductionReport:
    """Train a version again and compare its weights; ``storage`` has what the home lacks.

    ``on_line`` receives the trainer's progress, line by line. Raises ``CorruptCheckpointError`` or
    ``ModelNotFoundError`` if the version itself is damaged, and any error that ends the training.
    """
    models, datasets = ModelStore(home, storage), DatasetStore(home, storage)
    manifest = models.verify_directory(models.locate(version.path))
    if manifest.parent_digest is None or manifest.dataset_digest is None:
        origin = f"not trained here but imported from {manifest.base}: nothing to reproduce"
        return ReproductionReport(version.version, "imported", origin, manifest.weights_digest)
    with engine.connect() as conn:
        erased = find_erased_examples(conn, datasets, manifest, version.version)
    ids = ", ".join(map(str, erased))
    gap = f"{len(erased)} of its training conversations were erased since: {ids}" if erased else None
    reason = gap or _find_missing_input(models, datasets, manifest)
    if not reason:
        with temporary_workspace(home) as directory:
            try:
                job = _build_job(models, datasets, directory, manifest)
                reproduced = (train or train_in_subprocess)(job, on_line)
                return compare_outcome(version.version, manifest, reproduced)
            except TrainingError as error:
                reason = str(error)
    return ReproductionReport(version.version, "impossible", reason, manifest.weights_digest, erased=erased)


def compare_outcome(version: str, manifest: Manifest, outcome: TrainingOutcome) -> ReproductionReport:
    """Compare a version with the outcome of training it again."""
    same = outcome.weights_digest == manifest.weights_digest
    differences = [
        f"{name} {manifest.code.get(name, 'not recorded')} -> {installed}"
        for name, installed in sorted(training_provenance(manifest.config.get("method", "full")).items())
        if manifest.code.get(name) != installed
    ]
    if same:
        reason = "the same weights, bit for bit"
    elif differences:
        reason = f"different weights, and different versions: {', '.join(differences)}"
    else:
        reason = f"different weights with the same versions and device class ({manifest.device})"
    return ReproductionReport(
        version,
        "reproduced" if same else "differs",
        reason,
        manifest.weights_digest,
        outcome.weights_digest,
        outcome.digest == manifest.digest,
        examples=sum(outcome.counts.get(role, 0) for role in ("new", "self", "rehearsal", "validation")),
        seconds=sum(outcome.seconds.values()),
    )


def find_erased_examples(
    conn: sa.Connection, datasets: DatasetStore, manifest: Manifest, version: str
) -> tuple[int, ...]:
    """Return the erased conversations of a version's training set, by the rows and the snapshot."""
    runs, used, c = t.phase4_training_runs.c, t.training_run_examples.c, t.conversations.c
    rows = conn.execute(
        sa.select(c.id)
        .join(t.training_run_examples, used.conversation_id == c.id)
        .join(t.phase4_training_runs, runs.id == used.training_run_id)
        .where(runs.candidate_version == version, runs.dataset_digest == manifest.dataset_digest)
        .where(c.erased_at.is_not(None))
    )
    return tuple(sorted({*rows.scalars(), *_read_erased_from_snapshot(datasets, manifest)}))


def _read_erased_from_snapshot(datasets: DatasetStore, manifest: Manifest) -> list[int]:
    try:
        path = datasets.locate(datasets.root / (manifest.dataset_digest or "-")) / DATASET_MANIFEST_FILE
        return [int(member) for member in json.loads(path.read_text(encoding="utf-8")).get("erased", [])]
    except (InputError, OSError, ValueError, TypeError, AttributeError):
        return []  # a missing or damaged snapshot is reported when it is loaded


def _find_missing_input(models: ModelStore, datasets: DatasetStore, manifest: Manifest) -> str | None:
    """Return which input of the training is missing or changed; None if all are intact."""
    if manifest.config.get("method") == "lora" and manifest.base_digest is None:
        return "it was published merged by an earlier version of the platform, which now publishes adapters"
    try:
        datasets.load(manifest.dataset_digest or "")
        models.verify(manifest.parent_digest or "")
        TrainingSettings(**manifest.config)
        AccelerateConfig.model_validate(manifest.accelerate) if manifest.accelerate else None
    except CorruptCheckpointError as error:
        return f"its parent is damaged: {error.detail}"
    except ModelError:
        return f"its parent {manifest.parent_digest} is no longer in the model store"
    except InputError as error:
        return f"its training set cannot be read: {error.detail}"
    except ValueError:
        return "its configuration is not valid in this version of the platform"
    return None


def _build_job(
    models: ModelStore, datasets: DatasetStore, directory: Path, manifest: Manifest
) -> TrainingJob:
    # The recorded number of epochs is that of the run, whether it was an emergency or not.
    return TrainingJob(
        home=str(directory),
        base=str(models.get_path(manifest.parent_digest or "")),
        dataset=str(datasets.root / (manifest.dataset_digest or "")),
        config=TrainingSettings(**manifest.config),
        run_id="verify",
        device=manifest.device,
        accelerate=AccelerateConfig.model_validate(manifest.accelerate) if manifest.accelerate else None,
    )


@contextmanager
def temporary_workspace(home: Path) -> Iterator[Path]:
    """Create a directory below the home and delete it afterwards, even after Ctrl-C or SIGTERM.

    Directories of killed verifications are removed first.
    """
    root = home / WORKSPACE_DIRECTORY
    for directory in root.glob("*-*"):
        owner = directory.name.split("-", 1)[0]
        if not owner.isdigit() or not psutil.pid_exists(int(owner)):
            remove_tree(directory)
    root.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
    try:
        with _sigterm_as_interrupt():
            yield directory
    finally:
        remove_tree(directory)
        with suppress(OSError):  # another verification is using it
            root.rmdir()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack like Ctrl-C; only the main thread may set a signal handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train_in_subprocess(job: TrainingJob, on_line: LineCallback) -> TrainingOutcome:
    """Train in a subprocess, as the asset does; raises the trainer's error."""
    path = Path(job.home) / "job.json"
    path.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    output, last_line, status = run_streaming(
        worker_command("iccm_assets.training.trainer_worker", str(path)), on_line
    )
    try:
        reply = json.loads(output)
    except ValueError as error:
        raise TrainingError(f"the trainer process ended with {status}: {last_line}") from error
    return parse_reply([reply])


def run_streaming(command: Sequence[str], on_line: LineCallback) -> tuple[str, str, int]:
    """Run a command; return its standard output, its last log line and its exit status.

    Both streams are read concurrently: the process would block on output larger than a pipe's buffer.
    """
    last_line = ""
    output: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **parent_env()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        stdout, stderr = process.stdout, process.stderr
        assert stdout is not None and stderr is not None
        reader = threading.Thread(target=lambda: output.append(stdout.read()), daemon=True)
        reader.start()
        try:
            for line in stderr:
                last_line = line.strip() or last_line
                on_line(line.rstrip())
        except BaseException:
            kill_tree(process.pid)
            raise
        finally:
            reader.join()
    return "".join(output), last_line, process.returncode

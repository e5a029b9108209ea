"""Whether a version can be made again, bit for bit, from what is stored about it (L5).

The parent, the training set, the configuration, the seed and the thread count of the version's manifest are
given to the trainer once more, in a directory of its own; nothing is written to the store or the database.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import psutil
import sqlalchemy as sa

from iccm_assets.errors import DamagedCheckpoint, InputError, ModelError, TrainingError
from iccm_assets.learning.dataset import MANIFEST, DatasetStore
from iccm_assets.learning.directories import remove_tree
from iccm_assets.learning.job import TrainingJob, TrainingOutcome, read_reply, write_job
from iccm_assets.learning.model_store import ModelStore, training_provenance
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import Manifest, verify
from iccm_assets.settings import Training
from iccm_assets.store import tables as t

WORKPLACE = ".verify"
Outcome = Literal["reproduced", "differs", "impossible"]
Tell = Callable[[str], None]
Train = Callable[[TrainingJob, Tell], TrainingOutcome]


@dataclass(frozen=True)
class Verification:
    """What came of making a version again.

    ``impossible`` means nothing was trained or could be compared: no verdict, and ``reason`` says why;
    ``erased`` names the conversations that are missing. ``same_digest`` also covers the files beside the
    weights, which name the package versions and so may differ where the weights do not.
    """

    version: str
    outcome: Outcome
    reason: str
    weights_digest: str | None = None
    made_weights_digest: str | None = None
    same_digest: bool | None = None
    erased: tuple[int, ...] = ()
    examples: int = 0
    seconds: float = 0.0


def retrace(
    engine: sa.Engine, home: Path, version: ModelVersion, *, train: Train | None = None, tell: Tell = print
) -> Verification:
    """Train a version again and compare its weights.

    ``tell`` gets the trainer's progress, line by line. Raises ``DamagedCheckpoint`` or ``ModelNotFound`` when
    the version itself is not whole, and whatever ends the training.
    """
    manifest = verify(Path(version.path))
    with engine.connect() as conn:
        erased = erased_examples(conn, home, manifest, version.version)
    if obstacle := why_not(version.version, manifest, erased) or _missing(home, manifest):
        return Verification(version.version, "impossible", obstacle, manifest.weights_digest, erased=erased)
    with workplace(home) as directory:
        try:
            made = (train or in_a_process)(_job(home, directory, manifest), tell)
        except TrainingError as error:
            return Verification(version.version, "impossible", str(error), manifest.weights_digest)
    return compare(version.version, manifest, made)


def why_not(version: str, manifest: Manifest, erased: Sequence[int]) -> str | None:
    """The reason a version cannot be made again that its records already tell; None when there is none."""
    if manifest.parent_digest is None or manifest.dataset_digest is None:
        return f"{version} was not trained here: it was imported from {manifest.base}"
    if erased:
        named = ", ".join(map(str, erased))
        return f"conversations it learned from were erased since ({len(erased)}): {named}"
    return None


def compare(version: str, manifest: Manifest, made: TrainingOutcome) -> Verification:
    """The verdict on a version and what training it again has made."""
    same = made.weights_digest == manifest.weights_digest
    here = training_provenance()
    moved = sorted(
        f"{name} {manifest.code.get(name, 'unknown')} -> {here[name]}"
        for name in here
        if manifest.code.get(name) != here[name]
    )
    if same:
        reason = "the same weights, bit for bit"
    elif moved:
        reason = f"other weights; the packages are others too: {', '.join(moved)}"
    else:
        reason = f"other weights on the same package versions and device class ({manifest.device})"
    return Verification(
        version,
        "reproduced" if same else "differs",
        reason,
        manifest.weights_digest,
        made.weights_digest,
        made.digest == manifest.digest,
        examples=sum(made.counts.get(role, 0) for role in ("new", "rehearsal", "validation")),
        seconds=sum(made.seconds.values()),
    )


def erased_examples(conn: sa.Connection, home: Path, manifest: Manifest, version: str) -> tuple[int, ...]:
    """The conversations of a version's training set that were erased since, by the rows and the snapshot."""
    runs, used, c = t.phase4_training_runs.c, t.training_run_examples.c, t.conversations.c
    rows = conn.execute(
        sa.select(c.id)
        .join(t.training_run_examples, used.conversation_id == c.id)
        .join(t.phase4_training_runs, runs.id == used.training_run_id)
        .where(runs.candidate_version == version, runs.dataset_digest == manifest.dataset_digest)
        .where(c.erased_at.is_not(None))
    )
    return tuple(sorted({*rows.scalars(), *_named_by_snapshot(home, manifest)}))


def _named_by_snapshot(home: Path, manifest: Manifest) -> list[int]:
    path = DatasetStore(home).root / (manifest.dataset_digest or "-") / MANIFEST
    try:
        return [int(one) for one in json.loads(path.read_text(encoding="utf-8")).get("erased", [])]
    except (OSError, ValueError, TypeError, AttributeError):
        return []  # whether the snapshot is there and whole is asked when it is loaded


def _missing(home: Path, manifest: Manifest) -> str | None:
    """What of the ingredients is no longer there, or no longer what it was."""
    try:
        DatasetStore(home).load(manifest.dataset_digest or "")
        ModelStore(home).verify(manifest.parent_digest or "")
        Training(**manifest.config)
    except DamagedCheckpoint as error:
        return f"its parent is damaged: {error.detail}"
    except ModelError:
        return f"its parent {manifest.parent_digest} is not in the model store any more"
    except InputError as error:
        return f"its training set cannot be read: {error.detail}"
    except ValueError:
        return "its configuration is not one that this version of the platform knows"
    return None


def _job(home: Path, directory: Path, manifest: Manifest) -> TrainingJob:
    # The recorded number of epochs is that of the run, emergency or not.
    return TrainingJob(
        home=str(directory),
        base=str(ModelStore(home).path(manifest.parent_digest or "")),
        dataset=str(DatasetStore(home).root / (manifest.dataset_digest or "")),
        config=Training(**manifest.config),
        run_id="verify",
        device=manifest.device,
    )


@contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A directory below the home that is gone afterwards, also after Ctrl-C or a request to terminate.

    What a verification that was killed outright left behind is removed first.
    """
    root = home / WORKPLACE
    for leftover in root.glob("*-*"):
        owner = leftover.name.split("-", 1)[0]
        if not owner.isdigit() or not psutil.pid_exists(int(owner)):
            remove_tree(leftover)
    root.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
    try:
        with _terminated_as_interrupted():
            yield directory
    finally:
        remove_tree(directory)
        with suppress(OSError):  # another verification works there
            root.rmdir()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_a_process(job: TrainingJob, tell: Tell) -> TrainingOutcome:
    """Train in a process of its own, as the asset does; raises the error the trainer met."""
    path = Path(job.home) / "job.json"
    write_job(job, path)
    answer, last, status = said([sys.executable, "-m", "iccm_assets.learning.trainer", str(path)], tell)
    try:
        return read_reply([json.loads(answer)])
    except ValueError as error:
        raise TrainingError(f"the trainer process ended with {status}: {last}") from error


def said(command: Sequence[str], tell: Tell) -> tuple[str, str, int]:
    """What a command wrote to its standard output, the last of its log lines, and its exit status.

    Both streams are read as they come: an answer larger than a pipe holds would wait for ever to be read.
    """
    last = ""
    answers: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        stdout, stderr = process.stdout, process.stderr
        assert stdout is not None and stderr is not None
        reader = threading.Thread(target=lambda: answers.append(stdout.read()), daemon=True)
        reader.start()
        try:
            for line in stderr:
                last = line.strip() or last
                tell(line.rstrip())
        except BaseException:
            process.kill()
            raise
        finally:
            reader.join()
    return "".join(answers), last, process.returncode

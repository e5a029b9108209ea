from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import CorruptCheckpointError, TrainingDivergedError
from iccm_assets.governance.dataset_erasure import rewrite_datasets
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.training.dataset import read_dataset
from iccm_assets.training.reproducibility import (
    LineCallback,
    ReproductionReport,
    reproduce_version,
    run_streaming,
    temporary_workspace,
    train_in_subprocess,
)
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome
from iccm_assets_tests.retraining.factories import conversation, training_run
from iccm_assets_tests.training.factories import tiny_job

VERIFY = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", "verify"]


def again(job: TrainingJob, tell: LineCallback) -> TrainingOutcome:
    return train(job, progress=lambda point: tell(point.to_log_line()))


def untrained(job: TrainingJob, tell: LineCallback) -> TrainingOutcome:
    pytest.fail("it was trained, though its records tell that this cannot work")


@dataclass
class Trained:
    """A platform with versions trained by tiny jobs, and what verification says of them."""

    engine: sa.Engine
    settings: Settings

    def version(self, job: TrainingJob) -> ModelVersion:
        """Train, and register the outcome with its lineage."""
        outcome = train(job)
        examples = {
            one.conversation_id: one.role
            for one in read_dataset(Path(job.dataset)).examples
            if one.conversation_id is not None
        }
        with self.engine.begin() as conn:
            made = versions.register_version(
                conn, digest=outcome.digest, path=outcome.path, parent=None, status="candidate"
            )
            for number in examples:
                if not conn.execute(
                    sa.text("select from iccm.conversations where id = :id"), {"id": number}
                ).all():
                    conversation(conn, number, pool=False, filtered=False)
            training_run(
                conn, int(job.run_id), made.version, examples=examples, dataset_digest=outcome.dataset_digest
            )
        return made

    def verify(self, version: ModelVersion, **how: object) -> ReproductionReport:
        how.setdefault("train", untrained)
        return reproduce_version(self.engine, self.settings.home, version, **how)  # type: ignore[arg-type]

    def state(self) -> tuple[str, str]:
        """Fingerprints of every file of the home and of every row of the tables a verification reads."""
        files = hashlib.sha256()
        for path in sorted(self.settings.home.rglob("*")):
            files.update(f"{path} {path.stat().st_mode}".encode())
            files.update(path.read_bytes() if path.is_file() else b"")
        with self.engine.connect() as conn:
            rows = [
                conn.execute(sa.text(f"select xmin, * from iccm.{table} order by 2")).all()
                for table in ("model_versions", "phase4_training_runs", "conversations")
            ]
        return files.hexdigest(), repr(rows)


@pytest.fixture
def lived(engine: sa.Engine, settings: Settings) -> Iterator[Trained]:
    settings.home.mkdir(parents=True)
    yield Trained(engine, settings)


def test_three_different_versions_are_made_again_bit_for_bit_and_nothing_is_changed(lived: Trained) -> None:
    home = lived.settings.home
    first = tiny_job(home, epochs=1)
    full = lived.version(first)
    emergency = lived.version(
        tiny_job(home, base=full.path, run_id="2", emergency=True, emergency_epochs=1, epochs=3, seed=5)
    )
    lora = lived.version(tiny_job(home, base=emergency.path, run_id="3", method="lora", threads=1, epochs=1))
    before = lived.state()
    lines: list[str] = []
    for made, how in ((full, train_in_subprocess), (emergency, again), (lora, again)):
        found = lived.verify(made, train=how, tell=lines.append)
        assert (found.outcome, found.same_digest) == ("reproduced", True), found
        assert found.weights_digest == found.made_weights_digest
        assert found.examples == 32
    assert sum(line.startswith("step 1/") for line in lines) >= 3
    assert lived.state() == before
    assert len({made.digest for made in (full, emergency, lora)}) == 3


def test_an_answer_larger_than_a_pipe_holds_is_read_while_the_log_goes_on() -> None:
    talk = (
        "import sys\nfor n in range(3000):\n print('x' * 99)\n print('line', n, 'y' * 99, file=sys.stderr)\n"
    )
    lines: list[str] = []
    answer, last, status = run_streaming([sys.executable, "-c", talk + "sys.exit(3)"], lines.append)
    assert (len(answer), len(lines), status) == (300_000, 3000, 3)
    assert last == lines[-1] == "line 2999 " + "y" * 99


def test_other_weights_are_told_from_the_same_ones(lived: Trained) -> None:
    made = lived.version(tiny_job(lived.settings.home, epochs=1))

    def luckless(job: TrainingJob, tell: LineCallback) -> TrainingOutcome:
        return train(job.model_copy(update={"config": job.config.model_copy(update={"seed": 4711})}))

    found = lived.verify(made, train=luckless)
    assert (found.outcome, found.same_digest) == ("differs", False)
    assert "same package versions" in found.reason


def test_erased_examples_are_named_and_nothing_is_trained(lived: Trained) -> None:
    made = lived.version(tiny_job(lived.settings.home, epochs=1))
    with lived.engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id in (3, 11)"))
    by_rows = lived.verify(made)
    rewrite_datasets(lived.settings.home, {3, 11})
    with lived.engine.begin() as conn:  # as if another database were asked about the same files
        conn.execute(sa.text("update iccm.conversations set erased_at = null"))
    by_snapshot = lived.verify(made)
    for found in (by_rows, by_snapshot):
        assert (found.outcome, found.erased) == ("impossible", (3, 11))
        assert "3, 11" in found.reason


def test_what_was_not_trained_here_or_lost_its_ingredients_gets_a_reason(lived: Trained) -> None:
    home = lived.settings.home
    job = tiny_job(home, epochs=1)
    base = Path(job.base)
    with lived.engine.begin() as conn:
        imported = versions.register_version(
            conn, digest=base.name, path=job.base, parent=None, status="production"
        )
    made = lived.version(job)
    assert "imported from tiny_t5" in lived.verify(imported).reason
    elsewhere = job.model_copy(update={"device": "TPU v9"})
    found = lived.verify(made, train=lambda job, tell: train(elsewhere))
    assert found.outcome == "impossible" and "TPU v9" in found.reason
    weights = base / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in lived.verify(made).reason
    remove_tree(base)
    assert "no longer in the model store" in lived.verify(made).reason
    remove_tree(Path(job.dataset))
    assert "training set cannot be read" in lived.verify(made).reason
    mine = Path(made.path) / "README.md"
    mine.chmod(0o644)
    mine.write_text("better now")
    with pytest.raises(CorruptCheckpointError, match=r"README\.md"):
        lived.verify(made)


def test_the_workplace_goes_whatever_ends_the_work(tmp_path: Path) -> None:
    for end in (KeyboardInterrupt, TrainingDivergedError, None):
        try:
            with temporary_workspace(tmp_path) as directory:
                (directory / "models").mkdir()
                if end:
                    raise end
        except (KeyboardInterrupt, TrainingDivergedError):
            pass
        assert list(tmp_path.iterdir()) == []
    (tmp_path / ".verify" / "999999999-dead").mkdir(parents=True)
    with temporary_workspace(tmp_path) as directory:
        assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_leaves_nothing_behind_when_it_is_interrupted(
    sent: signal.Signals, lived: Trained
) -> None:
    job = tiny_job(lived.settings.home, epochs=300, early_stopping_patience=300)
    manifest = ModelStore(lived.settings.home).verify(Path(job.base).name)
    # Registered without the training it claims, which would take minutes.
    staging = ModelStore(lived.settings.home).create_staging("claim", 1, 1)
    for name in manifest.files:
        (staging / name).write_bytes((Path(job.base) / name).read_bytes())
    claimed = ModelStore(lived.settings.home).publish(
        staging,
        manifest.model_copy(update={
            "kind": "fine-tuned", "parent_digest": manifest.digest, "dataset_digest": Path(job.dataset).name,
            "config": job.hyperparameters, "seed": 17, "threads": 2,
        }),
    )  # fmt: skip
    with lived.engine.begin() as conn:
        made = versions.register_version(
            conn, digest=claimed.digest, path=str(claimed.path), parent=None, status="candidate"
        )
    before = lived.state()
    environment = os.environ | {
        "ICCM_HOME": str(lived.settings.home), "ICCM_DATABASE_URL": str(lived.settings.database_url),
    }  # fmt: skip
    with subprocess.Popen(
        [*VERIFY, made.version], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as command:
        scratch = lived.settings.home / ".verify"
        deadline = time.monotonic() + 120
        while not list(scratch.glob("*/models/.staging/*/scratch")) and time.monotonic() < deadline:
            time.sleep(0.1)
        command.send_signal(sent)
        _, said = command.communicate(timeout=60)
    assert command.returncode == 130 and "Traceback" not in said
    assert not scratch.exists()
    assert lived.state() == before


def test_the_command_answers_with_one_document_and_an_exit_code(lived: Trained) -> None:
    made = lived.version(tiny_job(lived.settings.home, epochs=1))
    with lived.engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id = 3"))
    environment = os.environ | {
        "ICCM_HOME": str(lived.settings.home), "ICCM_DATABASE_URL": str(lived.settings.database_url),
    }  # fmt: skip
    done = subprocess.run(
        [*VERIFY, made.version, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"], told["erased"]) == (1, "impossible", [3])

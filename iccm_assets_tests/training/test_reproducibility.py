from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import CorruptCheckpointError, TrainingDivergedError
from iccm_assets.governance.dataset_erasure import rewrite_datasets
from iccm_assets.registry import model_store, versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.training.reproducibility import (
    LineCallback,
    run_streaming,
    temporary_workspace,
    train_in_subprocess,
)
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_t5
from iccm_assets_tests.factories.training_jobs import tiny_job
from iccm_assets_tests.factories.training_platforms import TrainingPlatform, train_again

VERIFY = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", "verify"]


@pytest.fixture
def platform(engine: sa.Engine, settings: Settings) -> Iterator[TrainingPlatform]:
    settings.home.mkdir(parents=True)
    yield TrainingPlatform(engine, settings)


@pytest.mark.slow
def test_three_different_versions_are_reproduced_bit_for_bit_and_nothing_is_changed(
    platform: TrainingPlatform,
) -> None:
    home = platform.settings.home
    first = tiny_job(home, epochs=1)
    full = platform.version(first)
    emergency = platform.version(
        tiny_job(home, base=full.path, run_id="2", emergency=True, emergency_epochs=1, epochs=3, seed=5)
    )
    lora = platform.version(
        tiny_job(home, base=emergency.path, run_id="3", method="lora", threads=1, epochs=1)
    )
    before = platform.state()
    lines: list[str] = []
    for version, train_function in (
        (full, train_in_subprocess),
        (emergency, train_again),
        (lora, train_again),
    ):
        report = platform.verify(version, train=train_function, on_line=lines.append)
        assert (report.outcome, report.same_digest) == ("reproduced", True), report
        assert report.weights_digest == report.reproduced_weights_digest
        assert report.examples == 32
    assert sum(line.startswith("step 1/") for line in lines) >= 3
    assert platform.state() == before
    assert len({version.digest for version in (full, emergency, lora)}) == 3


@pytest.mark.parametrize(("objective", "make"), [("rft", tiny_t5), ("dpo", tiny_gpt2)])
def test_a_version_of_another_objective_is_reproduced_bit_for_bit_from_its_snapshot_alone(
    objective: str, make: Callable[[Path], Path], platform: TrainingPlatform
) -> None:
    version = platform.version(tiny_job(platform.settings.home, make, objective=objective, epochs=1))
    report = platform.verify(version, train=train_again)
    assert (report.outcome, report.same_digest) == ("reproduced", True), report


def test_output_larger_than_a_pipe_buffer_is_read_while_the_log_is_written() -> None:
    code = (
        "import sys\nfor n in range(3000):\n print('x' * 99)\n print('line', n, 'y' * 99, file=sys.stderr)\n"
    )
    lines: list[str] = []
    answer, last, status = run_streaming([sys.executable, "-c", code + "sys.exit(3)"], lines.append)
    assert (len(answer), len(lines), status) == (300_000, 3000, 3)
    assert last == lines[-1] == "line 2999 " + "y" * 99


def test_other_weights_are_distinguished_from_the_same_ones(platform: TrainingPlatform) -> None:
    version = platform.version(tiny_job(platform.settings.home, epochs=1))

    def train_with_another_seed(job: TrainingJob, on_line: LineCallback) -> TrainingOutcome:
        return train(job.model_copy(update={"config": job.config.model_copy(update={"seed": 4711})}))

    report = platform.verify(version, train=train_with_another_seed)
    assert (report.outcome, report.same_digest) == ("differs", False)
    assert "same versions" in report.reason


def test_weights_of_an_earlier_training_procedure_are_distinguished_from_changed_ones(
    platform: TrainingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(platform.settings.home, epochs=1)
    with monkeypatch.context() as earlier:
        earlier.setattr(model_store, "TRAINING_PROCEDURE", "1")
        version = platform.version(job)

    def train_otherwise(job: TrainingJob, on_line: LineCallback) -> TrainingOutcome:
        return train(job.model_copy(update={"config": job.config.model_copy(update={"seed": 4711})}))

    report = platform.verify(version, train=train_otherwise)
    assert report.outcome == "differs"
    assert report.reason.endswith("different versions: training procedure 1 -> 2")


def test_erased_examples_are_named_and_nothing_is_trained(platform: TrainingPlatform) -> None:
    version = platform.version(tiny_job(platform.settings.home, epochs=1))
    with platform.engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id in (3, 11)"))
    by_rows = platform.verify(version)
    rewrite_datasets(platform.settings.home, {3, 11})
    with platform.engine.begin() as conn:  # as with another database for the same files
        conn.execute(sa.text("update iccm.conversations set erased_at = null"))
    by_snapshot = platform.verify(version)
    for report in (by_rows, by_snapshot):
        assert (report.outcome, report.erased) == ("impossible", (3, 11))
        assert "3, 11" in report.reason


def test_a_version_that_cannot_be_trained_again_gets_a_reason(platform: TrainingPlatform) -> None:
    home = platform.settings.home
    job = tiny_job(home, epochs=1)
    base = Path(job.base)
    with platform.engine.begin() as conn:
        imported = versions.register_version(
            conn, digest=base.name, path=job.base, parent=None, status="production"
        )
    version = platform.version(job)
    report = platform.verify(imported)
    assert report.outcome == "imported" and "imported from tiny_t5: nothing to reproduce" in report.reason
    elsewhere = job.model_copy(update={"device": "TPU v9"})
    report = platform.verify(version, train=lambda job, on_line: train(elsewhere))
    assert report.outcome == "impossible" and "TPU v9" in report.reason
    weights = base / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in platform.verify(version).reason
    remove_tree(base)
    assert "no longer in the model store" in platform.verify(version).reason
    remove_tree(Path(job.dataset))
    assert "training set cannot be read" in platform.verify(version).reason
    card = Path(version.path) / "README.md"
    card.chmod(0o644)
    card.write_text("better now")
    with pytest.raises(CorruptCheckpointError, match=r"README\.md"):
        platform.verify(version)


def test_the_workspace_is_removed_however_the_block_ends(tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_interrupted_command_leaves_no_files(sent: signal.Signals, platform: TrainingPlatform) -> None:
    job = tiny_job(platform.settings.home, epochs=300, early_stopping_patience=300)
    manifest = ModelStore(platform.settings.home).verify(Path(job.base).name)
    # Registered without its training, which would take minutes.
    staging = ModelStore(platform.settings.home).create_staging("claim", 1, 1)
    for name in manifest.files:
        (staging / name).write_bytes((Path(job.base) / name).read_bytes())
    claimed = ModelStore(platform.settings.home).publish(
        staging,
        manifest.model_copy(update={
            "kind": "fine-tuned", "parent_digest": manifest.digest, "dataset_digest": Path(job.dataset).name,
            "config": job.hyperparameters, "seed": 17, "threads": 2,
        }),
    )  # fmt: skip
    with platform.engine.begin() as conn:
        version = versions.register_version(
            conn, digest=claimed.digest, path=str(claimed.path), parent=None, status="candidate"
        )
    before = platform.state()
    environment = os.environ | {
        "ICCM_HOME": str(platform.settings.home), "ICCM_DATABASE_URL": str(platform.settings.database_url),
    }  # fmt: skip
    with subprocess.Popen(
        [*VERIFY, version.version],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        scratch = platform.settings.home / ".verify"
        deadline = time.monotonic() + 120
        while not list(scratch.glob("*/models/.staging/*/scratch")) and time.monotonic() < deadline:
            time.sleep(0.1)
        command.send_signal(sent)
        _, stderr = command.communicate(timeout=240)
    assert command.returncode == 130 and "Traceback" not in stderr
    assert not scratch.exists()
    assert platform.state() == before


def test_the_command_prints_one_document_and_returns_an_exit_code(platform: TrainingPlatform) -> None:
    version = platform.version(tiny_job(platform.settings.home, epochs=1))
    with platform.engine.begin() as conn:
        conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now() where id = 3"))
    environment = os.environ | {
        "ICCM_HOME": str(platform.settings.home), "ICCM_DATABASE_URL": str(platform.settings.database_url),
    }  # fmt: skip
    result = subprocess.run(
        [*VERIFY, version.version, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    report = json.loads(result.stdout)
    assert (result.returncode, report["outcome"], report["erased"]) == (1, "impossible", [3])

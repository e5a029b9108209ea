"""A candidate trained by several processes: as by one, bit for bit again, and whole or not at all (K4)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
import torch
import yaml

from iccm_assets.errors import NoWeightsChangedError, TrainingDivergedError, TrainingError
from iccm_assets.models.generation import generate, load_model
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.training import distributed_launch
from iccm_assets.training.accelerate_config import AccelerateConfig
from iccm_assets.training.distributed_launch import train_in_processes
from iccm_assets.training.process_group import join_group
from iccm_assets.training.reproducibility import train_in_subprocess
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome
from iccm_assets_tests.factories import sharded_trainers
from iccm_assets_tests.factories.deployments import DEPLOY
from iccm_assets_tests.factories.tiny_models import tiny_llama, tiny_t5
from iccm_assets_tests.factories.training_jobs import tiny_job
from iccm_assets_tests.factories.training_platforms import TrainingPlatform

TWO = AccelerateConfig(distributed_type="MULTI_CPU", num_processes=2, use_cpu=True)
# The order of a sum of float32 numbers differs.
TOLERANCE = 1e-5


@pytest.fixture
def platform(engine: sa.Engine, settings: Settings) -> Iterator[TrainingPlatform]:
    settings.home.mkdir(parents=True)
    yield TrainingPlatform(engine, settings)


def two_processes(home: Path, make: Callable[[Path], Path] = tiny_llama, **changes: Any) -> TrainingJob:
    return tiny_job(home, make, **{"accelerate": TWO, "threads": 1, **changes})


def train_together(
    job: TrainingJob, progress: Callable[[LossPoint], None] = lambda point: None
) -> TrainingOutcome:
    return train_in_processes(job, progress, pytest.fail)


def family() -> list[psutil.Process]:
    """The launcher and its processes."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if distributed_launch.MODULE in child.cmdline()]


def member(number: int) -> psutil.Process:
    """The process of this number among those that train."""
    [process] = [
        child
        for child in family()
        if "accelerate.commands.launch" not in child.cmdline() and child.environ().get("RANK") == str(number)
    ]
    return process


def candidates(job: TrainingJob) -> set[str]:
    return set(ModelStore(Path(job.home)).list_digests()) - {Path(job.base).name}


def require_same_course(single: TrainingOutcome, shared: TrainingOutcome) -> None:
    """The same steps with the same losses and gradients, within the tolerance."""
    assert [point.step for point in shared.history] == [point.step for point in single.history]
    for name in ("loss", "validation_loss", "grad_norm", "learning_rate"):
        expected = [getattr(point, name) for point in single.history]
        assert [getattr(point, name) for point in shared.history] == [
            None if value is None else pytest.approx(value, rel=TOLERANCE) for value in expected
        ]
    assert shared.counts == single.counts and shared.best_epoch == single.best_epoch


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_take_the_steps_of_one_and_verify_repeats_them_bit_for_bit(
    platform: TrainingPlatform, tmp_path: Path
) -> None:
    outcomes: list[TrainingOutcome] = []

    def train_and_keep(job: TrainingJob) -> TrainingOutcome:
        outcomes.append(train_together(job))
        return outcomes[-1]

    version = platform.version(two_processes(platform.settings.home), train_function=train_and_keep)
    require_same_course(train(tiny_job(tmp_path / "one", tiny_llama, threads=1)), outcomes[0])
    # 28 examples in steps of 8: the last step of an epoch has 4 of them, two for each process.
    assert outcomes[0].counts["new"] + outcomes[0].counts["rehearsal"] == 28
    manifest = ModelStore(platform.settings.home).verify(version.digest)
    assert manifest.accelerate == {
        "distributed_type": "MULTI_CPU", "num_processes": 2, "mixed_precision": "no", "use_cpu": True
    }  # fmt: skip
    assert "| processes | 2 |" in (Path(version.path) / "README.md").read_text()
    lines: list[str] = []
    report = platform.verify(version, train=train_in_subprocess, on_line=lines.append)
    assert (report.outcome, report.same_digest) == ("reproduced", True), report
    assert [line for line in lines if line.startswith("step 8/8")]
    assert family() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_an_adapter_as_one_does(tmp_path: Path) -> None:
    single = train(tiny_job(tmp_path / "one", tiny_llama, threads=1, method="lora"))
    shared = train_together(two_processes(tmp_path / "two", method="lora"))
    require_same_course(single, shared)
    assert shared.base_digest == single.base_digest is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_is_named_and_the_next_attempt_resumes_with_the_same_bits(tmp_path: Path) -> None:
    # Long enough that a tiny training has not ended before its points are read.
    epochs = {"epochs": 12, "early_stopping_patience": 12}
    job = two_processes(tmp_path / "home", tiny_t5, **epochs)
    expected = train_together(two_processes(tmp_path / "elsewhere", tiny_t5, **epochs))

    def kill(point: LossPoint) -> None:
        if point.step == 10:  # of the third epoch's nine to twelve, or later by now
            member(1).kill()

    with pytest.raises(TrainingError, match="process 1 of 2 was ended by SIGKILL"):
        train_together(job, kill)
    assert candidates(job) == set() and family() == []
    resumed = train_together(job.model_copy(update={"attempt": 2, "fence": 2}))
    assert resumed.resumed_from_step in range(8, 48, 4)
    assert resumed.history == expected.history
    assert resumed.digest == expected.digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_hangs_ends_the_training_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = two_processes(tmp_path, epochs=50, early_stopping_patience=50)

    def pass_time() -> None:
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 901, sleep=time.sleep)
        monkeypatch.setattr(distributed_launch, "time", later)

    def stop(point: LossPoint) -> None:
        if point.step == 5:
            member(1).send_signal(signal.SIGSTOP)
            Timer(10, pass_time).start()  # by then the other one waits

    with pytest.raises(
        TrainingError, match=r"no process reported anything for 9\d\d s.*process 1 at step \d"
    ):
        train_together(job, stop)
    assert candidates(job) == set() and family() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_launcher_leaves_no_process_behind(tmp_path: Path) -> None:
    job = two_processes(tmp_path, epochs=50, early_stopping_patience=50)

    def kill(point: LossPoint) -> None:
        if point.step == 5:
            [launcher] = [child for child in family() if "accelerate.commands.launch" in child.cmdline()]
            members.extend(member(number) for number in range(2))
            launcher.kill()

    members: list[psutil.Process] = []
    with pytest.raises(TrainingError, match="accelerate launch ended with -9"):
        train_together(job, kill)
    assert candidates(job) == set()
    assert len(members) == 2 and not any(process.is_running() for process in members)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_of_the_main_process_or_of_the_observer_ends_all(tmp_path: Path) -> None:
    job = two_processes(tmp_path, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    with pytest.raises(NoWeightsChangedError):
        train_together(job)
    assert candidates(job) == set() and family() == []

    def interrupt(point: LossPoint) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_together(job, interrupt)
    assert candidates(job) == set() and family() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_divergence_is_named(tmp_path: Path) -> None:
    job = two_processes(tmp_path, learning_rate=1.0, weight_decay=1e30, max_grad_norm=1e30, epochs=3)
    with pytest.raises(TrainingDivergedError, match=r"is (nan|inf)|not finite"):
        train_together(job)
    assert candidates(job) == set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_sharded_by_fsdp_takes_the_same_steps_and_is_published_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load((DEPLOY / "accelerate" / "fsdp.yaml").read_text("utf-8"))
    config = AccelerateConfig.model_validate({**values, "num_processes": 2, "mixed_precision": "no"})
    monkeypatch.setattr(distributed_launch, "MODULE", sharded_trainers.__name__)
    single = train(tiny_job(tmp_path / "one", tiny_llama, threads=1))
    job = two_processes(tmp_path / "two", accelerate=config)
    sharded = train_together(job)
    require_same_course(single, sharded)
    weights, expected = (load_model(outcome.path).model.state_dict() for outcome in (sharded, single))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
    assert len(generate(load_model(sharded.path), ["x = 1"], max_new_tokens=5, batch_size=1)) == 1
    assert sharded.weight_change.relative == pytest.approx(single.weight_change.relative, rel=1e-3)
    again = train_together(job.model_copy(update={"run_id": "2"}))
    assert again.digest == sharded.digest


def summarize(*failures: tuple[int, int]) -> list[str]:
    """The end of what torch's launcher writes about processes and their exit statuses, the first one last."""
    lines = ["train FAILED", "Failures:"]
    for number, status in failures:
        lines += [f"  rank      : {number} (local_rank: {number})", f"  exitcode  : {status} (pid: 4711)"]
    return [*lines, "====="]


@pytest.mark.parametrize(
    ("log", "replies", "reason"),
    [
        (summarize((0, -15), (1, -9)), [], "process 1 of 2 was ended by SIGKILL"),
        (summarize((1, -11), (0, 1)), [(0, 1.0)], "process 1 of 2 was ended by SIGSEGV"),
        (summarize((1, -15), (0, -15)), [], "process 0 of 2 was ended by SIGTERM"),
        (summarize((0, -15), (1, 1)), [(1, 1.0)], "error of 1"),
        (summarize((1, 1), (0, 1)), [(0, 2.0), (1, 1.0)], "error of 1"),
        (summarize((0, -15), (1, 3)), [], "process 1 of 2 ended with exit status 3"),
        (["no such file", ""], [], "accelerate launch ended with 2: no such file"),
        ([], [], "accelerate launch ended with 2: no output"),
    ],
)
def test_the_first_failure_is_named_and_not_those_that_follow_from_it(
    log: list[str], replies: list[tuple[int, float]], reason: str
) -> None:
    members = [distributed_launch._Member(number) for number in range(2)]
    for number, at in replies:
        members[number].reply = {"error": TrainingError(f"error of {number}").to_dict(), "at": at}
    error = distributed_launch.explain_failure(log, members, 2)
    assert isinstance(error, TrainingError) and error.detail == reason


def test_a_message_counts_when_its_line_is_complete(tmp_path: Path) -> None:
    member, path = distributed_launch._Member(0), tmp_path / "0.jsonl"
    assert list(member.read(tmp_path)) == []
    path.write_text('{"pid": 1}\n{"point"')
    assert list(member.read(tmp_path)) == [{"pid": 1}]
    path.write_text('{"pid": 1}\n{"point": 2}\n')
    assert list(member.read(tmp_path)) == [{"point": 2}]


def test_a_machine_with_fewer_gpus_than_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = AccelerateConfig(distributed_type="MULTI_GPU", num_processes=8, mixed_precision="bf16")
    with pytest.raises(TrainingError, match="needs 8 GPUs, one for each process, and this machine has 1"):
        join_group(config)

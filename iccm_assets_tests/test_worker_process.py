"""A worker whose run worker is killed ends, too: it must not train, beat and publish for nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from iccm_assets.worker_process import EXIT_STATUS, PARENT_PID_ENV, parent_env
from iccm_assets_tests.training.factories import tiny_job

STARTER = """
import subprocess, sys, time
from iccm_assets.worker_process import started_by_me
import os
worker = subprocess.Popen(sys.argv[1:], env={**os.environ, **started_by_me()})
print(worker.pid, flush=True)
time.sleep(600)
"""


def started(*command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A process that has started a worker, and the worker."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert starter.stdout is not None
    return starter, psutil.Process(int(starter.stdout.readline()))


@pytest.mark.slow
def test_a_trainer_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(tiny_job(tmp_path / "home", epochs=100_000).model_dump_json(), encoding="utf-8")
    starter, trainer = started(sys.executable, "-m", "iccm_assets.training.trainer_worker", str(job))
    try:
        with pytest.raises(psutil.TimeoutExpired):
            trainer.wait(5)
        starter.kill()
        starter.wait()
        trainer.wait(10)
    finally:
        starter.kill()
        if trainer.is_running():
            trainer.kill()


@pytest.mark.parametrize(
    "module",
    [
        "iccm_assets.training.trainer_worker",
        "iccm_assets.evaluation.evaluation_worker",
        "iccm_assets.monitoring.monitoring_worker",
    ],
)
def test_a_worker_whose_starter_died_while_it_was_loading_does_not_begin(module: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"""
import time, {module} as worker, iccm_assets.worker_process as orphans
worker.prepare_process = lambda: time.sleep(60)
import dagster_pipes
dagster_pipes.open_dagster_pipes = lambda: time.sleep(60)
worker.main()
"""
    environment = {**os.environ, PARENT_PID_ENV: str(gone.pid)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=50, check=False)
    assert done.returncode == EXIT_STATUS


def test_a_process_that_nobody_named_a_starter_for_goes_on() -> None:
    code = (
        "import time; from iccm_assets.worker_process import end_with_starter as e; e(0.01); time.sleep(0.2)"
    )
    environment = {name: value for name, value in os.environ.items() if name != PARENT_PID_ENV}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    living = {**environment, **parent_env()}
    assert subprocess.run([sys.executable, "-c", code], env=living, check=False).returncode == 0

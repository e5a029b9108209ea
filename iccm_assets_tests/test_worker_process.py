"""A worker exits with the process that started it: it must not go on training and sending heartbeats."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from iccm_assets.worker_process import (
    BACKGROUND_NICENESS,
    EXIT_STATUS,
    PARENT_PID_ENV,
    lowest_priority,
    parent_env,
    worker_command,
)
from iccm_assets_tests.factories.training_jobs import tiny_job

PARENT_CODE = """
import subprocess, sys, time
from iccm_assets.worker_process import parent_env
import os
worker = subprocess.Popen(sys.argv[1:], env={**os.environ, **parent_env()})
print(worker.pid, flush=True)
time.sleep(600)
"""


def start_parent_and_worker(*command: str, path: str = "") -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a process that starts a worker; return both."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_CODE, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.slow
def test_a_trainer_exits_with_its_parent(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(tiny_job(tmp_path / "home", epochs=100_000).model_dump_json(), encoding="utf-8")
    parent, trainer = start_parent_and_worker(
        sys.executable, "-m", "iccm_assets.training.trainer_worker", str(job)
    )
    try:
        with pytest.raises(psutil.TimeoutExpired):
            trainer.wait(5)
        parent.kill()
        parent.wait()
        trainer.wait(10)
    finally:
        parent.kill()
        if trainer.is_running():
            trainer.kill()


def test_a_worker_whose_parent_dies_during_its_imports_exits(tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    source = f"import pathlib, time; pathlib.Path({str(imported)!r}).touch(); time.sleep(600)"
    (tmp_path / "slow_module.py").write_text(source, encoding="utf-8")
    parent, worker = start_parent_and_worker(*worker_command("slow_module"), path=str(tmp_path))
    try:
        while not imported.exists():
            time.sleep(0.02)
            assert worker.is_running()
        parent.kill()
        parent.wait()
        worker.wait(60)
    finally:
        parent.kill()
        if worker.is_running():
            worker.kill()


@pytest.mark.parametrize(
    "module",
    [
        "iccm_assets.training.trainer_worker",
        "iccm_assets.monitoring.monitoring_worker",
    ],
)
def test_a_worker_whose_parent_died_during_its_imports_does_not_start(module: str) -> None:
    dead_parent = subprocess.Popen([sys.executable, "-c", ""])
    dead_parent.wait()
    code = f"""
import time, {module} as worker, iccm_assets.worker_process
worker.prepare_process = lambda: time.sleep(60)
import dagster_pipes
dagster_pipes.open_dagster_pipes = lambda **options: time.sleep(60)
worker.main()
"""
    environment = {**os.environ, PARENT_PID_ENV: str(dead_parent.pid)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, timeout=240, check=False)
    assert result.returncode == EXIT_STATUS


def test_a_process_without_a_parent_variable_continues() -> None:
    code = (
        "import time; from iccm_assets.worker_process import exit_with_parent\n"
        "exit_with_parent(0.01); time.sleep(0.2)"
    )
    environment = {name: value for name, value in os.environ.items() if name != PARENT_PID_ENV}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    with_live_parent = {**environment, **parent_env()}
    assert subprocess.run([sys.executable, "-c", code], env=with_live_parent, check=False).returncode == 0


def test_a_parent_that_ended_and_was_not_waited_for_does_not_count_as_running() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ""])
    try:
        while psutil.Process(parent.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        code = (
            "import time; from iccm_assets.worker_process import exit_with_parent\n"
            "exit_with_parent(0.01); time.sleep(60)"
        )
        environment = {**os.environ, PARENT_PID_ENV: str(parent.pid)}
        worker = subprocess.run([sys.executable, "-c", code], env=environment, timeout=50, check=False)
        assert worker.returncode == EXIT_STATUS
    finally:
        parent.wait()


def test_what_runs_at_the_lowest_priority_starts_processes_of_the_same() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    read = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    with lowest_priority():
        child = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
        assert int(child.stdout) == os.getpriority(os.PRIO_PROCESS, 0) == BACKGROUND_NICENESS
    if os.geteuid() == 0:
        assert os.getpriority(os.PRIO_PROCESS, 0) == before

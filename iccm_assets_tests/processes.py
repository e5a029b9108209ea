"""Dagster's own processes on this working copy's workspace, and ending them with all they have started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def bare_environment() -> dict[str, str]:
    """This process's environment without any platform's or instance's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ICCM_", "DAGSTER_"))}


def start_dagster(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command of Dagster's with the project's workspace.yaml; what it says is added to ``log``."""
    with log.open("ab") as told:
        return subprocess.Popen(
            [*command, "-w", str(ROOT / "workspace.yaml")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            cwd=ROOT,
            start_new_session=True,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes and their code servers, which a terminated webserver or daemon leaves behind."""
    everything = []
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            everything += [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for one in everything:
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    for one in psutil.wait_procs(everything, timeout=60)[1]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    for process in processes:
        process.wait()

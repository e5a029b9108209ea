"""Start Dagster's processes on this working copy's workspace, and end them with all their children."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def bare_environment() -> dict[str, str]:
    """This process's environment without any platform's or instance's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ICCM_", "DAGSTER_"))}


def free_port() -> int:
    """Find a TCP port that is free now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def killed_at_the_end(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process that does not outlive the block, however the block ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def start_dagster(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command of Dagster's with the project's workspace.yaml; its output is appended to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "-w", str(ROOT / "workspace.yaml")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes and their code servers, which a terminated webserver or daemon leaves behind."""
    processes_to_end = []
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            processes_to_end += [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for child in processes_to_end:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(processes_to_end, timeout=60)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    for process in processes:
        process.wait()

"""Run commands of `iccm` in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from click.testing import Result

from iccm_assets_tests.factories.processes import bare_environment

ICCM = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()"]
# A command in this process: `run("status", "--json", exit_code=0)`, the fixture of the command line's tests.
Run = Callable[..., Result]


def iccm(
    *arguments: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's settings."""
    return subprocess.run(
        [*ICCM, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env=bare_environment() | environment,
        check=False,
    )


def run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command in exactly this environment."""
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )

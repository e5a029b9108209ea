"""Run commands of `iccm` in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from click.testing import Result

from iccm_assets.cli.main import COMMANDS
from iccm_assets_tests.factories import forked_processes
from iccm_assets_tests.factories.processes import bare_environment

ICCM = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()"]
# A command in this process: `run("status", "--json", exit_code=0)`, the fixture of the command line's tests.
Run = Callable[..., Result]


def iccm(*arguments: str, stdout: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's settings, in a process that has its modules imported."""
    return forked_processes.run(
        "iccm_assets.cli.main:main",
        arguments,
        bare_environment() | environment,
        timeout=120,
        stdout=stdout,
        modules=(*COMMANDS.values(), "iccm_assets.db.database", "iccm_assets.settings"),
    )


def run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command in exactly this environment."""
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )

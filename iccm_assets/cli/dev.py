"""`iccm dev`: run database, gateway, Dagster UI and daemon, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from iccm_assets.cli.console import err
from iccm_assets.cli.context import ensure_production_version
from iccm_assets.cli.env import get_dagster_environment
from iccm_assets.cli.serve import DEFAULT_PORT
from iccm_assets.errors import IccmError
from iccm_assets.settings import Settings, get_settings

# Dagster stops its code servers and its daemon one after the other.
DAGSTER_STOP_TIMEOUT_SECONDS = 60.0
# Settings whose value may be a path, which is relative to the directory of `iccm dev`.
PATH_VARIABLES = ("ICCM_BASE_MODEL", "ICCM_CANARY_SET", "ICCM_EMBEDDER", "ICCM_REHEARSAL")


def dev(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Dagster UI.")] = 3000,
    gateway_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 picks a free one.")
    ] = DEFAULT_PORT,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Start Dagster only.")] = False,
) -> None:
    """Run the whole platform on this machine: database, gateway, Dagster UI and daemon, until Ctrl-C.

    The embedded server stops with it if it was started here and no other process uses it.
    """
    from iccm_assets.db.embedded.owned_server import owned_server
    from iccm_assets.db.embedded.server_watch import watch_server
    from iccm_assets.gateway.subprocess_gateway import run_gateway

    settings = get_settings()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with owned_server(settings):
        version = ensure_production_version(settings)
        watch_server(settings)
        if no_gateway:
            _run(settings, port, stop, f"{version} is in production")
            return
        with run_gateway(settings, gateway_port) as url:
            _run(settings, port, stop, f"gateway   {url} serves {version} (/docs)")


def _run(settings: Settings, port: int, stop: threading.Event, message: str) -> None:
    with _dagster(settings, port) as process:
        err.print(f"{message}\nDagster   http://127.0.0.1:{port}\nCtrl-C stops everything", highlight=False)
        while not stop.wait(0.5):
            if process.poll() is not None:
                raise IccmError(
                    f"Dagster exited with status {process.returncode}",
                    hint=f"See its last lines above. If port {port} is in use, give another --port.",
                )
        err.print("stopping", highlight=False)


def _absolute_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name an existing file or directory, as absolute paths."""
    paths = {name: Path(environment[name]) for name in PATH_VARIABLES if environment.get(name)}
    return {name: str(path.absolute()) for name, path in paths.items() if path.exists()}


@contextmanager
def _dagster(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run webserver and daemon in their own session, so that Ctrl-C reaches only this command."""
    environment = {**os.environ, **_absolute_paths(os.environ), **get_dagster_environment(settings)}
    process = subprocess.Popen(
        [
            # Its successor `dg dev` comes with Dagster's project tools, which an installation need not have.
            *(sys.executable, "-W", "ignore:Function `dev_command` is superseded"),
            *("-m", "dagster", "dev", "-m", "iccm_assets.definitions"),
            *("-h", "127.0.0.1", "-p", str(port)),
        ],
        # In a directory with another dagster.yaml, as the repository, Dagster warns that it is not used.
        cwd=environment["DAGSTER_HOME"],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(DAGSTER_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

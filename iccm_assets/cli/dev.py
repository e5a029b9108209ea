"""`iccm dev`: database, gateway, Dagster UI and daemon with one command, until Ctrl-C (section 1)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from iccm_assets.cli.console import err
from iccm_assets.cli.demo import server_of_the_demo
from iccm_assets.cli.env import environment
from iccm_assets.cli.own_gateway import own_gateway
from iccm_assets.cli.serve import DEFAULT_PORT, production_version
from iccm_assets.errors import IccmError
from iccm_assets.settings import Settings, get_settings

# Dagster ends its code servers and daemon one after the other.
DAGSTER_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Dagster UI.")] = 3000,
    gateway_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")
    ] = DEFAULT_PORT,
    without_gateway: Annotated[bool, typer.Option("--no-gateway", help="Dagster only.")] = False,
) -> None:
    """Run the whole platform on this machine: database, gateway, Dagster UI and daemon, until Ctrl-C.

    The embedded server ends with it if it was started here and nobody else uses it.
    """
    settings = get_settings()
    over = threading.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: over.set())
    with server_of_the_demo(settings):
        version = production_version(settings)
        if without_gateway:
            _run(settings, port, over, f"{version} is in production")
            return
        with own_gateway(settings, gateway_port) as url:
            _run(settings, port, over, f"gateway   {url} answers with {version} (/docs)")


def _run(settings: Settings, port: int, over: threading.Event, told: str) -> None:
    with _dagster(settings, port) as process:
        err.print(f"{told}\nDagster   http://127.0.0.1:{port}\nCtrl-C ends all of it", highlight=False)
        while not over.wait(0.5):
            if process.poll() is not None:
                raise IccmError(
                    f"Dagster ended with status {process.returncode}",
                    hint=f"Its last lines say why; is port {port} taken? Give another --port.",
                )
        err.print("ending", highlight=False)


@contextmanager
def _dagster(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Webserver and daemon, in a session of their own: Ctrl-C is this command's, which ends them in order."""
    command = [sys.executable, "-m", "dagster", "dev", "-m", "iccm_assets.definitions"]
    process = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **environment(settings)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(DAGSTER_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

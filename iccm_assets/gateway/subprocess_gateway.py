"""A gateway in a subprocess: on a loopback port, for as long as a command needs it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iccm_assets.errors import GatewayError
from iccm_assets.settings import Settings

READY_TIMEOUT_SECONDS = 120.0


def get_token(settings: Settings) -> str:
    """Return a token that gateways under these settings accept; empty if they require none."""
    from iccm_assets.gateway.auth import bearer_tokens

    return next(iter(bearer_tokens(settings)), "")


@contextmanager
def run_gateway(settings: Settings, port: int = 0) -> Iterator[str]:
    """Run a gateway on the settings' database until the block ends; yields its URL once it is ready.

    At the end it flushes its spool and stops; it also ends if this process is killed. There must be a version
    in production. Raises ``GatewayError`` with the gateway's last log line if it does not become ready.
    """
    from iccm_assets.gateway.server import listen, socket_url
    from iccm_assets.gateway.supervisor import worker_command

    listening = listen("127.0.0.1", port, settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / "gateway.log"
    environment = {**os.environ, "ICCM_HOME": str(settings.home)}
    if settings.database_url is not None:
        environment["ICCM_DATABASE_URL"] = settings.database_url
    with log.open("wb") as stream:
        process = subprocess.Popen(
            worker_command(listening),
            pass_fds=[listening.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches only the command, which stops the gateway gracefully
        )
    url = socket_url(listening)
    try:
        _wait_until_ready(url, process, log)
        listening.close()
        yield url
    finally:
        listening.close()
        process.terminate()
        try:
            process.wait(settings.gateway.drain_timeout_seconds + 15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx2

    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        # Until its event loop runs, connections wait in the listening socket.
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        time.sleep(0.1)
    state = f"exited with status {process.returncode}" if process.poll() is not None else "is not ready"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise GatewayError(
        f"the gateway {state}: {lines[-1] if lines else 'its log is empty'}", hint=f"See {log}."
    )

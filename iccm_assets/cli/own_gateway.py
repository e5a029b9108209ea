"""A gateway of a command's own: on a loopback port, as long as the command needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iccm_assets.errors import GatewayError
from iccm_assets.settings import Settings

READY_SECONDS = 120.0


def token_of(settings: Settings) -> str:
    """A token that gateways under these settings take; empty when they need none."""
    return next((one.strip() for one in settings.gateway.tokens.split(",") if one.strip()), "")


@contextmanager
def own_gateway(settings: Settings, port: int = 0) -> Iterator[str]:
    """The URL of a gateway on the settings' database, ready to answer, until the block ends.

    Then it delivers its spool and stops; it ends as well when this process is killed. There must be a version
    in production. Raises ``GatewayError`` when it does not get ready, with the last it said.
    """
    from iccm_assets.gateway.server import address_of, listen

    listening = listen("127.0.0.1", port, settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / "gateway.log"
    command = [sys.executable, "-m", "iccm_assets.gateway.supervisor", "--parent", str(os.getpid())]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--fd", str(listening.fileno())],
            pass_fds=[listening.fileno()],
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is the command's; the gateway ends in order afterwards
        )
    url = address_of(listening)
    try:
        _await_ready(url, process, log)
        listening.close()
        yield url
    finally:
        listening.close()
        _end(process, settings)


def _environment(settings: Settings) -> dict[str, str]:
    """Where the gateway finds the same home and database; all else it has from the same environment."""
    found = {**os.environ, "ICCM_HOME": str(settings.home)}
    if settings.database_url is not None:
        found["ICCM_DATABASE_URL"] = settings.database_url
    return found


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx2

    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        # Until its event loop runs, connections wait in the listening socket.
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        time.sleep(0.1)
    ended = f"ended with status {process.returncode}" if process.poll() is not None else "is not ready"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise GatewayError(f"the gateway {ended}: {last[-1] if last else 'it said nothing'}", hint=f"See {log}.")


def _end(process: subprocess.Popen[bytes], settings: Settings) -> None:
    process.terminate()
    try:
        process.wait(settings.gateway.drain_seconds + 15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

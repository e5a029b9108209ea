"""Several gateway processes on one port (`iccm serve --workers N`).

They take connections from one listening socket, so none is lost that a dying worker had not taken yet; a
worker that dies is started anew. Each is a replica of its own, as on another machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from iccm_assets.gateway.metrics import SHARED
from iccm_assets.settings import Settings, get_settings

log = logging.getLogger("iccm.gateway")

RESTART_SECONDS = 1.0


def log_lines() -> None:
    """One line per event on standard error; of others only what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)


def supervise(listening: socket.socket, workers: int, settings: Settings) -> None:
    """Keep so many workers alive until SIGTERM or SIGINT; returns when all have ended in order."""
    over = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: over.set())
    shared = Path(tempfile.mkdtemp(prefix="iccm-gateway-"))
    try:
        alive = [_start(listening, shared) for _ in range(workers)]
        while not over.wait(0.2):
            for place, worker in enumerate(alive):
                if worker.poll() is not None:
                    log.error(
                        "worker %d ended with status %s; another is started", worker.pid, worker.returncode
                    )
                    _forget(shared, worker.pid)
                    over.wait(RESTART_SECONDS)
                    alive[place] = _start(listening, shared)
        for worker in alive:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + settings.gateway.drain_seconds + 20
        for worker in alive:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not end and is killed; its spool is delivered later", worker.pid)
                worker.kill()
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _start(listening: socket.socket, shared: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "iccm_assets.gateway.supervisor", "--parent", str(os.getpid())]
    return subprocess.Popen(
        [*command, "--fd", str(listening.fileno())],
        pass_fds=[listening.fileno()],
        env={**os.environ, SHARED: str(shared)},
        # Ctrl-C reaches the supervisor alone, which ends its workers in order.
        start_new_session=True,
    )


def _forget(shared: Path, pid: int) -> None:
    """A dead worker's gauges are not added up any more; what it has counted stays."""
    for stale in shared.glob(f"gauge_live*_{pid}.db"):
        stale.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """One worker, on a listening socket it inherits."""
    from iccm_assets.gateway.backends import loader_of
    from iccm_assets.gateway.server import run

    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    log_lines()
    settings = get_settings()
    run(socket.socket(fileno=given.fd), settings, loader_of(settings), parent=given.parent)


if __name__ == "__main__":
    main()

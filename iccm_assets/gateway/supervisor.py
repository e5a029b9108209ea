"""Run several gateway processes on one port (`iccm serve --workers N`).

They accept connections from one listening socket, so the connections that a dying worker has not accepted are
not lost. A worker that dies is restarted. Each is a replica of its own, as on another machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from iccm_assets.gateway.metrics import MULTIPROCESS_DIR_ENV
from iccm_assets.settings import Settings, get_settings

log = logging.getLogger(__name__)

RESTART_DELAY_SECONDS = 1.0


def configure_logging() -> None:
    """Log to standard error: the gateway's events, and warnings of everything else."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)


def supervise(listening: socket.socket, workers: int, settings: Settings) -> None:
    """Keep this many workers running until SIGTERM or SIGINT; return when all have stopped."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="iccm-gateway-", ignore_cleanup_errors=True) as shared:
        processes = [_start(listening, shared) for _ in range(workers)]
        while not stopping.wait(0.2):
            for index, worker in enumerate(processes):
                if worker.poll() is not None:
                    log.error("worker %d exited with status %s, restarting", worker.pid, worker.returncode)
                    # Its gauges must not be added up any more; its counters stay.
                    for stale in Path(shared).glob(f"gauge_live*_{worker.pid}.db"):
                        stale.unlink(missing_ok=True)
                    stopping.wait(RESTART_DELAY_SECONDS)
                    processes[index] = _start(listening, shared)
        for worker in processes:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + settings.gateway.drain_timeout_seconds + 20
        for worker in processes:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not stop, killing it; its spool is stored later", worker.pid)
                worker.kill()


def worker_command(listening: socket.socket) -> list[str]:
    """Return the command of a worker on this socket, which it inherits; it ends with this process."""
    module = [sys.executable, "-m", "iccm_assets.gateway.supervisor"]
    return [*module, "--parent", str(os.getpid()), "--fd", str(listening.fileno())]


def _start(listening: socket.socket, shared: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        worker_command(listening),
        pass_fds=[listening.fileno()],
        env={**os.environ, MULTIPROCESS_DIR_ENV: shared},
        # Ctrl-C reaches only the supervisor, which stops its workers gracefully.
        start_new_session=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one worker on an inherited listening socket."""
    from iccm_assets.gateway.backends import make_model_loader
    from iccm_assets.gateway.server import run

    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    configure_logging()
    settings = get_settings()
    run(socket.socket(fileno=options.fd), settings, make_model_loader(settings), parent=options.parent)


if __name__ == "__main__":
    main()

"""Processes of the product that start with its modules imported.

Most tests of a command or of a gateway concern what it does, while a fresh interpreter spends most of its
time on imports. A fork server, one for each entry point and test session, imports them once. Each process
is a fork of it with its own arguments, environment, working directory and streams, and ends as an
interpreter does. The start itself is what `cli/test_help.py`, `test_wheel.py` and the slow tests look at,
with fresh interpreters.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import IO, Any

from iccm_assets_tests.factories.processes import ROOT, bare_environment

MAX_REQUEST_BYTES = 4 * 1024 * 1024


class ForkedProcess:
    """A process with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Return the exit status, or nothing while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit status, negative for a signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(100) or -signal.SIGKILL)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    entry_point: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdout: int | IO[Any],
    stderr: int | IO[Any],
    modules: tuple[str, ...] = (),
) -> ForkedProcess:
    """Start ``module:function`` with these arguments, in this directory; its standard input is empty.

    ``modules`` are others that it imports when it needs them.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST_BYTES)
    request = {"arguments": list(arguments), "environment": dict(environment), "directory": os.getcwd()}
    with there, open(os.devnull, "rb") as nothing:
        streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdout, stderr)]
        socket.send_fds(
            _fork_server(entry_point, modules), [b"1"], [there.fileno(), nothing.fileno(), *streams]
        )
    here.sendall(json.dumps(request).encode())
    return ForkedProcess(int(here.recv(100)), here)


def run(
    entry_point: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: float,
    stdout: int | None = None,
    modules: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``module:function`` and capture its output, the standard one only without ``stdout``."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        out = output if stdout is None else stdout
        process = start(entry_point, arguments, environment, stdout=out, stderr=errors, modules=modules)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode())
        return subprocess.CompletedProcess([*arguments], status, *texts)


@cache
def _fork_server(entry_point: str, modules: tuple[str, ...]) -> socket.socket:
    """Start a fork server; it ends with this process, which holds the other end of its only connection."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        subprocess.Popen(
            [sys.executable, "-m", __name__, entry_point, str(there.fileno()), *modules],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=bare_environment(),
        )
    return here


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork a process for each request; return its arguments there, and nothing when the session is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        if not message:
            return None
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _become(socket.socket(fileno=descriptors[0]), descriptors[1:])


def _become(connection: socket.socket, streams: Sequence[int]) -> list[str]:
    """Fork the process of one request and return there; the process above it reports its end."""
    request = json.loads(connection.recv(MAX_REQUEST_BYTES))
    pid = os.fork()
    if pid:
        connection.sendall(str(pid).encode())
        with suppress(OSError):  # nobody may be interested any more
            connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    connection.close()
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    return list(request["arguments"])


def main() -> None:
    """Serve: ``module:function``, the descriptor of the requests, modules to import before."""
    entry_point, requests, *modules = sys.argv[1:]
    module, function = entry_point.split(":")
    for name in (module, *modules):
        import_module(name)
    gc.freeze()
    arguments = _serve(socket.socket(fileno=int(requests)))
    if arguments is not None:
        sys.argv = ["iccm", *arguments]
        sys.modules["__main__"].__package__ = ""  # or usage errors would name this module
        getattr(sys.modules[module], function)()


if __name__ == "__main__":
    main()

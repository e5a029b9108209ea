"""Warm pool: a worker process that forks sandboxes while there is work.

Starting a sandbox with bubblewrap takes longer than running most suites in it. So when a second one is
requested shortly after a first, a worker (``warm_pool_worker.py``) is started in the background, and
sandboxes are forked from it. The worker ends after half a second without work, with the process that
started it, and at exit; a fork of that process has none. A single suite, as on the command line, needs none.

A forked sandbox is used for one implementation, has namespaces, scratch space and a filter of its own, and
is inspected from outside before use. On any failure (a kernel that forbids nested namespaces, a killed
worker) the sandbox is started by bubblewrap alone. (J3)
"""

from __future__ import annotations

import array
import atexit
import logging
import os
import re
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap, launcher, seccomp
from iccm_assets.sandbox.launcher import ProcessHandle, RunningSandbox

_log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
MAX_FAILURES = 3
PROC_MOUNT = "/tmp/proc"  # below the forked sandboxes' own /tmp, which covers it
# The most common imports of small programs; none of them affects other modules.
PRELOADED_MODULES = (
    "collections",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "mmap",
    "operator",
    "re",
    "string",
    "typing",
)


ZygoteSpec = tuple[bubblewrap.Bubblewrap, list[str], bytes]  # bwrap, command line, system call filter


def get_current_spec() -> ZygoteSpec:
    """Return what a worker would be started from now; raises ``SandboxUnavailableError``."""
    if not seccomp.is_supported():
        raise SandboxUnavailableError("no system call filter for this architecture")
    bwrap = bubblewrap.find_bubblewraps()[-1]
    return bwrap, launcher.build_command_line(bwrap, (0, 0), 0), seccomp.build_filter()


class SandboxZygote:
    """A started worker, usable while a new one would have the same spec; threads take its ``lock``."""

    def __init__(
        self, spec: ZygoteSpec, process: Popen[bytes], worker: ProcessHandle, control: socket.socket
    ) -> None:
        self.spec, self.process, self.worker, self.control = spec, process, worker, control
        self.lock = threading.Lock()
        self.host_namespaces = launcher.host_namespaces(worker.pid)
        launcher.lifelines.add(control.fileno())

    @classmethod
    def start(cls) -> SandboxZygote:
        """Start a worker; raises ``SandboxUnavailableError``."""
        spec = get_current_spec()
        values = {
            "start": "warm_pool_worker",
            "filter": spec[2],
            "case_filter": seccomp.build_case_filter(),
            "session_filter": seccomp.build_session_filter(),
            "tmpfs": (("/tmp", bubblewrap.SCRATCH_BYTES), ("/dev/shm", bubblewrap.SHARED_BYTES)),
            "proc": PROC_MOUNT,
            "preload": PRELOADED_MODULES,
        }
        with ExitStack() as cleanup:
            control, remote = socket.socketpair()
            cleanup.callback(control.close)
            with remote:
                process, worker = launcher.spawn_in_bwrap(spec[0], remote.fileno(), worker_proc=PROC_MOUNT)
            cleanup.callback(launcher.end_process, process, worker)
            launcher.send_handshake(process, control.fileno(), values)
            zygote = cls(spec, process, worker, control)
            cleanup.pop_all()
            return zygote

    def fork_sandbox(self) -> RunningSandbox:
        """Fork a sandbox with every layer; raises ``SandboxUnavailableError``, also for missing layers."""
        with self.lock:
            message, descriptors = self._request_sandbox()
        with ExitStack() as cleanup:
            for descriptor in descriptors:
                cleanup.callback(os.close, descriptor)
            if len(descriptors) != 3:
                reason = message.decode("utf-8", "replace")
                raise SandboxUnavailableError(f"the warm pool could not fork a sandbox: {reason}")
            requests, replies, pidfd = descriptors
            launcher.lifelines.add(requests)
            cleanup.callback(launcher.lifelines.discard, requests)
            init_process = ProcessHandle(_read_pid(pidfd), pidfd)
            cleanup.callback(launcher.wait_readable, pidfd, launcher.END_TIMEOUT_SECONDS)
            cleanup.callback(init_process.kill)
            launcher.wait_ready(replies)
            layers = launcher.verify_layers(self.spec[0], init_process.pid, self.host_namespaces)
            end = cleanup.pop_all().close
            return RunningSandbox(self.process, init_process, layers, requests, replies, end)

    def _request_sandbox(self) -> tuple[bytes, list[int]]:
        size = array.array("i").itemsize
        try:
            self.control.settimeout(launcher.START_TIMEOUT_SECONDS)
            self.control.send(b"c")
            message, ancillary, *_ = self.control.recvmsg(300, socket.CMSG_SPACE(3 * size))
        except OSError as error:
            raise SandboxUnavailableError(f"the warm pool has ended: {error}") from None
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % size])
        return message, descriptors.tolist()


def _read_pid(descriptor: int) -> int:
    """Read the pid, as this process sees it, of a process descriptor."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    match = re.search(r"^Pid:\s*(\d+)$", text, re.MULTILINE)
    if not match:
        raise SandboxUnavailableError("the forked sandbox has ended")
    return int(match[1])


class WarmPool:
    """Starts and ends the worker; one pool per process."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.zygote: SandboxZygote | None = None
        self.starting = False
        self.failures = self.busy = 0
        self.last_used = float("-inf")  # when a sandbox was last started or ended

    def acquire(self) -> RunningSandbox | None:
        """Fork a warm sandbox, or return None if one has to be started with bubblewrap."""
        try:
            spec = get_current_spec()
        except SandboxUnavailableError:
            return None  # starting one reports what is missing
        with self.lock:
            zygote = self.zygote
            repeated = time.monotonic() - self.last_used < IDLE_SECONDS
            self.last_used = time.monotonic()
            if zygote is None and repeated and not self.starting and self.failures < MAX_FAILURES:
                self.starting = True
                threading.Thread(target=self._run_worker, name="sandbox-warm-pool", daemon=True).start()
            if zygote is None or zygote.spec != spec:
                return None
            self.busy += 1
        with ExitStack() as cleanup:
            cleanup.callback(self._release)
            try:
                sandbox = zygote.fork_sandbox()
            except SandboxUnavailableError as error:
                _log.warning("no warm sandbox, starting one with bubblewrap instead: %s", error)
                with self.lock:
                    self.failures += 1
                    self.zygote = None
                return None
            cleanup.callback(sandbox.end)
            return replace(sandbox, end=cleanup.pop_all().close)

    def _release(self) -> None:
        with self.lock:
            self.busy -= 1
            self.last_used = time.monotonic()
            self.lock.notify_all()

    def note_end(self) -> None:
        """Note that a sandbox has ended that was not forked: another one may follow at once."""
        with self.lock:
            self.last_used = time.monotonic()

    def _run_worker(self) -> None:
        """Start a worker, wait until it is no longer needed, end it."""
        try:
            zygote = SandboxZygote.start()
        except (SandboxUnavailableError, OSError) as error:
            _log.warning("no warm sandboxes, every sandbox is started with bubblewrap: %s", error)
            with self.lock:
                self.starting, self.failures = False, self.failures + 1
            return
        with self.lock:
            self.zygote = zygote
            while self.zygote is zygote:
                idle = time.monotonic() - self.last_used
                if not self.busy and idle >= IDLE_SECONDS:
                    self.zygote = None
                else:
                    self.lock.wait(IDLE_SECONDS if self.busy else IDLE_SECONDS - idle)
            while self.busy:  # one sandbox failed, and others are still in use
                self.lock.wait(IDLE_SECONDS)
            self.starting = False
        launcher.lifelines.discard(zygote.control.fileno())
        zygote.control.close()
        launcher.end_process(zygote.process, zygote.worker)

    def close(self) -> None:
        """End the worker now."""
        with self.lock:
            zygote, self.zygote = self.zygote, None
        if zygote is not None:
            zygote.worker.kill()


warm_pool = WarmPool()


def _reset_after_fork() -> None:
    """Use a new pool in a fork of this process: the worker and its descriptors belong to the parent."""
    global warm_pool, _parent_pool
    _parent_pool = warm_pool  # referenced, so that nothing in it is finalized here
    warm_pool = WarmPool()


_parent_pool: WarmPool | None = None
os.register_at_fork(after_in_child=_reset_after_fork)
atexit.register(lambda: warm_pool.close())

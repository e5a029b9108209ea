"""Warm sandboxes: a process that forks them, running while there is work.

A sandbox started by bubblewrap takes longer than the suite that is judged in it. So when a second one is
requested shortly after a first, a warm pool is started in the background (its worker is the module for the
inside), and from then on sandboxes are forks of its worker. It ends after half a second without work, with
the process that started it, and at exit; a fork of that process has none. A single judgement, as the command
line makes, starts none.

A forked sandbox is used for one implementation, has namespaces, scratch space and a filter of its own, and
is inspected from outside before use. Whatever fails here (a kernel that forbids nested namespaces, a killed
worker) leads to the ordinary way: a sandbox started by bubblewrap alone. (J3)
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
# What small programs import most. None of them changes what another module finds imported already.
PRELOADED_MODULES = (
    "collections",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
)


ZygoteSpec = tuple[bubblewrap.Bubblewrap, list[str], bytes]  # bwrap, command line, system call filter


def current_spec() -> ZygoteSpec:
    """What a worker would be started from now; raises ``SandboxUnavailableError``."""
    if not seccomp.is_supported():
        raise SandboxUnavailableError("no system call filter for this architecture")
    bwrap = bubblewrap.find_bubblewraps()[-1]
    return bwrap, launcher.build_command_line(bwrap, (0, 0), 0), seccomp.build_filter()


class SandboxZygote:
    """A started worker, for use while a new one would have the same origin; threads take its ``lock``."""

    def __init__(
        self, origin: ZygoteSpec, process: Popen[bytes], first: ProcessHandle, control: socket.socket
    ) -> None:
        self.spec, self.process, self.first, self.control = origin, process, first, control
        self.lock = threading.Lock()
        self.host_namespaces = launcher.host_namespaces(first.pid)
        launcher.lifelines.add(control.fileno())

    @classmethod
    def start(cls) -> SandboxZygote:
        """Start a worker; raises ``SandboxUnavailableError``."""
        origin = current_spec()
        values = {
            "start": "warm_pool_worker",
            "filter": origin[2],
            "tmpfs": (("/tmp", bubblewrap.SCRATCH_BYTES), ("/dev/shm", bubblewrap.SHARED_BYTES)),
            "proc": PROC_MOUNT,
            "preload": PRELOADED_MODULES,
        }
        with ExitStack() as cleanup:
            control, remote = socket.socketpair()
            cleanup.callback(control.close)
            with remote:
                process, first = launcher.spawn_behind_bwrap(
                    origin[0], remote.fileno(), worker_proc=PROC_MOUNT
                )
            cleanup.callback(launcher.end_process, process, first)
            launcher.send_handshake(process, control.fileno(), values)
            worker = cls(origin, process, first, control)
            cleanup.pop_all()
            return worker

    def fork_sandbox(self) -> RunningSandbox:
        """Fork a sandbox with every layer; raises ``SandboxUnavailableError``, also for missing layers."""
        with self.lock:
            message, descriptors = self._ask()
        with ExitStack() as cleanup:
            for descriptor in descriptors:
                cleanup.callback(os.close, descriptor)
            if len(descriptors) != 3:
                raise SandboxUnavailableError(
                    f"the warm pool made none: {message.decode('utf-8', 'replace')}"
                )
            requests, replies, process = descriptors
            launcher.lifelines.add(requests)
            cleanup.callback(launcher.lifelines.discard, requests)
            driver = ProcessHandle(_read_pid(process), process)
            cleanup.callback(launcher.wait_readable, process, launcher.END_TIMEOUT_SECONDS)
            cleanup.callback(driver.kill)
            launcher.wait_ready(replies)
            layers = launcher.verify_layers(self.spec[0], driver.pid, self.host_namespaces)
            return RunningSandbox(self.process, driver, layers, requests, replies, cleanup.pop_all().close)

    def _ask(self) -> tuple[bytes, list[int]]:
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
    """The pid, as this process sees it, behind a descriptor of a process."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    match = re.search(r"^Pid:\s*(\d+)$", text, re.MULTILINE)
    if not match:
        raise SandboxUnavailableError("the forked sandbox has ended")
    return int(match[1])


class WarmPool:
    """Decides whether there is a worker; one per process."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.zygote: SandboxZygote | None = None
        self.starting = False
        self.failures = self.busy = 0
        self.last_used = float("-inf")  # when a sandbox was last started or ended

    def acquire(self) -> RunningSandbox | None:
        """Fork a warm sandbox, or return None: start one in the ordinary way."""
        try:
            origin = current_spec()
        except SandboxUnavailableError:
            return None  # the ordinary way reports what is missing
        with self.lock:
            nursery = self.zygote
            repeated = time.monotonic() - self.last_used < IDLE_SECONDS
            self.last_used = time.monotonic()
            if nursery is None and repeated and not self.starting and self.failures < MAX_FAILURES:
                self.starting = True
                threading.Thread(target=self._run_worker, name="sandbox-warm-pool", daemon=True).start()
            if nursery is None or nursery.spec != origin:
                return None
            self.busy += 1
        with ExitStack() as cleanup:
            cleanup.callback(self._release)
            try:
                sandbox = nursery.fork_sandbox()
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

    def _run_worker(self) -> None:
        """Start a worker, wait until it is no longer needed, end it."""
        try:
            nursery = SandboxZygote.start()
        except (SandboxUnavailableError, OSError) as error:
            _log.warning("no warm sandboxes, every sandbox is started with bubblewrap: %s", error)
            with self.lock:
                self.starting, self.failures = False, self.failures + 1
            return
        with self.lock:
            self.zygote = nursery
            while self.zygote is nursery:
                idle = time.monotonic() - self.last_used
                if not self.busy and idle >= IDLE_SECONDS:
                    self.zygote = None
                else:
                    self.lock.wait(IDLE_SECONDS if self.busy else IDLE_SECONDS - idle)
            while self.busy:  # one sandbox failed, and others are still in use
                self.lock.wait(IDLE_SECONDS)
            self.starting = False
        launcher.lifelines.discard(nursery.control.fileno())
        nursery.control.close()
        launcher.end_process(nursery.process, nursery.first)

    def close(self) -> None:
        """End the worker now."""
        with self.lock:
            nursery, self.zygote = self.zygote, None
        if nursery is not None:
            nursery.first.kill()


warm_pool = WarmPool()


def _in_a_fork() -> None:
    """Start over in a fork of this process: the worker and its descriptors are the parent's."""
    global warm_pool, _parents_keeper
    _parents_keeper = warm_pool  # referenced, so that nothing in it is finalised here
    warm_pool = WarmPool()


_parents_keeper: WarmPool | None = None
os.register_at_fork(after_in_child=_in_a_fork)
atexit.register(lambda: warm_pool.close())

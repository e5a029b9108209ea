"""Warm sandboxes: a nursery that makes them, kept while there is work (J3).

A sandbox started by bubblewrap takes longer than the suite that is judged in it. So when a second one is
asked for shortly after a first, a nursery is started in the background (see ``cells.py``), and from then on
sandboxes are its cells. It ends after half a second without work, with the process that started
it, and at exit; a fork of that process has none. A single judgement, as the command line makes, starts none.

A cell is used for one implementation, has namespaces, scratch space and a filter of its own, and is looked
at from outside before it is used. Whatever fails here (a kernel that does not let namespaces nest, a nursery
that was killed) leaves the ordinary way: a sandbox started by bubblewrap alone.
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
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import bubblewrap, launch, seccomp
from iccm_assets.judging.launch import Handle, LayersMissing, Started

_log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
MAX_FAILURES = 3
PROC = "/tmp/proc"  # below the cells' own /tmp, which covers it
# What small programs import most. None of them changes what another module finds imported already.
PRELOADED = ("collections", "enum", "functools", "heapq", "itertools", "math", "operator", "re", "string")


@dataclass(frozen=True)
class Origin:
    """What a nursery was started from; while the same would be started now, it may be used."""

    bwrap: bubblewrap.Bubblewrap
    command: tuple[str, ...]
    filter: bytes

    @classmethod
    def now(cls) -> Origin:
        """What would be started now; ``SandboxUnavailable`` when nothing can be."""
        if not seccomp.supported():
            raise SandboxUnavailable("no system call filter for this architecture")
        bwrap = bubblewrap.find_bubblewraps()[-1]
        return cls(bwrap, tuple(launch.command_line(bwrap, (0, 0), 0)), seccomp.program())


class Nursery:
    """A started nursery. Not for use by several threads without ``lock``."""

    def __init__(self, origin: Origin, process: Popen[bytes], first: Handle, control: socket.socket) -> None:
        self.origin, self.process, self.first, self.control = origin, process, first, control
        self.lock = threading.Lock()
        self.surroundings = launch.surroundings(first.pid)
        launch.hold(control.fileno())

    @classmethod
    def start(cls) -> Nursery:
        """Start one; ``SandboxUnavailable`` where that cannot be."""
        origin = Origin.now()
        values = {
            "start": "cells",
            "filter": origin.filter,
            "places": (("/tmp", bubblewrap.SCRATCH_BYTES), ("/dev/shm", bubblewrap.SHARED_BYTES)),
            "proc": PROC,
            "preload": PRELOADED,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process, first = launch.behind(origin.bwrap, theirs.fileno(), nursery=PROC)
            except BaseException:
                ours.close()
                raise
        try:
            launch.greet(process, ours.fileno(), values)
            return cls(origin, process, first, ours)
        except BaseException:
            ours.close()
            launch.end(process, first)
            raise

    def cell(self) -> Started:
        """A sandbox with every layer; ``SandboxUnavailable`` or ``LayersMissing`` otherwise."""
        with self.lock:
            said, descriptors = self._ask()
        if len(descriptors) != 3:
            raise SandboxUnavailable(f"the nursery made none: {said.decode('utf-8', 'replace')}")
        requests, replies, process = descriptors
        launch.hold(requests)

        def close() -> None:
            launch.let_go(requests)
            os.close(requests)
            os.close(replies)

        try:
            driver = Handle(_number_of(process), process)
        except BaseException:
            os.close(process)
            close()
            raise

        def end() -> None:
            driver.end()
            close()

        try:
            launch.hear_ready(replies)
            layers = {"bubblewrap": self.origin.bwrap.version, **launch.verify(driver.pid, self.surroundings)}
            if any(state.startswith("missing") for state in layers.values()):
                raise LayersMissing(layers)
        except BaseException as error:
            end()
            if isinstance(error, OSError):
                raise SandboxUnavailable(f"a cell cannot be looked at: {error}") from None
            raise
        return Started(self.process, driver, layers, requests, replies, end)

    def _ask(self) -> tuple[bytes, list[int]]:
        size = array.array("i").itemsize
        try:
            self.control.settimeout(launch.START_SECONDS)
            self.control.send(b"c")
            said, ancillary, *_ = self.control.recvmsg(300, socket.CMSG_SPACE(3 * size))
        except OSError as error:
            raise SandboxUnavailable(f"the nursery is gone: {error}") from None
        found = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(data[: len(data) - len(data) % size])
        return said, found.tolist()

    def end(self) -> None:
        """End it, with every cell that is still there."""
        launch.let_go(self.control.fileno())
        self.control.close()
        launch.end(self.process, self.first)


def _number_of(process: int) -> int:
    """The pid, as this process sees it, behind a descriptor of a process."""
    text = Path(f"/proc/self/fdinfo/{process}").read_text(encoding="ascii")
    found = re.search(r"^Pid:\s*(\d+)$", text, re.MULTILINE)
    if not found:
        raise SandboxUnavailable("the nursery's cell has ended")
    return int(found[1])


class Keeper:
    """Decides whether there is a nursery; one per process."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.nursery: Nursery | None = None
        self.starting = False
        self.failures = 0
        self.busy = 0
        self.asked = float("-inf")  # when a sandbox was last started or ended

    def take(self) -> Started | None:
        """A sandbox from the nursery, or None: start one in the ordinary way."""
        try:
            origin = Origin.now()
        except SandboxUnavailable:
            return None  # the ordinary way says what is missing
        with self.lock:
            nursery = self.nursery
            again = time.monotonic() - self.asked < IDLE_SECONDS
            self.asked = time.monotonic()
            if nursery is None:
                if again and not self.starting and self.failures < MAX_FAILURES:
                    self.starting = True
                    threading.Thread(target=self._keep, name="nursery", daemon=True).start()
                return None
            if nursery.origin != origin:
                return None
            self.busy += 1
        try:
            cell = nursery.cell()
        except SandboxUnavailable as error:
            _log.warning("no warm sandbox, one is started instead: %s", error)
            self._release(failed=True)
            return None
        except BaseException:
            self._release()
            raise
        return Started(
            cell.process, cell.driver, cell.layers, cell.requests, cell.replies, lambda: self._give_back(cell)
        )

    def _give_back(self, cell: Started) -> None:
        try:
            cell.end()
        finally:
            self._release()

    def _release(self, failed: bool = False) -> None:
        with self.lock:
            self.busy -= 1
            self.asked = time.monotonic()
            if failed:
                self.failures += 1
                self.nursery = None
            self.lock.notify_all()

    def _keep(self) -> None:
        """Start a nursery, wait until it is no longer needed, end it."""
        try:
            nursery = Nursery.start()
        except (SandboxUnavailable, OSError) as error:
            _log.warning("no warm sandboxes, judging goes on without: %s", error)
            with self.lock:
                self.starting, self.failures = False, self.failures + 1
            return
        with self.lock:
            self.nursery = nursery
            while self.nursery is nursery:
                idle = time.monotonic() - self.asked
                if not self.busy and idle >= IDLE_SECONDS:
                    self.nursery = None
                else:
                    self.lock.wait(IDLE_SECONDS if self.busy else IDLE_SECONDS - idle)
            while self.busy:  # one failed, and others still use it
                self.lock.wait(IDLE_SECONDS)
            self.starting = False
        nursery.end()

    def close(self) -> None:
        """End the nursery now."""
        with self.lock:
            nursery, self.nursery = self.nursery, None
        if nursery is not None:
            nursery.first.kill()


keeper = Keeper()


def _in_a_fork() -> None:
    """A fork of this process starts over: the nursery and its descriptors are the parent's."""
    global keeper, _parents
    _parents = keeper  # kept, so that nothing in it is finalised here
    keeper = Keeper()


_parents: Keeper | None = None
os.register_at_fork(after_in_child=_in_a_fork)
atexit.register(lambda: keeper.close())

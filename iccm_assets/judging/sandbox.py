"""One sandbox for one implementation: start it, check its layers, put cases through it (J3).

    with Sandbox.start(settings) as sandbox:
        sandbox.load(source)
        reply = sandbox.run_case(case.index, case.plan(), budget)

A sandbox that lacks a layer is not used: ``start`` raises ``LayersMissing`` with all of them, checked on the
running process from outside (its namespaces, its seccomp mode, its capabilities, its uid).

Covered: files, environment, network, unix sockets, other processes, privileges, time, memory, processes,
output, scratch space. Not covered: bugs of the kernel itself, and timing channels.
"""

from __future__ import annotations

import marshal
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import bubblewrap, launch, nursery, pytest_suites
from iccm_assets.judging.launch import LayersMissing, Started
from iccm_assets.judging.watch import processes_below, usage, waited
from iccm_assets.settings import Settings

__all__ = ["FORGED", "Budget", "LayersMissing", "Reply", "Sandbox"]

SAMPLE_SECONDS = 0.025
LATE_SECONDS = 0.4  # how much later than the driver the outside gives up waiting for it
PATIENCE = 4.0  # at most so many times the wall limit while others keep the machine busy
LOST_SECONDS = 10.0  # and after this much more it gives the driver up
MAX_FILES = 20_000  # an empty file costs kernel memory that no size limit shows
INSIDE, SHARED = "/tmp", "/dev/shm"

# Imported once per sandbox when the implementation names them: quick to load and without side effects.
_QUICK = """
abc argparse array ast asyncio base64 binascii bisect calendar cmath collections concurrent
contextlib copy csv dataclasses datetime decimal difflib enum fnmatch fractions functools graphlib
hashlib heapq html inspect io itertools json keyword logging math multiprocessing numbers operator
os pathlib pprint queue random re secrets shlex statistics string struct sys tempfile textwrap
threading time traceback types typing unicodedata urllib uuid warnings weakref zlib zoneinfo
"""
_PRELOADABLE = frozenset(_QUICK.split())
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([\w., \t]+))", re.MULTILINE)
_NOTICE = re.compile(r"(?:file|socket|memory|system call|process|tampering): [ -~]+$")
MAX_NOTICE, MAX_NOTICES = 300, 20
_KINDS = b"answered|forged|exited|signal|wall|output|processes"
_HEADER = re.compile(rb"(" + _KINDS + rb")" + rb" (\d{1,18})" * 7)
FORGED = "forgery: wrote to the judge's answer channel"


@dataclass(frozen=True)
class Budget:
    """What one case may still use of the implementation's limits."""

    wall: float
    cpu: float
    output: int


@dataclass(frozen=True)
class Reply:
    """How one case ended, as the driver and the watch saw it; nothing in it is a judgement yet.

    ``kind`` is one of answered, forged, exited, signal, wall, cpu, memory, processes, files, output, lost.
    """

    kind: str
    code: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    printed: int = 0
    answer: bytes = b""
    notices: tuple[str, ...] = ()
    output: str = ""
    imported: bool = False


@dataclass
class Sandbox:
    """A running sandbox; a context manager that leaves no process, mount, file or descriptor behind."""

    settings: Settings
    started: Started
    scratch: Path | None = None  # unsafe mode only: a folder on the host
    _buffer: bytearray = field(default_factory=bytearray)
    _cpu_before: float = 0.0  # what the finished cases used
    _waited: float = 0.0  # how long the running case was ready while the machine ran others

    # ---- life ----

    @classmethod
    def start(cls, settings: Settings, packages: launch.Packages = ()) -> Sandbox:
        """A sandbox that is ready for an implementation; raises ``SandboxUnavailable``.

        ``packages`` (name, folder) are what a suite of kind ``pytest`` runs with.
        It ends when this process does, in whatever way.
        """
        if settings.sandbox == "unsafe":
            scratch = Path(tempfile.gettempdir(), f"iccm-unsafe-{secrets.token_hex(8)}")
            return cls(settings, launch.unsafe(scratch), scratch)
        if packages:
            return cls(settings, launch.strict(packages))
        return cls(settings, nursery.keeper.take() or launch.strict())

    @property
    def layers(self) -> dict[str, str]:
        """What isolates it, by layer."""
        return self.started.layers

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it now, with everything in it, and wait until that is so."""
        if self.scratch:  # before the driver ends, too: it is who removes this should we be killed here
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.started.end()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- conversation ----

    def load(self, source: str, files: Mapping[str, str] | None = None) -> None:
        """Hand the implementation over; it is not run before the first case. ``files``: of a pytest suite."""
        preload = sorted(_named(source) & _PRELOADABLE)
        load: dict[str, Any] = {"do": "load", "source": source, "files": None, "paths": []}
        if files is None:
            self._ask({**load, "preload": tuple(preload)})
            return
        paths = self._package_paths()
        self._ask({**load, "files": dict(files), "paths": paths, "preload": tuple(preload)})
        launch.hear_ready(self.started.replies)

    def _package_paths(self) -> list[str]:
        """Where the sandbox finds the packages it was started with; without isolation, where they are."""
        if self.settings.sandbox == "strict":
            return [bubblewrap.PACKAGES]
        return sorted({str(Path(folder).parent) for _, folder in pytest_suites.packages()})

    def run_case(self, case: int, plan: tuple[Any, ...], budget: Budget) -> Reply:
        """Run one case in a process of its own and wait for its outcome."""
        limits = self.settings.judge
        answer = int(limits.output_mib * (1 << 20))
        scratch = str(self.scratch or INSIDE)
        self._ask(
            {
                "do": "case",
                "case": case,
                "plan": plan,
                "wall": budget.wall * PATIENCE,  # the outside, which sees who waited for whom, is exact
                "output": budget.output,
                "answer": answer,
                "processes": limits.processes,
                "scratch": scratch,
                "tidy": (scratch,) if self.scratch else (INSIDE, SHARED),
                "limits": {"answer": answer, "process": _process_limits(self.settings, budget)},
            }
        )
        return self._await_reply(budget)

    def _ask(self, request: dict[str, Any]) -> None:
        data = marshal.dumps(request)
        try:
            launch.write_all(self.started.requests, len(data).to_bytes(4, "big") + data)
        except BrokenPipeError:
            raise SandboxUnavailable("its first process ended by itself") from None

    def _await_reply(self, budget: Budget) -> Reply:
        """Wait for the driver, adding up what the processes use; over a limit they are killed for it."""
        started = time.monotonic()
        over, self._waited = "", 0.0
        while True:
            reply = self._take_reply()
            if reply:
                own = replace(reply, wall=max(reply.cpu, reply.wall - self._waited))
                return _overruled(own, over)
            if not launch.readable(self.started.replies, SAMPLE_SECONDS):
                over = over or self._excess(budget, started)
                if over:
                    self._kill_case()
                if time.monotonic() - started > budget.wall * PATIENCE + LATE_SECONDS + LOST_SECONDS:
                    return Reply("lost", wall=time.monotonic() - started)
                continue
            piece = os.read(self.started.replies, 1 << 16)
            if not piece:
                return Reply("lost", wall=time.monotonic() - started)
            self._buffer += piece

    def _excess(self, budget: Budget, started: float) -> str:
        """The limit "in all" that is exceeded, or ''."""
        limits = self.settings.judge
        places = () if self.scratch else (INSIDE, SHARED)
        used = usage(self.started.driver.pid, places, limits.memory_mib << 20)
        if used.memory > limits.memory_mib << 20:
            return "memory"
        if used.files > MAX_FILES:
            return "files"
        if used.processes - 1 > limits.processes:
            return "processes"
        if used.cpu - self._cpu_before > budget.cpu:
            return "cpu"
        return "wall" if self._own_time(started, budget) > budget.wall else ""

    def _own_time(self, started: float, budget: Budget) -> float:
        """Seconds since ``started`` without those in which the case waited for the machine to run others.

        So no implementation can make another one's time run out; but there is an end to patience.
        """
        elapsed = time.monotonic() - started
        case = processes_below(self.started.driver.pid)[1:2]
        self._waited = max(self._waited, sum(map(waited, case)))
        return elapsed if elapsed > budget.wall * PATIENCE else elapsed - self._waited

    def _kill_case(self) -> None:
        """Everything below the driver; it then reports the case as ended and sweeps up."""
        for pid in processes_below(self.started.driver.pid)[1:]:
            self.started.driver.kill_relative(pid)

    def _take_reply(self) -> Reply | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        header = _HEADER.fullmatch(self._buffer[:end])
        if not header:
            raise SandboxUnavailable("its first process sent something that is no reply")
        kind = header[1].decode("ascii")
        code, cpu, wall, printed, *sizes = map(int, header.groups()[1:])
        if len(self._buffer) < end + 1 + sum(sizes):
            return None
        parts, at = [], end + 1
        for size in sizes:
            parts.append(bytes(self._buffer[at : at + size]))
            at += size
        del self._buffer[:at]
        imported, notices = _notices(parts[1])
        self._cpu_before += cpu / 1e6
        return Reply(
            kind,
            code,
            cpu / 1e6,
            wall / 1e6,
            printed,
            parts[0],
            notices,
            parts[2].decode("utf-8", "replace"),
            imported,
        )


def _named(source: str) -> set[str]:
    """Top-level modules that the source seems to import; a guess that only saves time."""
    listed = (one or many for one, many in _IMPORT.findall(source))
    return {
        name.split()[0].partition(".")[0] for names in listed for name in names.split(",") if name.strip()
    }


def _notices(data: bytes) -> tuple[bool, tuple[str, ...]]:
    """Whether the import was done, and what the tripwires reported; anything else was written by a forger."""
    lines = dict.fromkeys(data.decode("ascii", "replace").splitlines())
    found = [line[:MAX_NOTICE] for line in lines if _NOTICE.match(line)]
    forged = any(line != "imported" and not _NOTICE.match(line) for line in lines)
    return "imported" in lines, tuple([FORGED] * forged + found[:MAX_NOTICES])


def _overruled(reply: Reply, over: str) -> Reply:
    """A case that was killed for exceeding a limit ended by that limit, whatever the driver saw."""
    if not over:
        return reply
    return Reply(
        over, 0, reply.cpu, reply.wall, reply.printed, b"", reply.notices, reply.output, reply.imported
    )


def _process_limits(settings: Settings, budget: Budget) -> dict[str, int]:
    limits = settings.judge
    memory = limits.memory_mib << 20
    wanted = {
        "RLIMIT_CPU": max(1, int(budget.cpu) + 1),
        # Writable private memory. Above the limit in all, because thread stacks count whole.
        "RLIMIT_DATA": memory + (1 << 30),
        "RLIMIT_FSIZE": 32 << 20,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 1 << 20,
        "RLIMIT_SIGPENDING": 1000,  # of what all of a user's processes may have together
    }
    if settings.sandbox == "strict":
        # The kernel counts threads too, and honest code may have many: processes are counted by the watch.
        wanted["RLIMIT_NPROC"] = 2 * limits.processes
    return wanted

"""One sandbox for one implementation: start it, check its layers, run cases in it.

    with Sandbox.start(settings) as sandbox:
        sandbox.load(source)
        outcome = sandbox.run_case(case.index, case.inputs(), limits)

A sandbox that lacks a layer is not used: ``start`` raises an error that names every missing layer. The
layers (namespaces, seccomp mode, capabilities, uid) are read from the running process, from outside.

Covered: files, environment, network, unix sockets, other processes, privileges, time, memory, processes,
output, scratch space. Not covered: bugs of the kernel itself, and timing channels. (J3)
"""

from __future__ import annotations

import io
import marshal
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap, control_groups, launcher, pytest_suites, warm_pool
from iccm_assets.sandbox.control_groups import ControlGroup
from iccm_assets.sandbox.environments import Environment, find_imports
from iccm_assets.sandbox.launcher import RunningSandbox
from iccm_assets.sandbox.resource_usage import ResourceUsage, imposed_wait
from iccm_assets.sandbox.usage_sampler import UsageSampler
from iccm_assets.settings import Settings

REPLY_TOLERANCE_SECONDS = 0.4  # how long after the init process the judge stops waiting
MAX_WALL_FACTOR = 4.0  # of the wall limit, while other processes keep the machine busy
REPLY_TIMEOUT_SECONDS = 10.0  # after this much more the init process counts as lost
MAX_SHARED_WAIT_FACTOR = 0.1  # of the wall limit, where the case itself keeps the machine busy, too
MAX_FILES = 20_000  # an empty file costs kernel memory that no size limit shows
SCRATCH, SHARED_MEMORY = "/tmp", "/dev/shm"
ENVIRONMENT_MOUNT = ".environment"  # no name of a module

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
_VIOLATION = re.compile(r"(?:file|socket|memory|system call|process|tampering): [ -~]+$")
_MAX_VIOLATION_LENGTH, _MAX_VIOLATIONS = 300, 20
_KINDS = b"answered|forged|exited|signal|wall|output|processes"
_HEADER = re.compile(rb"(" + _KINDS + rb")" + rb" (\d{1,18})" * 7 + rb" ([01])")
FORGED_REPLY = "forgery: wrote to the judge's answer channel"


@dataclass(frozen=True)
class Limits:
    """What one case may still use: wall-clock and CPU seconds, bytes of output."""

    wall: float
    cpu: float
    output: int

    def without(self, outcome: CaseOutcome) -> Limits:
        """Return what remains after a case."""
        return Limits(self.wall - outcome.wall, self.cpu - outcome.cpu, self.output - outcome.printed)


@dataclass(frozen=True)
class CaseOutcome:
    """How one case ended, as the init process and the sampler measured it; no verdict yet.

    ``kind`` is one of answered, forged, exited, signal, wall, cpu, memory, processes, files, output, lost.
    ``cpu`` and ``wall`` are seconds, ``printed`` counts bytes.
    """

    kind: str
    code: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    printed: int = 0
    answer: bytes = b""
    violations: tuple[str, ...] = ()
    output: str = ""
    imported: bool = False


@dataclass
class Sandbox(AbstractContextManager["Sandbox"]):
    """A running sandbox; a context manager that leaves no process, mount, file or descriptor behind."""

    settings: Settings
    running: RunningSandbox
    scratch: Path | None = None  # unsafe mode only: a folder on the host
    group: ControlGroup | None = None
    environment: Environment | None = None
    _buffer: bytearray = field(default_factory=bytearray)
    _finished_cpu: float = 0.0  # seconds, of the finished cases
    _imposed_wait: float = 0.0  # seconds in which the running case was ready while the machine ran others
    _goes_on: bool = False  # the init process runs the next case without being asked
    _competes: bool = False  # the running case's own processes and threads use time beside its first thread

    # ---- lifecycle ----

    @classmethod
    def start(
        cls,
        settings: Settings,
        packages: launcher.Packages = (),
        environment: Environment | None = None,
    ) -> Sandbox:
        """Start a sandbox that is ready for an implementation; raises ``SandboxUnavailableError``.

        ``packages`` (name, folder) are what a suite of kind ``pytest`` runs with, ``environment`` has those
        that the implementation may import.
        The sandbox ends when this process does, however it ends.
        """
        if settings.sandbox == "unsafe":
            scratch = Path(tempfile.gettempdir(), f"iccm-unsafe-{secrets.token_hex(8)}")
            return cls(settings, launcher.start_unsafe(scratch), scratch, environment=environment)
        if environment is not None:
            packages = (*packages, (ENVIRONMENT_MOUNT, environment.site_packages))
        running = (not packages and warm_pool.warm_pool.acquire()) or launcher.start_isolated(packages)
        sandbox = cls(settings, running, environment=environment)
        sandbox._enter_group()
        return sandbox

    def _enter_group(self) -> None:
        """Limit the sandbox by a control group, where there can be one; the layer ``memory`` says so."""
        limits = self.settings.judge
        group = control_groups.create_group(limits.memory_mib << 20, limits.processes)
        if group is None:
            return
        try:
            group.add(self.running.init_process.pid)
        except OSError:  # not in the part of the hierarchy that this user may change
            group.remove()
            return
        self.group = group
        self.running.layers["memory"] = "control group"

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox with everything in it, and wait for that."""
        if self.scratch:  # once before, too: the init process removes it only if this process is killed here
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.running.end()
        warm_pool.warm_pool.note_end()
        if self.group:
            self.group.remove()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- requests ----

    def load(self, source: str, files: Mapping[str, str] | None = None, imports: str = "") -> None:
        """Send the implementation, which first runs with the first case. ``files``: of a pytest suite.

        ``imports`` is further code whose packages are imported once, before it runs.
        """
        packages: list[str] = []
        if self.environment is not None:
            packages = sorted((find_imports(source) | find_imports(imports)) & self.environment.modules)
        request = {
            "command": "load",
            "source": source,
            "files": None if files is None else dict(files),
            "paths": [*([] if files is None else self._package_paths()), *self._environment_path()],
            "preload": tuple(sorted(_imported_modules(source) & _PRELOADABLE)),
            "packages": packages,
            "limits": _fixed_limits(self.settings),
        }
        self._send(request)
        if files is not None or packages:
            launcher.wait_ready(self.running.replies)

    def _package_paths(self) -> list[str]:
        """Return where the sandbox imports packages from; without isolation, folders of the host."""
        if self.settings.sandbox == "strict":
            return [bubblewrap.PACKAGES]
        return sorted({str(Path(folder).parent) for _, folder in pytest_suites.find_packages()})

    def _environment_path(self) -> list[str]:
        if self.environment is None:
            return []
        mounted = f"{bubblewrap.PACKAGES}/{ENVIRONMENT_MOUNT}"
        return [mounted if self.settings.sandbox == "strict" else self.environment.site_packages]

    def run_case(self, case: int, plan: tuple[Any, ...], remaining: Limits) -> CaseOutcome:
        """Run one case in a process of its own and wait for its outcome."""
        return next(self.run_cases([(case, plan)], remaining))

    def run_cases(
        self, cases: Sequence[tuple[int, tuple[Any, ...]]], remaining: Limits
    ) -> Iterator[CaseOutcome]:
        """Run cases one after the other, each in a process of its own, and yield their outcomes.

        They end early, after the first that did not answer at once. Those after it wait: continue with no
        cases, and with what remains then.
        """
        limits = self.settings.judge
        scratch = str(self.scratch or SCRATCH)
        request = {
            "command": "cases",
            "cases": [(case, marshal.dumps(plan)) for case, plan in cases],
            "remaining": (remaining.wall, remaining.cpu, remaining.output),
            # The exact limit is enforced outside, where waiting for other processes is visible.
            "wall_factor": MAX_WALL_FACTOR,
            "answer": int(limits.output_mib * (1 << 20)),
            "processes": limits.processes,
            "scratch": scratch,
            "clean": (scratch,) if self.scratch else (SCRATCH, SHARED_MEMORY),
            "process_limits": _process_limits(self.settings),
        }
        self._send(request)
        self._goes_on = True
        while self._goes_on:
            outcome = self._await_reply(remaining)
            yield outcome
            remaining = remaining.without(outcome)

    def _send(self, request: dict[str, Any]) -> None:
        try:
            launcher.write_frame(self.running.requests, marshal.dumps(request))
        except BrokenPipeError:
            raise SandboxUnavailableError("its init process ended unexpectedly") from None

    def _await_reply(self, remaining: Limits) -> CaseOutcome:
        """Wait for the outcome while sampling what the processes use; kill them at a limit."""
        started = time.monotonic()
        exceeded, self._imposed_wait, self._competes = "", 0.0, False
        tmpfs = () if self.scratch else (SCRATCH, SHARED_MEMORY)
        limit = self.settings.judge.memory_mib << 20
        sampler = UsageSampler(self.running.init_process, tmpfs, limit, self.group)
        while (
            time.monotonic() - started
            <= remaining.wall * MAX_WALL_FACTOR + REPLY_TOLERANCE_SECONDS + REPLY_TIMEOUT_SECONDS
        ):
            reply = self._parse_reply()
            if reply:
                return self._complete(reply, exceeded)
            if launcher.wait_readable(self.running.replies, sampler.interval):
                piece = os.read(self.running.replies, 1 << 16)
                if not piece:
                    break
                self._buffer += piece
                continue
            exceeded = exceeded or self._exceeded_limit(sampler.sample(), remaining, started)
            if exceeded:  # the init process then reports the end of the case and cleans up
                sampler.send_signal(signal.SIGKILL)
        self._goes_on = False
        out_of_memory = self.group is not None and self.group.was_killed_for_memory()
        return CaseOutcome("memory" if out_of_memory else "lost", wall=time.monotonic() - started)

    def _complete(self, reply: CaseOutcome, exceeded: str) -> CaseOutcome:
        """Return the outcome in its own time; a case killed for a limit has that limit as its kind."""
        reply = replace(reply, wall=max(reply.cpu, reply.wall - self._imposed_wait))
        if reply.kind == "signal" and self.group and self.group.was_killed_for_memory():
            exceeded = exceeded or "memory"
        return replace(reply, kind=exceeded, code=0, answer=b"") if exceeded else reply

    def _exceeded_limit(self, usage: ResourceUsage, remaining: Limits, started: float) -> str:
        """Name the total limit that is exceeded, or return ''."""
        limits = self.settings.judge
        cpu = usage.cpu - self._finished_cpu
        excess = {
            "memory": usage.memory - (limits.memory_mib << 20),
            "files": usage.files - MAX_FILES,
            "processes": len(usage.pids) - 1 - limits.processes,
            "cpu": cpu - remaining.cpu,
            "wall": self._own_time(usage.pids, cpu, started, remaining) - remaining.wall,
        }
        return next((name for name, amount in excess.items() if amount > 0), "")

    def _own_time(self, pids: tuple[int, ...], cpu: float, started: float, remaining: Limits) -> float:
        """Return the seconds since ``started`` without those in which the machine ran other sandboxes' work.

        So no implementation can use up another one's time; ``MAX_WALL_FACTOR`` bounds the excluded time.
        """
        elapsed = time.monotonic() - started
        wait, competes = imposed_wait(pids, cpu)
        self._competes = self._competes or competes
        longest = remaining.wall * (MAX_SHARED_WAIT_FACTOR if self._competes else MAX_WALL_FACTOR)
        self._imposed_wait = min(max(self._imposed_wait, wait), longest)
        return elapsed if elapsed > remaining.wall * MAX_WALL_FACTOR else elapsed - self._imposed_wait

    def _parse_reply(self) -> CaseOutcome | None:
        """Parse one reply out of the buffer; None while it is incomplete."""
        line, newline, body = self._buffer.partition(b"\n")
        if not newline:
            return None
        header = _HEADER.fullmatch(line)
        if not header:
            raise SandboxUnavailableError("its init process sent a malformed reply")
        code, cpu, wall, printed, *sizes, goes_on = map(int, header.groups()[1:])
        if len(body) < sum(sizes):
            return None
        answer, lines, output = map(io.BytesIO(body).read, sizes)
        del self._buffer[: len(line) + 1 + sum(sizes)]
        self._goes_on = goes_on == 1
        imported, violations = _parse_violations(lines)
        self._finished_cpu += cpu / 1e6
        kind, text = header[1].decode("ascii"), output.decode("utf-8", "replace")
        return CaseOutcome(kind, code, cpu / 1e6, wall / 1e6, printed, answer, violations, text, imported)


def _imported_modules(source: str) -> set[str]:
    """Guess the top-level modules that the source imports; a wrong guess only costs time."""
    lists = (single or several for single, several in _IMPORT.findall(source))
    return {name.split()[0].partition(".")[0] for names in lists for name in names.split(",") if name.strip()}


def _parse_violations(data: bytes) -> tuple[bool, tuple[str, ...]]:
    """Return whether the import was done, and what the audit hook reported; any other line was forged."""
    lines = dict.fromkeys(data.decode("ascii", "replace").splitlines())
    violations = [line[:_MAX_VIOLATION_LENGTH] for line in lines if _VIOLATION.match(line)]
    forged = any(line != "imported" and not _VIOLATION.match(line) for line in lines)
    return "imported" in lines, tuple([FORGED_REPLY] * forged + violations[:_MAX_VIOLATIONS])


def _fixed_limits(settings: Settings) -> dict[str, int]:
    """Return the limits of each process that are the same for all cases."""
    return {
        # Writable private memory. Above the total limit, because thread stacks count whole.
        "RLIMIT_DATA": (settings.judge.memory_mib << 20) + (1 << 30),
        # All of it, reserved memory, too. Page tables are 1/512 of it, so those of 64 processes stay near the
        # total limit, however fast they are filled between two samples (1 GiB was seen at 32 times).
        "RLIMIT_AS": 9 * settings.judge.memory_mib << 20,
        "RLIMIT_FSIZE": 32 << 20,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 1 << 20,
        "RLIMIT_NICE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 1000,  # a part of the limit for all processes of a user
    }


def _process_limits(settings: Settings) -> dict[str, int]:
    """Return the limits of each process of a case that the init process does not have itself."""
    # The kernel counts threads, too, and honest code may have many; the sampler counts processes.
    return {"RLIMIT_NPROC": 2 * settings.judge.processes} if settings.sandbox == "strict" else {}

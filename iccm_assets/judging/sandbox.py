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

import itertools
import json
import marshal
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, BinaryIO

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import bubblewrap, seccomp
from iccm_assets.judging.watch import Usage, processes_below, usage
from iccm_assets.settings import Settings

START_SECONDS = 20.0
SAMPLE_SECONDS = 0.025
LATE_SECONDS = 0.4  # how much later than the driver the outside ends a case
MAX_FILES = 20_000  # an empty file costs kernel memory that no size limit shows
NAMESPACES = ("user", "pid", "net", "ipc", "mnt", "uts")
INSIDE, SHARED = "/tmp", "/dev/shm"

_BOOTSTRAP = (
    "import os,marshal,types;os.closerange(3,4096);"
    "size=int.from_bytes(os.read(0,4),'big');data=b''\n"
    "while len(data)<size: data+=os.read(0,size-len(data))\n"
    "made={}\n"
    "for name,code in marshal.loads(data).items():\n"
    " made[name]=m=types.ModuleType(name);m.__dict__['__builtins__']=dict(vars(__builtins__))\n"
    " exec(code,m.__dict__)\n"
    "made['driver'].serve(made['runner'])"
)

# Imported once per sandbox when the implementation names them: quick to load and without side effects.
_PRELOADABLE = frozenset(
    "abc argparse array ast asyncio base64 binascii bisect calendar cmath collections concurrent contextlib copy csv "
    "dataclasses datetime decimal difflib enum fnmatch fractions functools graphlib hashlib heapq html inspect io "
    "itertools json keyword logging math numbers operator os pathlib pprint queue random re secrets shlex statistics "
    "string struct sys tempfile textwrap threading time traceback types typing unicodedata urllib uuid warnings "
    "weakref zlib zoneinfo".split()
)
_IMPORT = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
_slots = itertools.count(os.getpid())


class LayersMissing(SandboxUnavailable):
    """The sandbox started without one of its layers, so it was not used."""

    def __init__(self, layers: Mapping[str, str]) -> None:
        self.layers = dict(layers)
        super().__init__(
            "; ".join(f"{name} {state}" for name, state in layers.items() if state.startswith("missing"))
        )


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
    process: subprocess.Popen[bytes]
    driver: Handle
    layers: dict[str, str]
    scratch: Path | None = None  # unsafe mode only: a folder on the host
    _buffer: bytearray = field(default_factory=bytearray)
    _cpu_before: float = 0.0  # what the finished cases used

    # ---- life ----

    @classmethod
    def start(cls, settings: Settings) -> Sandbox:
        """A sandbox that is ready for an implementation; raises ``SandboxUnavailable``."""
        return _start_unsafe(settings) if settings.sandbox == "unsafe" else _start_strict(settings)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it now, with everything in it, and wait until that is so."""
        _end(self.process, self.driver)
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- conversation ----

    def load(self, source: str) -> None:
        """Hand the implementation over; it is not run before the first case."""
        named = tuple(sorted({name for name in _IMPORT.findall(source) if name in _PRELOADABLE}))
        self._ask({"do": "load", "source": source, "preload": named})

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
                "wall": budget.wall,
                "output": budget.output,
                "answer": answer,
                "scratch": scratch,
                "tidy": (scratch,) if self.scratch else (INSIDE, SHARED),
                "limits": {"answer": answer, "process": _process_limits(self.settings, budget)},
            }
        )
        return self._await_reply(budget)

    def _ask(self, request: dict[str, Any]) -> None:
        data = marshal.dumps(request)
        try:
            _write_all(_requests(self.process), len(data).to_bytes(4, "big") + data)
        except BrokenPipeError:
            raise SandboxUnavailable("its first process ended by itself") from None

    def _await_reply(self, budget: Budget) -> Reply:
        """Wait for the driver, adding up what the processes use; over a limit they are killed for it."""
        started = time.monotonic()
        over = ""
        while True:
            reply = self._take_reply()
            if reply:
                return _overruled(reply, over)
            if not _readable(_replies(self.process), SAMPLE_SECONDS):
                over = over or self._excess(budget, started)
                if over:
                    self._kill_case()
                if time.monotonic() - started > budget.wall + LATE_SECONDS + START_SECONDS:
                    return Reply("lost", wall=time.monotonic() - started)
                continue
            piece = os.read(_replies(self.process), 1 << 16)
            if not piece:
                return Reply("lost", wall=time.monotonic() - started)
            self._buffer += piece

    def _excess(self, budget: Budget, started: float) -> str:
        """The limit "in all" that is exceeded, or ''."""
        limits = self.settings.judge
        used = self._usage(limits.memory_mib << 20)
        if used.memory > limits.memory_mib << 20:
            return "memory"
        if used.files > MAX_FILES:
            return "files"
        if used.processes - 1 >= limits.processes:
            return "processes"
        if used.cpu - self._cpu_before > budget.cpu:
            return "cpu"
        return "wall" if time.monotonic() - started > budget.wall + LATE_SECONDS else ""

    def _usage(self, limit: int) -> Usage:
        return usage(self.driver.pid, () if self.scratch else (INSIDE, SHARED), limit)

    def _kill_case(self) -> None:
        """Everything below the driver; it then reports the case as ended and sweeps up."""
        for pid in processes_below(self.driver.pid)[1:]:
            self.driver.kill_relative(pid)

    def _take_reply(self) -> Reply | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        kind, *numbers = self._buffer[:end].decode("ascii").split()
        code, cpu, wall, printed, *sizes = map(int, numbers)
        if len(self._buffer) < end + 1 + sum(sizes):
            return None
        parts, at = [], end + 1
        for size in sizes:
            parts.append(bytes(self._buffer[at : at + size]))
            at += size
        del self._buffer[:at]
        notices = tuple(parts[1].decode("utf-8", "replace").splitlines())
        self._cpu_before += cpu / 1e6
        return Reply(
            kind,
            code,
            cpu / 1e6,
            wall / 1e6,
            printed,
            parts[0],
            tuple(notice for notice in notices if notice != "imported"),
            parts[2].decode("utf-8", "replace"),
            "imported" in notices,
        )


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
        "RLIMIT_DATA": memory + (512 << 20),
        "RLIMIT_FSIZE": 32 << 20,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 1 << 20,
    }
    if settings.sandbox == "strict":
        wanted["RLIMIT_NPROC"] = limits.processes
    return wanted


# ---- starting ------------------------------------------------------------------------------------


def _start_strict(settings: Settings) -> Sandbox:
    bwrap, python = bubblewrap.find_bubblewrap(), bubblewrap.find_interpreter()
    if not seccomp.supported():
        raise SandboxUnavailable(
            "no system call filter for this architecture", hint="x86_64 and aarch64 have one."
        )
    uid = bubblewrap.unprivileged_uid(next(_slots)) if os.geteuid() == 0 else None
    with _pipe() as (filter_out, filter_in), _pipe() as (info_out, info_in):
        filter_in.write(seccomp.program())  # 1.3 kB: fits into the pipe
        filter_in.close()
        keep = filter_out.fileno(), info_in.fileno()
        process = _launch(
            bubblewrap.command(bwrap, python, filter_fd=keep[0], info_fd=keep[1], uid=uid), keep, {}
        )
        info_in.close()
        try:
            driver = _first_process(process, info_out.read())
        except BaseException:
            _end(process, None)
            raise
    try:
        _greet(process)
        layers = {"bubblewrap": bwrap.version, **_verify(driver.pid)}
        if any(state.startswith("missing") for state in layers.values()):
            raise LayersMissing(layers)
    except BaseException:
        _end(process, driver)
        raise
    return Sandbox(settings, process, driver, layers)


def _start_unsafe(settings: Settings) -> Sandbox:
    process = _launch([sys.executable], (), {"PYTHONHASHSEED": "0"})
    driver = Handle.of(process.pid)
    try:
        _greet(process)
    except BaseException:
        _end(process, driver)
        raise
    layers = dict.fromkeys(
        ("bubblewrap", "namespaces", "seccomp", "uid", "filesystem"), "off: ICCM_SANDBOX=unsafe"
    )
    scratch = Path(tempfile.mkdtemp(prefix="iccm-unsafe-"))
    return Sandbox(settings, process, driver, {**layers, "memory": "sampler", "rlimits": "ok"}, scratch)


def _launch(
    command: list[str], keep: tuple[int, ...], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start the driver behind ``command``.

    The environment is empty on purpose: bwrap's own would be readable inside.
    """
    return subprocess.Popen(
        [*command, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=keep,
        env=environment,
        cwd="/",
        bufsize=0,
    )


def _first_process(process: subprocess.Popen[bytes], info: bytes) -> Handle:
    try:
        return Handle.of(int(json.loads(info)["child-pid"]))
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        raise SandboxUnavailable(_complaint(process)) from None


def _greet(process: subprocess.Popen[bytes]) -> None:
    """Send the driver its code and wait until it says that it is ready."""
    code = marshal.dumps(_code())
    try:
        _write_all(_requests(process), len(code).to_bytes(4, "big") + code)
    except BrokenPipeError:
        raise SandboxUnavailable(_complaint(process)) from None
    if not _readable(_replies(process), START_SECONDS) or os.read(_replies(process), 6) != b"ready\n":
        raise SandboxUnavailable(_complaint(process))


def _complaint(process: subprocess.Popen[bytes]) -> str:
    """What the sandbox printed as it failed to start."""
    process.kill()
    assert process.stderr
    said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else f"it did not start (exit code {process.wait()})"


@cache
def _code() -> dict[str, CodeType]:
    """The two modules that run inside, compiled."""
    folder = Path(__file__).parent
    return {
        name: compile(
            (folder / f"{name}.py").read_text(encoding="utf-8"), f"<{name}>", "exec", dont_inherit=True
        )
        for name in ("runner", "driver")
    }


def _verify(pid: int) -> dict[str, str]:
    """Which layers hold for the running first process, looked at from outside."""
    status = dict(
        row.split(":", 1)
        for row in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        if ":" in row
    )
    joined = [
        name
        for name in NAMESPACES
        if os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    ]
    uids = {int(uid) for uid in status["Uid"].split()}
    capabilities = any(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"))
    first = status["NSpid"].split()[-1] == "1"
    filtered = status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1"
    root = set(os.listdir(f"/proc/{pid}/root"))
    return {
        "namespaces": "missing: shares " + ", ".join(joined) if joined or not first else "ok",
        "seccomp": "ok" if filtered else "missing: no filter is in force",
        "uid": f"unprivileged ({max(uids)})"
        if 0 not in uids and not capabilities
        else "missing: it is privileged",
        "filesystem": "missing: it sees the host's files" if root & {"etc", "proc", "home", "var"} else "ok",
        "memory": "sampler",
        "rlimits": "ok",
    }


# ---- processes and pipes -------------------------------------------------------------------------


@dataclass
class Handle:
    """A process by descriptor: its number may be reused, the descriptor never means another one."""

    pid: int
    descriptor: int

    @classmethod
    def of(cls, pid: int) -> Handle:
        return cls(pid, os.pidfd_open(pid))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def close(self) -> None:
        os.close(self.descriptor)

    def kill_relative(self, pid: int) -> None:
        """Kill ``pid`` if it (still) is a process of this one's pid namespace."""
        with suppress(OSError):  # it has just ended
            other = Handle.of(pid)
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid"):
                    other.kill()
            finally:
                other.close()


def _end(process: subprocess.Popen[bytes], driver: Handle | None) -> None:
    """Kill the first process, with which the kernel ends its whole namespace, and wait for its parents."""
    if driver is None:
        process.kill()
    else:
        if process.poll() is None:
            driver.kill()
        driver.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


@contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A pipe as (reading end, writing end); both closed at the end if they are not yet."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as out, os.fdopen(writing, "wb") as into:
        yield out, into


def _requests(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin
    return process.stdin.fileno()


def _replies(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout
    return process.stdout.fileno()


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

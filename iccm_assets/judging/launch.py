"""Starting the driver behind bubblewrap, looking at what was started, and ending it (J3)."""

from __future__ import annotations

import itertools
import json
import marshal
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import BinaryIO

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import bubblewrap, seccomp

START_SECONDS = 20.0
NAMESPACES = ("user", "pid", "net", "ipc", "mnt", "uts")
HOST_FOLDERS = frozenset(("etc", "proc", "home", "var", "sys"))

_BOOTSTRAP = (
    "import os,marshal,types;os.closerange(3,4096);"
    "size=int.from_bytes(os.read(0,4),'big');data=b''\n"
    "while len(data)<size: data+=os.read(0,size-len(data))\n"
    "made={}\n"
    "for name,code in marshal.loads(data).items():\n"
    " made[name]=m=types.ModuleType(name);m.__dict__['__builtins__']=dict(vars(__builtins__))\n"
    " exec(code,m.__dict__)\n"
    "made['driver'].serve(made['runner'],made['tripwires'])"
)
_slots = itertools.count(os.getpid())


class LayersMissing(SandboxUnavailable):
    """The sandbox started without one of its layers, so it was not used."""

    def __init__(self, layers: Mapping[str, str]) -> None:
        self.layers = dict(layers)
        super().__init__(
            "; ".join(f"{name} {state}" for name, state in layers.items() if state.startswith("missing"))
        )


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


@dataclass(frozen=True)
class Started:
    """A driver that waits for requests: what was launched, its own process, and the layers around it."""

    process: subprocess.Popen[bytes]
    driver: Handle
    layers: dict[str, str]

    @property
    def requests(self) -> int:
        """Descriptor to write requests to."""
        return _requests(self.process)

    @property
    def replies(self) -> int:
        """Descriptor to read replies from."""
        return _replies(self.process)

    def end(self) -> None:
        """End it now, with everything in it, and wait until that is so."""
        _end(self.process, self.driver)


def strict() -> Started:
    """A driver in a sandbox with every layer; ``SandboxUnavailable`` or ``LayersMissing`` otherwise."""
    if not seccomp.supported():
        raise SandboxUnavailable(
            "no system call filter for this architecture", hint="x86_64 and aarch64 have one."
        )
    *others, last = bubblewrap.find_bubblewraps()
    for bwrap in others:
        with suppress(SandboxUnavailable):  # an outdated one of the system's; the wheel's may do
            return _strict(bwrap)
    return _strict(last)


def _strict(bwrap: bubblewrap.Bubblewrap) -> Started:
    python = bubblewrap.find_interpreter()
    uid = bubblewrap.unprivileged_uid(next(_slots)) if os.geteuid() == 0 else None
    with _pipe() as (filter_out, filter_in), _pipe() as (info_out, info_in):
        filter_in.write(seccomp.program())  # 1.3 kB: fits into the pipe
        filter_in.close()
        keep = filter_out.fileno(), info_in.fileno()
        command = bubblewrap.command(bwrap, python, filter_fd=keep[0], info_fd=keep[1], uid=uid)
        process = _launch(command, keep, {})
        info_in.close()
        try:
            driver = _first_process(process, info_out.read())
        except BaseException:
            _end(process, None)
            raise
    try:
        _greet(process)
        try:
            layers = {"bubblewrap": bwrap.version, **_verify(driver.pid)}
        except OSError as error:
            raise SandboxUnavailable(f"its first process cannot be looked at: {error}") from None
        if any(state.startswith("missing") for state in layers.values()):
            raise LayersMissing(layers)
    except BaseException:
        _end(process, driver)
        raise
    return Started(process, driver, layers)


def unsafe() -> Started:
    """A driver without isolation, for whoever asked for it by name; its layers say so."""
    process = _launch([sys.executable], (), {"PYTHONHASHSEED": "0"})
    driver = Handle.of(process.pid)
    try:
        _greet(process)
    except BaseException:
        _end(process, driver)
        raise
    off = ("bubblewrap", "namespaces", "seccomp", "uid", "filesystem")
    layers = dict.fromkeys(off, "off: ICCM_SANDBOX=unsafe")
    return Started(process, driver, {**layers, "memory": "sampler", "rlimits": "ok"})


def _launch(
    command: list[str], keep: tuple[int, ...], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start the driver behind ``command``.

    The environment is empty on purpose: bwrap's own would be readable inside.
    """
    try:
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
    except OSError as error:
        raise SandboxUnavailable(f"{command[0]} cannot be started: {error}") from None


def _first_process(process: subprocess.Popen[bytes], info: bytes) -> Handle:
    try:
        return Handle.of(int(json.loads(info)["child-pid"]))
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        raise SandboxUnavailable(_complaint(process)) from None


def _greet(process: subprocess.Popen[bytes]) -> None:
    """Send the driver its code and wait until it says that it is ready."""
    code = marshal.dumps(_code())
    try:
        write_all(_requests(process), len(code).to_bytes(4, "big") + code)
    except BrokenPipeError:
        raise SandboxUnavailable(_complaint(process)) from None
    if not readable(_replies(process), START_SECONDS) or os.read(_replies(process), 6) != b"ready\n":
        raise SandboxUnavailable(_complaint(process))


def _complaint(process: subprocess.Popen[bytes]) -> str:
    """What the sandbox printed as it failed to start."""
    process.kill()
    assert process.stderr
    said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else f"it did not start (exit code {process.wait()})"


@cache
def _code() -> dict[str, CodeType]:
    """The modules that run inside, compiled."""
    folder = Path(__file__).parent
    return {
        name: compile(
            (folder / f"{name}.py").read_text(encoding="utf-8"), f"<{name}>", "exec", dont_inherit=True
        )
        for name in ("tripwires", "runner", "driver")
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
    watched = os.path.exists(f"/proc/{pid}/task/{pid}/children")
    return {
        "namespaces": "missing: shares " + ", ".join(joined) if joined or not first else "ok",
        "seccomp": "ok" if filtered else "missing: no filter is in force",
        "uid": f"unprivileged ({max(uids)})"
        if 0 not in uids and not capabilities
        else "missing: it is privileged",
        "filesystem": "missing: it sees the host's files" if root & HOST_FOLDERS else "ok",
        "memory": "sampler" if watched else "missing: the kernel does not list a process's children",
        "rlimits": "ok",
    }


# ---- ending, and pipes ---


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


def readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

"""Starting the driver behind bubblewrap, looking at what was started, and ending it (J3).

What is started ends when its first process finds that nobody can ask it anything any more: when the judge
closed the pipe or died, at whatever moment, start-up included. So the bubblewraps in front of it are never
killed while they start, get no signal from a terminal, and may always write what they have to tell.
"""

from __future__ import annotations

import itertools
import json
import marshal
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType
from typing import BinaryIO

from iccm_assets.errors import SandboxUnavailable
from iccm_assets.judging import bubblewrap, seccomp

START_SECONDS = 20.0
END_SECONDS = 5.0
NAMESPACES = ("user", "pid", "net", "ipc", "mnt", "uts")
HOST_FOLDERS = frozenset(("etc", "proc", "home", "var", "sys"))

_BOOTSTRAP = (
    "import os,marshal,types;os.closerange(3,4096);"
    "size=int.from_bytes(os.read(0,4),'big');data=b''\n"
    "while len(data)<size: data+=os.read(0,size-len(data)) or os._exit(1)\n"  # the judge is gone
    "codes,made=marshal.loads(data)\n"
    "for name,code in codes.items():\n"
    " made[name]=m=types.ModuleType(name);m.__dict__['__builtins__']=dict(vars(__builtins__))\n"
    " exec(code,m.__dict__)\n"
    "made[made['start']].serve(made)"
)
DRIVER: Mapping[str, object] = {"start": "driver"}
Packages = tuple[tuple[str, str], ...]
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

    def end(self) -> None:
        """Kill it, wait until it is dead (a first process dies after everything in its namespace), close."""
        self.kill()
        readable(self.descriptor, END_SECONDS)
        self.close()

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
    """A driver that waits for requests: what was launched, its own process, and the layers around it.

    ``requests`` and ``replies`` are descriptors; ``end`` ends it now, with everything in it, and waits
    until that is so.
    """

    process: subprocess.Popen[bytes]
    driver: Handle
    layers: dict[str, str]
    requests: int
    replies: int
    end: Callable[[], None]


def strict(packages: Packages = ()) -> Started:
    """A driver in a sandbox with every layer; ``SandboxUnavailable`` or ``LayersMissing`` otherwise.

    ``packages`` (name, folder) are to be importable inside, from ``bubblewrap.PACKAGES``.
    """
    if not seccomp.supported():
        raise SandboxUnavailable(
            "no system call filter for this architecture", hint="x86_64 and aarch64 have one."
        )
    *others, last = bubblewrap.find_bubblewraps()
    for bwrap in others:
        with suppress(SandboxUnavailable):  # an outdated one of the system's; the wheel's may do
            return _strict(bwrap, packages)
    return _strict(last, packages)


def _strict(bwrap: bubblewrap.Bubblewrap, packages: Packages) -> Started:
    process, driver = behind(bwrap, subprocess.PIPE, packages)
    try:
        greet(process, _requests(process), DRIVER)
        try:
            layers = {"bubblewrap": bwrap.version, **verify(driver.pid)}
        except OSError as error:
            raise SandboxUnavailable(f"its first process cannot be looked at: {error}") from None
        if any(state.startswith("missing") for state in layers.values()):
            raise LayersMissing(layers)
    except BaseException:
        end(process, driver)
        raise
    return _started(process, driver, layers)


def behind(
    bwrap: bubblewrap.Bubblewrap, stdin: int, packages: Packages = (), nursery: str = ""
) -> tuple[subprocess.Popen[bytes], Handle]:
    """Start the interpreter behind bubblewrap, for a driver or for a nursery; not greeted yet."""
    with _pipe() as (filter_out, filter_in), _pipe() as (info_out, info_in):
        filter_in.write(seccomp.program())  # 1.3 kB: fits into the pipe
        filter_in.close()
        keep = filter_out.fileno(), info_in.fileno()
        command = command_line(bwrap, keep, next(_slots), packages)
        if nursery:
            command = bubblewrap.nursery_command(command, nursery)
        # With the reading end too: bubblewrap would die of a broken pipe, in the midst of its start.
        process = _launch(command, (*keep, info_out.fileno()), {}, stdin)
        info_in.close()
        try:
            return process, _first_process(process, info_out.read())
        except BaseException:
            end(process, None)
            raise


def command_line(
    bwrap: bubblewrap.Bubblewrap, keep: tuple[int, int], slot: int, packages: Packages = ()
) -> list[str]:
    """What starts a sandbox; ``keep`` are the descriptors of the filter and of what bubblewrap tells."""
    uid = bubblewrap.unprivileged_uid(slot) if os.geteuid() == 0 else None
    python = replace(bubblewrap.find_interpreter(), packages=packages)
    return bubblewrap.command(bwrap, python, filter_fd=keep[0], info_fd=keep[1], uid=uid)


def unsafe(scratch: Path) -> Started:
    """A driver without isolation, for whoever asked for it by name; its layers say so.

    It makes the folder ``scratch`` and removes it when the judge has died.
    """
    process = _launch([sys.executable], (), {"PYTHONHASHSEED": "0"}, subprocess.PIPE)
    driver = Handle.of(process.pid)
    try:
        greet(process, _requests(process), {**DRIVER, "scratch": str(scratch)})
    except BaseException:
        end(process, driver)
        raise
    off = ("bubblewrap", "namespaces", "seccomp", "uid", "filesystem")
    layers = dict.fromkeys(off, "off: ICCM_SANDBOX=unsafe")
    return _started(process, driver, {**layers, "memory": "sampler", "rlimits": "ok"})


def _started(process: subprocess.Popen[bytes], driver: Handle, layers: dict[str, str]) -> Started:
    requests, replies = _requests(process), _replies(process)
    hold(requests)
    return Started(process, driver, layers, requests, replies, lambda: end(process, driver))


def _launch(
    command: list[str], keep: tuple[int, ...], environment: dict[str, str], stdin: int
) -> subprocess.Popen[bytes]:
    """Start the driver behind ``command``.

    The environment is empty on purpose: bwrap's own would be readable inside.
    """
    try:
        return subprocess.Popen(
            [*command, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            env=environment,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{command[0]} cannot be started: {error}") from None


def _first_process(process: subprocess.Popen[bytes], info: bytes) -> Handle:
    try:
        return Handle.of(int(json.loads(info)["child-pid"]))
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        raise SandboxUnavailable(_complaint(process)) from None


def greet(process: subprocess.Popen[bytes], requests: int, values: Mapping[str, object]) -> None:
    """Send the first process its code and wait until it says that it is ready."""
    code = marshal.dumps((_code(), dict(values)))
    try:
        write_all(requests, len(code).to_bytes(4, "big") + code)
    except BrokenPipeError:
        raise SandboxUnavailable(_complaint(process)) from None
    try:
        hear_ready(_replies(process))
    except SandboxUnavailable:
        raise SandboxUnavailable(_complaint(process)) from None


def hear_ready(replies: int) -> None:
    """Wait for a driver's first word; ``SandboxUnavailable`` when it is another one or none."""
    said = os.read(replies, 300) if readable(replies, START_SECONDS) else b""
    if said != b"ready\n":
        raise SandboxUnavailable(f"it is not ready: {said.decode('utf-8', 'replace')}")


def _complaint(process: subprocess.Popen[bytes]) -> str:
    """What the sandbox printed as it failed to start."""
    if process.stdin:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_SECONDS)
    assert process.stderr
    os.set_blocking(process.stderr.fileno(), False)
    said = (process.stderr.read() or b"").decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else f"it did not start (exit code {process.poll()})"


@cache
def _code() -> dict[str, CodeType]:
    """The modules that run inside, compiled."""
    folder = Path(__file__).parent
    return {
        name: compile(
            (folder / f"{name}.py").read_text(encoding="utf-8"), f"<{name}>", "exec", dont_inherit=True
        )
        for name in ("tripwires", "pytest_cases", "runner", "driver", "cells")
    }


@dataclass(frozen=True)
class Surroundings:
    """What a sandbox must not share: the namespaces outside it, and the devices of scratch space there."""

    namespaces: frozenset[str]
    scratch: frozenset[int] = frozenset()


def surroundings(pid: int) -> Surroundings:
    """Those of a process, and of this one."""
    own = {os.readlink(f"/proc/{one}/ns/{name}") for one in (pid, "self") for name in NAMESPACES}
    return Surroundings(frozenset(own), frozenset(_scratch(pid)))


def _scratch(pid: int) -> list[int]:
    return [os.stat(f"/proc/{pid}/root{place}").st_dev for place in ("/tmp", "/dev/shm")]


def verify(pid: int, outside: Surroundings | None = None) -> dict[str, str]:
    """Which layers hold for the running first process, looked at from outside."""
    outside = outside or Surroundings(frozenset(os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES))
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as rows:
        status = dict(row.split(":", 1) for row in rows if ":" in row)
    joined = [name for name in NAMESPACES if os.readlink(f"/proc/{pid}/ns/{name}") in outside.namespaces]
    uids = {int(uid) for uid in status["Uid"].split()}
    capabilities = any(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"))
    first = status["NSpid"].split()[-1] == "1"
    filtered = status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1"
    root = set(os.listdir(f"/proc/{pid}/root"))
    shared = outside.scratch.intersection(_scratch(pid))
    watched = os.path.exists(f"/proc/{pid}/task/{pid}/children")
    return {
        "namespaces": "missing: shares " + ", ".join(joined) if joined or not first else "ok",
        "seccomp": "ok" if filtered else "missing: no filter is in force",
        "uid": f"unprivileged ({max(uids)})"
        if 0 not in uids and not capabilities
        else "missing: it is privileged",
        "filesystem": "missing: it sees the host's files"
        if root & HOST_FOLDERS
        else "missing: its scratch space is shared"
        if shared
        else "ok",
        "memory": "sampler" if watched else "missing: the kernel does not list a process's children",
        "rlimits": "ok",
    }


# ---- ending, and pipes ---------------------------------------------------------------------------

_lifelines: set[int] = set()  # descriptors that keep a sandbox or a nursery going


def hold(descriptor: int) -> None:
    """A fork of this process is not to keep this going when this process dies."""
    _lifelines.add(descriptor)


def let_go(descriptor: int) -> None:
    """``hold`` no longer; before it is closed."""
    _lifelines.discard(descriptor)


def _in_a_fork() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _lifelines:
        os.dup2(null, descriptor, False)  # not closed: whoever has the number here closes it in time
    os.close(null)
    _lifelines.clear()


os.register_at_fork(after_in_child=_in_a_fork)


def end(process: subprocess.Popen[bytes], driver: Handle | None) -> None:
    """Kill the first process, with which the kernel ends its whole namespace, and wait for its parents.

    Without one yet, close the pipe: what is still starting ends as soon as it reads.
    """
    if process.stdin and not process.stdin.closed:
        let_go(process.stdin.fileno())
        process.stdin.close()
    if driver is not None:
        if process.poll() is None:
            driver.kill()
        driver.close()
    try:
        process.wait(timeout=END_SECONDS)
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

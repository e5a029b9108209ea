"""Start an init process with bubblewrap, inspect its layers, and end it. (J3)

A sandbox ends when its init process reads the end of its request pipe: the judge closed it or died, at any
time, start-up included. So the bubblewraps in front of it are never killed while they start, receive no
signal from a terminal, and can always write their report.
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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import IO, BinaryIO

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap, seccomp

START_TIMEOUT_SECONDS = 20.0
END_TIMEOUT_SECONDS = 5.0
NAMESPACES = ("user", "pid", "net", "ipc", "mnt", "uts")
HOST_FOLDERS = frozenset(("etc", "proc", "home", "var", "sys"))

_BOOTSTRAP = (
    "import os,marshal,types;os.closerange(3,4096);"
    "size=int.from_bytes(os.read(0,4),'big');data=b''\n"
    "while len(data)<size: data+=os.read(0,size-len(data)) or os._exit(1)\n"  # the judge has ended
    "codes,context=marshal.loads(data)\n"
    "for name,code in codes.items():\n"
    " context[name]=m=types.ModuleType(name);m.__dict__['__builtins__']=dict(vars(__builtins__))\n"
    " exec(code,m.__dict__)\n"
    "context[context['start']].serve(context)"
)
Packages = tuple[tuple[str, str], ...]
_INNER_MODULES = (
    *("source_files", "audit_hooks", "pytest_runner", "case_runner", "init_process", "warm_pool_worker"),
)
_slots = itertools.count(os.getpid())


class MissingLayersError(SandboxUnavailableError):
    """The sandbox started without one of its layers, so it was not used."""

    def __init__(self, layers: Mapping[str, str]) -> None:
        self.layers = dict(layers)
        super().__init__(
            "; ".join(f"{name} {state}" for name, state in layers.items() if state.startswith("missing"))
        )


class ProcessHandle:
    """A process by descriptor: its pid may be reused, the descriptor never refers to another process."""

    def __init__(self, pid: int, descriptor: int | None = None) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid) if descriptor is None else descriptor

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def signal_in_namespace(self, pid: int, number: int) -> None:
        """Send ``pid`` a signal if it (still) is a process of this one's pid namespace."""
        with suppress(OSError):  # it has just ended
            descriptor = os.pidfd_open(pid)
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid"):
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


@dataclass(frozen=True)
class RunningSandbox:
    """An init process that waits for requests: its launcher, its own process, the layers around it.

    ``requests`` and ``replies`` are descriptors; ``end`` kills everything in it and waits for that.
    """

    process: subprocess.Popen[bytes]
    init_process: ProcessHandle
    layers: dict[str, str]
    requests: int
    replies: int
    end: Callable[[], None]


def start_isolated(packages: Packages = ()) -> RunningSandbox:
    """Start a sandbox with every layer; raises ``SandboxUnavailableError``, also for missing layers.

    ``packages`` (name, folder) become importable inside, from ``bubblewrap.PACKAGES``.
    """
    if not seccomp.is_supported():
        raise SandboxUnavailableError(
            "no system call filter for this architecture", hint="x86_64 and aarch64 have one."
        )
    *others, last = bubblewrap.find_bubblewraps()
    for bwrap in others:
        with suppress(SandboxUnavailableError):  # the system's may be outdated, and the wheel's may work
            return _start_in_bwrap(bwrap, packages)
    return _start_in_bwrap(last, packages)


def _start_in_bwrap(bwrap: bubblewrap.Bubblewrap, packages: Packages) -> RunningSandbox:
    process, init_process = spawn_in_bwrap(bwrap, subprocess.PIPE, packages)
    values = {
        "start": "init_process",
        "case_filter": seccomp.build_case_filter(),
        "session_filter": seccomp.build_session_filter(),
    }
    return _start(process, init_process, values, lambda: verify_layers(bwrap, init_process.pid))


def spawn_in_bwrap(
    bwrap: bubblewrap.Bubblewrap, stdin: int, packages: Packages = (), worker_proc: str = ""
) -> tuple[subprocess.Popen[bytes], ProcessHandle]:
    """Start the interpreter in bubblewrap, for a sandbox or a warm pool; the handshake follows."""
    with _pipe() as (filter_out, filter_in), _pipe() as (info_out, info_in):
        filter_in.write(seccomp.build_filter())  # 1.3 kB: fits into the pipe
        filter_in.close()
        pass_fds = filter_out.fileno(), info_in.fileno()
        command = build_command_line(bwrap, pass_fds, next(_slots), packages)
        if worker_proc:
            command = bubblewrap.build_worker_command(command, worker_proc)
        # With the read end, too: otherwise a broken pipe would kill bubblewrap in the middle of its start.
        process = _launch(command, (*pass_fds, info_out.fileno()), {}, stdin)
        info_in.close()
        try:
            return process, _parse_init_process(process, info_out.read())
        except BaseException:
            end_process(process, None)
            raise


def build_command_line(
    bwrap: bubblewrap.Bubblewrap, descriptors: tuple[int, int], slot: int, packages: Packages = ()
) -> list[str]:
    """Build the command that starts a sandbox; ``descriptors``: of the filter and of bubblewrap's info."""
    uid = bubblewrap.unprivileged_uid(slot) if os.geteuid() == 0 else None
    python = bubblewrap.find_interpreter()
    filter_fd, info_fd = descriptors
    return bubblewrap.build_command(bwrap, python, packages, filter_fd=filter_fd, info_fd=info_fd, uid=uid)


def start_unsafe(scratch: Path) -> RunningSandbox:
    """Start an init process without isolation, for callers that request it explicitly; its layers say so.

    It creates the folder ``scratch`` and removes it when the judge has died.
    """
    process = _launch([sys.executable], (), {"PYTHONHASHSEED": "0"}, subprocess.PIPE)
    off = dict.fromkeys(
        ("bubblewrap", "namespaces", "seccomp", "uid", "filesystem"), "off: ICCM_SANDBOX=unsafe"
    )
    layers = {**off, "memory": "sampler", "rlimits": "ok"}
    values = {"start": "init_process", "scratch": str(scratch)}
    return _start(process, ProcessHandle(process.pid), values, lambda: layers)


def _start(
    process: subprocess.Popen[bytes],
    init_process: ProcessHandle,
    values: Mapping[str, object],
    get_layers: Callable[[], dict[str, str]],
) -> RunningSandbox:
    """Do the handshake and read the layers; end the process when either fails."""
    requests = _fileno(process.stdin)
    try:
        send_handshake(process, requests, values)
        layers = get_layers()
    except BaseException:
        end_process(process, init_process)
        raise
    lifelines.add(requests)
    return RunningSandbox(
        process,
        init_process,
        layers,
        requests,
        _fileno(process.stdout),
        lambda: end_process(process, init_process),
    )


def _launch(
    command: list[str], pass_fds: tuple[int, ...], environment: dict[str, str], stdin: int
) -> subprocess.Popen[bytes]:
    """Append the interpreter and its program to ``command``, and start it.

    The environment is minimal on purpose: bwrap's own would be readable inside, at ``/proc/1/environ``.
    """
    try:
        return subprocess.Popen(
            [*command, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env=environment,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailableError(f"{command[0]} cannot be started: {error}") from None


def _parse_init_process(process: subprocess.Popen[bytes], info: bytes) -> ProcessHandle:
    try:
        return ProcessHandle(int(json.loads(info)["child-pid"]))
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        raise SandboxUnavailableError(_start_error(process)) from None


def send_handshake(process: subprocess.Popen[bytes], requests: int, values: Mapping[str, object]) -> None:
    """Send the process its code and wait until it reports that it is ready."""
    try:
        write_frame(requests, marshal.dumps((_compile_modules(), dict(values))))
        wait_ready(_fileno(process.stdout))
    except (BrokenPipeError, SandboxUnavailableError):
        raise SandboxUnavailableError(_start_error(process)) from None


def wait_ready(replies: int) -> None:
    """Wait for the first line of an init process; ``SandboxUnavailableError`` when it is not ``ready``."""
    line = os.read(replies, 300) if wait_readable(replies, START_TIMEOUT_SECONDS) else b""
    if line != b"ready\n":
        raise SandboxUnavailableError(f"it is not ready: {line.decode('utf-8', 'replace')}")


def _start_error(process: subprocess.Popen[bytes]) -> str:
    """Return the last line that the sandbox printed when it failed to start."""
    if process.stdin:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_TIMEOUT_SECONDS)
    assert process.stderr
    os.set_blocking(process.stderr.fileno(), False)
    lines = (process.stderr.read() or b"").decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"it did not start (exit code {process.poll()})"


@cache
def _compile_modules() -> dict[str, CodeType]:
    """Compile the modules that run inside, by file name; they cannot import this package."""
    folder = Path(__file__).parent
    return {
        name: compile((folder / f"{name}.py").read_text("utf-8"), f"<{name}>", "exec", dont_inherit=True)
        for name in _INNER_MODULES
    }


# ---- layers --------------------------------------------------------------------------------------


def host_namespaces(pid: int | str) -> frozenset[str]:
    """Return what a sandbox forked by process ``pid`` must not share: namespaces and scratch devices."""
    return frozenset([*_namespaces("self").values(), *_namespaces(pid).values(), *_scratch_devices(pid)])


def _namespaces(pid: int | str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def _scratch_devices(pid: int | str) -> list[str]:
    return [f"device {os.stat(f'/proc/{pid}/root{folder}').st_dev}" for folder in ("/tmp", "/dev/shm")]


def verify_layers(
    bwrap: bubblewrap.Bubblewrap, pid: int, host_ids: frozenset[str] | None = None
) -> dict[str, str]:
    """Read from outside which layers the running init process has; raises ``MissingLayersError``."""
    try:
        layers = {
            "bubblewrap": bwrap.version,
            **_inspect(pid, host_ids or frozenset(_namespaces("self").values())),
        }
    except OSError as error:
        raise SandboxUnavailableError(f"its init process cannot be inspected: {error}") from None
    if any(state.startswith("missing") for state in layers.values()):
        raise MissingLayersError(layers)
    return layers


def _inspect(pid: int, host_ids: frozenset[str]) -> dict[str, str]:
    status = _read_status(pid)
    shared = [name for name, link in _namespaces(pid).items() if link in host_ids]
    if status["NSpid"][-1] != "1":
        shared.append("process numbers")
    # Two filters more than this process has, where the kernel counts them.
    count = int(status.get("Seccomp_filters", ["2"])[0])
    filtered = (status["Seccomp"], status["NoNewPrivs"]) == (["2"], ["1"]) and count >= 2 + _own_filters()
    countable = os.path.exists(f"/proc/{pid}/task/{pid}/children")
    problems = {
        "namespaces": shared and "shares " + ", ".join(shared),
        "seccomp": "" if filtered else "no filter is in force",
        "uid": "it is privileged" if _is_privileged(status) else "",
        "filesystem": _filesystem_problem(pid, host_ids),
        "memory": "" if countable else "the kernel does not list a process's children",
    }
    states = {"uid": f"unprivileged ({max(map(int, status['Uid']))})", "memory": "sampler"}
    layers = {layer: f"missing: {problem}" for layer, problem in problems.items() if problem}
    return {**dict.fromkeys(problems, "ok"), **states, **layers, "rlimits": "ok"}


@cache
def _own_filters() -> int:
    return int(_read_status("self").get("Seccomp_filters", ["0"])[0])


def _read_status(pid: int | str) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as rows:
        return {name: value.split() for name, _, value in (row.partition(":") for row in rows)}


def _is_privileged(status: Mapping[str, list[str]]) -> bool:
    capabilities = (int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"))
    return "0" in status["Uid"] or any(capabilities)


def _filesystem_problem(pid: int, host_ids: frozenset[str]) -> str:
    if HOST_FOLDERS.intersection(os.listdir(f"/proc/{pid}/root")):
        return "it sees the host's files"
    return "its scratch space is shared" if host_ids.intersection(_scratch_devices(pid)) else ""


# ---- ending, and pipes ---------------------------------------------------------------------------

# Descriptors that keep a sandbox or a warm pool alive. A fork must not keep them open after this process
# ends; remove a descriptor before it is closed.
lifelines: set[int] = set()


def _release_after_fork() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in lifelines:
        os.dup2(null, descriptor, False)  # not closed: the fork's own code still closes this descriptor
    os.close(null)
    lifelines.clear()


os.register_at_fork(after_in_child=_release_after_fork)


def end_process(process: subprocess.Popen[bytes], init_process: ProcessHandle | None) -> None:
    """Kill the init process, with which the kernel ends its whole namespace, and wait for its parents.

    Before there is one, close the pipe: what is still starting ends as soon as it reads.
    """
    if process.stdin and not process.stdin.closed:
        lifelines.discard(process.stdin.fileno())
        process.stdin.close()
    if init_process is not None:
        if process.poll() is None:
            init_process.kill()
        os.close(init_process.descriptor)
    try:
        process.wait(timeout=END_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


@contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a pipe as (reader, writer) and close both at the end."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb") as writer:
        yield reader, writer


def _fileno(stream: IO[bytes] | None) -> int:
    assert stream
    return stream.fileno()


def wait_readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def write_frame(descriptor: int, data: bytes) -> None:
    """Write the length of ``data`` in 4 bytes, then ``data``."""
    with os.fdopen(descriptor, "wb", closefd=False) as stream:
        stream.write(len(data).to_bytes(4, "big") + data)

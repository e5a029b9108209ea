"""The sandbox's first process: forks one child per case and reports how each ended (J2).

Standard library only; runs as pid 1 of its own pid namespace, where no process can signal, trace or outlive
it. It never runs a line of the implementation itself: each case is a fresh fork that imports it anew
(``runner.run``), and whatever that fork leaves behind is killed before the next case.

Spoken on two pipes, both the driver's alone (a child closes them before the implementation starts):
requests are length-prefixed marshal from outside, replies are one header line and three byte strings.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import marshal
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CHUNK = 1 << 16
NONCE = 16
HEAD = NONCE + 4
KEPT_OUTPUT = 2000
SIGINT, SIGKILL = 2, 9  # the signal module takes as long to import as all others here
GRACE = 0.05  # seconds between a complete answer and the process's own exit
MAX_LEFTOVERS = 2000
OUT_OF_THE_WAY = 240  # descriptors of the answer: honest code may close or count the first ones


def read_exactly(descriptor: int, size: int) -> bytes:
    """``size`` bytes; b"" when the other side has gone."""
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 1 << 20))
        if not piece:
            return b""
        data += piece
    return data


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def kill(how: Callable[[int, int], None], target: int) -> None:
    """SIGKILL to a process or group that may have ended by itself."""
    try:  # noqa: SIM105 (contextlib would double what this process imports)
        how(target, SIGKILL)
    except ProcessLookupError:
        pass


class Attempt:
    """One case under way: its process, its three pipes, and what has come out of them."""

    def __init__(
        self,
        request: dict[str, Any],
        source: str,
        made: dict[str, Any],
        control: tuple[int, int],
    ) -> None:
        self.request = request
        self.made, self.control = made, control[0]
        self.nonce = os.urandom(NONCE)
        self.answer, self.notices, self.output = bytearray(), bytearray(), bytearray()
        self.printed = 0
        self.status: int | None = None
        self.killed = ""
        self.others = self.leftovers = 0  # processes besides the first: collected, and alive at the end
        pipes = [os.pipe() for _ in range(3)]
        self.ends = dict(zip((end for end, _ in pipes), ("answer", "notices", "output"), strict=True))
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            become_child(request, source, made, self.nonce, pipes, control)
        for reading, writing in pipes:
            os.close(writing)
            os.set_blocking(reading, False)

    def watch(self) -> None:
        """Until the process has ended or has to be ended."""
        deadline = self.started + self.request["wall"]
        handle = os.pidfd_open(self.pid)
        poll = select.poll()
        for descriptor in (handle, *self.ends):
            poll.register(descriptor, select.POLLIN)
        poll.register(self.control, 0)  # only its end is reported
        try:
            while self.status is None and not self.killed:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.killed = "wall"
                    break
                ready = poll.poll(min(left, 0.1) * 1000)
                for descriptor, _ in ready:
                    if descriptor == self.control:
                        self.finish()
                        leave(self.made)  # the judge is gone
                    if descriptor in self.ends and not self.drain(descriptor):
                        poll.unregister(descriptor)
                self.reap(os.WNOHANG)
                if self.complete() and not self.killed:
                    deadline = min(deadline, time.monotonic() + GRACE)
        finally:
            os.close(handle)
        if self.killed == "wall" and self.complete():
            self.killed = ""

    def drain(self, descriptor: int) -> bool:
        """Take what a pipe holds; False once it is at its end."""
        name = self.ends[descriptor]
        while not self.killed:
            try:
                piece = os.read(descriptor, CHUNK)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.take(name, piece)
        return True

    def take(self, name: str, piece: bytes) -> None:
        if name == "output":
            self.printed += len(piece)
            self.output += piece[: KEPT_OUTPUT - len(self.output)]
            if self.printed > self.request["output"]:
                self.killed = "output"
            return
        buffer = self.answer if name == "answer" else self.notices
        buffer += piece
        if len(buffer) > self.request["answer"] + HEAD:
            self.killed = "output"

    def complete(self) -> bool:
        """Whether one whole answer is here."""
        if len(self.answer) < HEAD:
            return False
        return len(self.answer) >= HEAD + int.from_bytes(self.answer[NONCE:HEAD], "big")

    def reap(self, flags: int) -> bool:
        """Collect ended processes; False when there is none left to wait for."""
        while True:
            try:
                pid, status = os.waitpid(-1, flags)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status
            else:
                self.others += 1

    def finish(self) -> None:
        """Kill and collect everything the case started, then take what is left in the pipes."""
        if os.getpid() == 1:
            self.reap(os.WNOHANG)
            ended = self.others
            kill(os.kill, -1)  # everything in this pid namespace but ourselves
            self.reap(0)
            self.leftovers = self.others - ended
        else:
            kill(os.killpg, self.pid)
            kill(os.kill, self.pid)
            while self.status is None:
                self.status = os.waitpid(self.pid, 0)[1]
        for descriptor in self.ends:
            self.drain(descriptor)
            os.close(descriptor)

    def kind(self) -> tuple[str, int]:
        """How the case ended, and the exit code or signal number that goes with it."""
        if self.killed or self.leftovers > self.request["processes"]:
            return self.killed or "processes", 0
        if self.answer:
            body = HEAD + int.from_bytes(self.answer[NONCE:HEAD], "big")
            if self.answer[:NONCE] == self.nonce and len(self.answer) == body:
                return "answered", 0
            if self.answer[:NONCE] != self.nonce or len(self.answer) > body:
                return "forged", 0
        code = os.waitstatus_to_exitcode(self.status or 0)
        return ("signal", -code) if code < 0 else ("exited", code)


def become_child(
    request: dict[str, Any],
    source: str,
    made: dict[str, Any],
    nonce: bytes,
    pipes: list[tuple[int, int]],
    control: tuple[int, int],
) -> NoReturn:
    """In the fork: keep three pipe ends and nothing else, then run the case."""
    try:
        for descriptor in (*control, *(reading for reading, _ in pipes)):
            os.close(descriptor)
        answers, notices = (os.dup2(pipes[at][1], OUT_OF_THE_WAY + at, False) for at in (0, 1))
        output = pipes[2][1]
        os.dup2(output, 1)
        os.dup2(output, 2)
        for _, writing in pipes:
            os.close(writing)
        os.setsid()
        place = f"{request['scratch']}/case-{request['case']}"
        os.mkdir(place, 0o700)
        os.chdir(place)
        _signal.signal(SIGINT, _signal.default_int_handler)
        made["runner"].run(source, request["plan"], nonce, answers, notices, request["limits"], made)
    except BaseException as error:
        os.write(2, repr(error).encode()[:1000])
    os._exit(125)


def leave(made: dict[str, Any]) -> NoReturn:
    """End; without isolation, together with the scratch space, which is a folder of the host then."""
    if made.get("scratch"):
        __import__("shutil").rmtree(made["scratch"], ignore_errors=True)
    os._exit(0)


def tidy(places: tuple[str, ...]) -> None:
    """Remove what the case left in its scratch space, so that the next one starts clean.

    Bounded and best effort: a later case of the same implementation may find what an earlier one hid too
    well, which tells it nothing; other implementations have their own sandbox.
    """
    left = MAX_LEFTOVERS
    folders = list(places)
    for folder in folders:  # grows while it is walked: parents before their children
        try:
            entries = os.scandir(folder)
        except OSError:
            continue  # made unreadable
        with entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        os.unlink(entry.path)
                except OSError:
                    continue  # its folder is read-only, or the path has grown too long
    for folder in reversed(folders[len(places) :]):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # not empty, see above


def run_case(request: dict[str, Any], source: str, made: dict[str, Any], control: tuple[int, int]) -> bytes:
    """Run one case and put its outcome into the words the judge reads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    attempt = Attempt(request, source, made, control)
    attempt.watch()
    attempt.finish()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    tidy(request["tidy"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - attempt.started
    kind, code = attempt.kind()
    parts = (bytes(attempt.answer[HEAD:]), bytes(attempt.notices), bytes(attempt.output))
    sizes = " ".join(str(len(part)) for part in parts)
    header = f"{kind} {code} {int(cpu * 1e6)} {int(wall * 1e6)} {attempt.printed} {sizes}\n"
    return header.encode() + b"".join(parts)


def preload(names: tuple[str, ...]) -> None:
    """Import standard modules once, here, instead of in every case."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            continue  # the implementation will meet the same error and say so
    if "multiprocessing" in names or "concurrent" in names:
        # The default of newer versions talks over a unix socket, which there is none of here.
        __import__("multiprocessing").set_start_method("fork")


def settle() -> None:
    """Do once, before forks, what each would do; leave what is loaded out of garbage collection."""
    compile("0", "warm", "eval")  # the first call makes all types of syntax nodes, which takes a millisecond
    gc.collect()
    gc.freeze()


def serve(made: dict[str, Any], control: tuple[int, int] | None = None) -> NoReturn:
    """Answer requests until the pipe closes."""
    if control is None:
        control = os.dup(0), os.dup(1)
        settle()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    sys.argv[:] = ["implementation"]
    # Python's own handler would let a case interrupt this process; a first process is deaf to the default.
    _signal.signal(SIGINT, _signal.SIG_DFL)
    if made.get("scratch"):
        os.mkdir(made["scratch"], 0o700)
    try:
        write_all(control[1], b"ready\n")
        answer_requests(made, control)
    except (BrokenPipeError, EOFError):
        pass  # the judge died while it asked or was answered
    leave(made)


def answer_requests(made: dict[str, Any], control: tuple[int, int]) -> None:
    """One after the other, until the pipe they come through ends."""
    source, files = "", None
    while size := read_exactly(control[0], 4):
        request = marshal.loads(read_exactly(control[0], int.from_bytes(size, "big")))
        if request["do"] == "load":
            source, files = request["source"], request["files"]
            sys.path += request["paths"]
            preload(request["preload"])
            if files is not None:  # pytest takes long to import, which is nobody's time
                made["pytest_cases"].warm()
                settle()
                write_all(control[1], b"ready\n")
            continue
        if files is not None:
            request["plan"] = (*request["plan"], files)
        write_all(control[1], run_case(request, source, made, control))

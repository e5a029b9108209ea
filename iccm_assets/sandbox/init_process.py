"""The sandbox's first process: forks one child per case and reports how each ended.

Standard library only; runs as pid 1 of its own pid namespace, where no process can signal, trace or outlive
it. It never runs a line of the implementation itself: each case is a fresh fork that imports it
(``case_runner.run``), and everything that fork leaves behind is killed before the next case.

Protocol on two pipes that only this process holds (a child closes them before the implementation starts):
requests are length-prefixed marshal from outside, replies are one header line and three byte strings. (J2)
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

NONCE_BYTES = 16
HEAD = NONCE_BYTES + 4
MAX_OUTPUT_TEXT = 2000  # bytes of output that a reply carries
SIGINT, SIGKILL = 2, 9  # the signal module takes as long to import as all others here
EXIT_SECONDS = 0.05  # between a complete answer and the process's own exit
MAX_LEFTOVERS = 2000
RESERVED_FD = 240  # descriptors of the answer: honest code may close or count the first ones


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def kill(send: Callable[[int, int], None], target: int) -> None:
    """Send SIGKILL to a process or group that may have ended by itself."""
    try:  # noqa: SIM105 (contextlib would double what this process imports)
        send(target, SIGKILL)
    except ProcessLookupError:
        pass


class CaseProcess:
    """A running case: its process, its three pipes, and what has come out of them."""

    def __init__(
        self, request: dict[str, Any], source: str, context: dict[str, Any], control: tuple[int, int]
    ) -> None:
        self.request, self.context, self.control = request, context, control[0]
        self.nonce = os.urandom(NONCE_BYTES)
        self.received = {"answer": bytearray(), "violations": bytearray(), "output": bytearray()}
        self.answer = self.received["answer"]
        self.printed = 0
        self.status: int | None = None
        self.killed = ""
        self.others = self.leftovers = 0  # processes besides the first: collected, and alive at the end
        pipes = [os.pipe() for _ in self.received]
        self.ends = dict(zip((end for end, _ in pipes), self.received, strict=True))
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            run_in_child(request, source, context, self.nonce, pipes, control)
        for reading, writing in pipes:
            os.close(writing)
            os.set_blocking(reading, False)

    def watch(self) -> None:
        """Wait until the process has ended or has to be ended."""
        deadline = self.started + self.request["wall"]
        handle = os.pidfd_open(self.pid)
        poll = select.poll()
        for descriptor in (handle, *self.ends):
            poll.register(descriptor, select.POLLIN)
        poll.register(self.control, 0)  # only its end is reported
        try:
            while self.status is None and not self.killed:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self.killed = "" if self.complete() else "wall"
                    break
                self.receive(poll, min(remaining, 0.1))
                self.reap(os.WNOHANG)
                if self.complete() and not self.killed:
                    deadline = min(deadline, time.monotonic() + EXIT_SECONDS)
        finally:
            os.close(handle)

    def receive(self, poll: select.poll, seconds: float) -> None:
        """Wait for the pipes and read them; end everything when the judge has ended."""
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self.control:
                self.finish()
                exit_process(self.context)
            if descriptor in self.ends and not self.drain(descriptor):
                poll.unregister(descriptor)

    def drain(self, descriptor: int) -> bool:
        """Read what a pipe holds; False once it is at its end."""
        while not self.killed:
            try:
                piece = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.store(self.ends[descriptor], piece)
        return True

    def store(self, name: str, piece: bytes) -> None:
        buffer = self.received[name]
        if name == "output":
            self.printed += len(piece)
            buffer += piece[: MAX_OUTPUT_TEXT - len(buffer)]
            size, limit = self.printed, self.request["output"]
        else:
            buffer += piece
            size, limit = len(buffer), self.request["answer"] + HEAD
        if size > limit:
            self.killed = "output"

    def expected_size(self) -> int:
        """The size of the whole answer, as its head says."""
        return HEAD + int.from_bytes(self.answer[NONCE_BYTES:HEAD], "big")

    def complete(self) -> bool:
        """Whether one whole answer has arrived."""
        return len(self.answer) >= HEAD and len(self.answer) >= self.expected_size()

    def reap(self, flags: int) -> None:
        """Collect ended processes, as far as there are any to wait for."""
        while True:
            try:
                pid, status = os.waitpid(-1, flags)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = status
            else:
                self.others += 1

    def finish(self) -> None:
        """Kill and collect everything the case started, then read the rest of the pipes."""
        if os.getpid() == 1:
            self.reap(os.WNOHANG)
            ended = self.others
            kill(os.kill, -1)  # everything in this pid namespace but this process
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

    def outcome(self) -> tuple[str, int]:
        """How the case ended, and the exit code or signal number that goes with it."""
        if self.killed or self.leftovers > self.request["processes"]:
            return self.killed or "processes", 0
        if self.answer:
            genuine, missing = (
                self.answer[:NONCE_BYTES] == self.nonce,
                self.expected_size() - len(self.answer),
            )
            if not genuine or missing < 0:
                return "forged", 0
            if missing == 0:
                return "answered", 0
        code = os.waitstatus_to_exitcode(self.status or 0)
        return ("signal", -code) if code < 0 else ("exited", code)


def run_in_child(
    request: dict[str, Any],
    source: str,
    context: dict[str, Any],
    nonce: bytes,
    pipes: list[tuple[int, int]],
    control: tuple[int, int],
) -> NoReturn:
    """In the fork: keep three pipe ends and nothing else, then run the case."""
    try:
        for descriptor in (*control, *(reading for reading, _ in pipes)):
            os.close(descriptor)
        answers, violations = (os.dup2(pipes[n][1], RESERVED_FD + n, False) for n in (0, 1))
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
        context["case_runner"].run(
            source, request["plan"], nonce, answers, violations, request["limits"], context
        )
    except BaseException as error:
        os.write(2, repr(error).encode()[:1000])
    os._exit(125)


def exit_process(context: dict[str, Any]) -> NoReturn:
    """End; without isolation, together with the scratch space, which is a folder of the host then."""
    if context.get("scratch"):
        __import__("shutil").rmtree(context["scratch"], ignore_errors=True)
    os._exit(0)


def clean_scratch(places: tuple[str, ...]) -> None:
    """Remove what the case left in its scratch space, so that the next one starts clean.

    Bounded and best effort: a later case of the same implementation may find what an earlier one hid too
    well, which gives it nothing; other implementations have their own sandbox.
    """
    remaining = MAX_LEFTOVERS
    folders = list(places)
    for folder in folders:  # grows while it is walked: parents before their children
        try:
            entries = os.scandir(folder)
        except OSError:
            continue  # made unreadable
        with entries:
            for entry in entries:
                remaining -= 1
                if remaining < 0:
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


def run_case(
    request: dict[str, Any], source: str, context: dict[str, Any], control: tuple[int, int]
) -> bytes:
    """Run one case and encode its outcome as a reply."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    case = CaseProcess(request, source, context, control)
    case.watch()
    case.finish()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    clean_scratch(request["tidy"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - case.started
    kind, code = case.outcome()
    del case.answer[:HEAD]
    sizes = " ".join(str(len(part)) for part in case.received.values())
    header = f"{kind} {code} {int(cpu * 1e6)} {int(wall * 1e6)} {case.printed} {sizes}\n"
    return header.encode() + b"".join(case.received.values())


def preload(names: tuple[str, ...]) -> None:
    """Import standard modules once, here, instead of in every case."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            continue  # the implementation will meet the same error and report it
    if "multiprocessing" in names or "concurrent" in names:
        # The default of newer versions talks over a unix socket, which there is none of here.
        __import__("multiprocessing").set_start_method("fork")


def warm_up() -> None:
    """Do once, before forks, what each would do; leave what is loaded out of garbage collection."""
    compile("0", "warm", "eval")  # the first call makes all types of syntax nodes, which takes a millisecond
    gc.collect()
    gc.freeze()


def serve(context: dict[str, Any], control: tuple[int, int] | None = None) -> NoReturn:
    """Answer requests until the pipe closes."""
    if control is None:
        control = os.dup(0), os.dup(1)
        warm_up()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    sys.argv[:] = ["implementation"]
    # Python's own handler would let a case interrupt this process; a first process is deaf to the default.
    _signal.signal(SIGINT, _signal.SIG_DFL)
    if context.get("scratch"):
        os.mkdir(context["scratch"], 0o700)
    try:
        write_all(control[1], b"ready\n")
        answer_requests(context, control)
    except (BrokenPipeError, EOFError):
        pass  # the judge died while it sent a request or received a reply
    exit_process(context)


def answer_requests(context: dict[str, Any], control: tuple[int, int]) -> None:
    """Answer one request after the other, until the pipe they come through ends."""
    source, files = "", None
    with os.fdopen(control[0], "rb", closefd=False) as requests:
        while size := requests.read(4):
            request = marshal.loads(requests.read(int.from_bytes(size, "big")))
            if request["do"] == "load":
                source, files = request["source"], request["files"]
                sys.path += request["paths"]
                preload(request["preload"])
                if files is not None:  # pytest takes long to import; no case's time pays for it
                    context["pytest_runner"].preload()
                    warm_up()
                    write_all(control[1], b"ready\n")
                continue
            if files is not None:
                request["plan"] = (*request["plan"], files)
            write_all(control[1], run_case(request, source, context, control))

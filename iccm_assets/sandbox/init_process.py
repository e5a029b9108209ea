"""The init process of a sandbox: forks one child per case and reports how each ended.

Standard library only; runs as pid 1 of its own pid namespace, where no process can signal, trace or outlive
it. It never runs a line of the implementation itself: each case is a fresh fork that imports it
(``case_runner.run``), and everything that fork leaves behind is killed before the next case.

Protocol on two pipes that only this process holds (a child closes them before the implementation starts):
requests are length-prefixed marshal from outside, replies are one header line and three byte strings. One
request names the cases of a suite. They run back to back as long as each answers at once; after any other
case this process waits to be told what the next ones may still use. (J2)
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import marshal
import os
import select
import sys
import time

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

NONCE_BYTES = 16
HEADER_BYTES = NONCE_BYTES + 4
MAX_OUTPUT_TEXT = 2000  # bytes of output that a reply carries
SIGINT, SIGKILL, SIGCHLD = 2, 9, 17  # the signal module takes as long to import as all others here
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_THP_DISABLE = 22, 2, 41
SHARED_FOLDER = "/tmp"
EXIT_SECONDS = 0.05  # between a complete answer and the process's own exit
MAX_LEFTOVERS = 2000
RESERVED_FD = 240  # of the answer pipe: honest code may close or count the lowest descriptors
QUICK_SECONDS = 0.02  # less than until the judge's first sample: a case that it sampled is not quick
QUIET_MS = 3  # in which only the end of a case wakes this process; its pipes hold what it writes until then
MAX_CODE_BYTES = 2 << 20  # more than a case sends
CODE_SIZE_BYTES = 8  # before the code, which is incomplete if its process ended


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


set_handler = _signal.signal  # as it is before ``lock_down``


def kill(send: Callable[[int, int], None], target: int) -> None:
    """Send SIGKILL to a process or group that may have ended by itself."""
    try:  # noqa: SIM105 (contextlib would double what this process imports)
        send(target, SIGKILL)
    except ProcessLookupError:
        pass


class CaseProcess:
    """A running case: its process, its pipes, and what has come out of them."""

    def __init__(self, request: dict[str, Any], case: tuple[int, bytes], suite: LoadedSuite) -> None:
        self.request, self.suite = request, suite
        self.nonce = os.urandom(NONCE_BYTES)
        self.received = {"answer": bytearray(), "violations": bytearray(), "output": bytearray()}
        if suite.code is None:
            self.received["code"] = bytearray()
        self.answer = self.received["answer"]
        self.printed = 0
        self.cpu = 0.0  # seconds
        self.status: int | None = None
        self.killed = ""
        self.others = self.leftovers = 0  # processes besides the first: collected, and alive at the end
        pipes = [os.pipe() for _ in self.received]
        self.pipes = dict(zip((read_end for read_end, _ in pipes), self.received, strict=True))
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            run_in_child(request, case, suite, self.nonce, [write_end for _, write_end in pipes])
        for read_end, write_end in pipes:
            os.close(write_end)
            os.set_blocking(read_end, False)

    def watch(self) -> None:
        """Wait until the process has ended or has to be killed."""
        handle, poll = os.pidfd_open(self.pid), self.suite.poll
        poll.register(handle, select.POLLIN)
        try:
            # What it writes meanwhile is read at its end: waking up for each line costs more than a case.
            if [(handle, select.POLLIN)] == poll.poll(QUIET_MS):
                self.reap(os.WNOHANG)
            if self.status is None:
                self._watch_closely(poll)
        finally:
            poll.unregister(handle)
            os.close(handle)

    def _watch_closely(self, poll: select.poll) -> None:
        """Read the pipes while the process runs, and end it when it has used up its time."""
        deadline = self.started + self.request["wall"]
        open_pipes = list(self.pipes)
        for descriptor in open_pipes:
            poll.register(descriptor, select.POLLIN)
        while self.status is None and not self.killed:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self.killed = "" if self.complete() else "wall"
                break
            for descriptor in self.receive(poll, min(remaining, 0.1)):
                poll.unregister(descriptor)
                open_pipes.remove(descriptor)
            self.reap(os.WNOHANG)
            if self.complete() and not self.killed:
                deadline = min(deadline, time.monotonic() + EXIT_SECONDS)
        for descriptor in open_pipes:
            poll.unregister(descriptor)

    def receive(self, poll: select.poll, seconds: float) -> list[int]:
        """Wait for the pipes and read them, and return those at their end; exit when the judge has ended."""
        ended = []
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self.suite.control[0]:
                self.finish()
                exit_process(self.suite.context)
            if descriptor in self.pipes and not self.drain(descriptor):
                ended.append(descriptor)
        return ended

    def drain(self, descriptor: int) -> bool:
        """Read what a pipe holds; False once it is at its end."""
        while not self.killed:
            try:
                piece = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.store(self.pipes[descriptor], piece)
        return True

    def store(self, name: str, piece: bytes) -> None:
        buffer = self.received[name]
        if name == "output":
            self.printed += len(piece)
            buffer += piece[: MAX_OUTPUT_TEXT - len(buffer)]
            size, limit = self.printed, self.request["output"]
        else:
            buffer += piece
            size = len(buffer)
            limit = MAX_CODE_BYTES if name == "code" else self.request["answer"] + HEADER_BYTES
        if size > limit:
            self.killed = "output"

    def expected_size(self) -> int:
        """The size of the whole answer, as its header says."""
        return HEADER_BYTES + int.from_bytes(self.answer[NONCE_BYTES:HEADER_BYTES], "big")

    def complete(self) -> bool:
        """Whether one whole answer has arrived."""
        return len(self.answer) >= HEADER_BYTES and len(self.answer) >= self.expected_size()

    def reap(self, flags: int) -> bool:
        """Collect ended processes, if there are any; False when none are left, ended or not."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, flags)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.cpu += usage.ru_utime + usage.ru_stime
            if pid == self.pid:
                self.status = status
            else:
                self.others += 1

    def finish(self) -> None:
        """Kill and collect everything the case started, then read the rest of the pipes."""
        if os.getpid() != 1:
            kill(os.killpg, self.pid)
            kill(os.kill, self.pid)
            while self.status is None:
                self.reap(0)
        # An orphan becomes a child of this process: without children it is alone in its pid namespace.
        elif self.reap(os.WNOHANG):
            ended = self.others
            kill(os.kill, -1)  # everything in this pid namespace but this process
            self.reap(0)
            self.leftovers = self.others - ended
        for descriptor in self.pipes:
            self.drain(descriptor)
            os.close(descriptor)

    def outcome(self) -> tuple[str, int]:
        """Return how the case ended, and the exit code or signal number."""
        if self.killed or self.leftovers > self.request["processes"]:
            return self.killed or "processes", 0
        if self.answer:
            missing = self.expected_size() - len(self.answer)
            if self.answer[:NONCE_BYTES] != self.nonce or missing < 0:
                return "forged", 0
            if missing == 0:
                return "answered", 0
        code = os.waitstatus_to_exitcode(self.status or 0)
        return ("signal", -code) if code < 0 else ("exited", code)


class LoadedSuite:
    """An implementation and what is the same for all its cases."""

    def __init__(self, request: dict[str, Any], context: dict[str, Any], control: tuple[int, int]) -> None:
        self.source, self.files = request["source"], request["files"]
        self.context, self.control = context, control
        # Compiled by its first case, which ran nothing of it before; opaque here. None: not known yet.
        self.code: bytes | None = None if self.files is None else b""
        self.poll = select.poll()
        self.poll.register(control[0], 0)  # only its end is reported


def run_in_child(
    request: dict[str, Any],
    case: tuple[int, bytes],
    suite: LoadedSuite,
    nonce: bytes,
    write_ends: list[int],
) -> NoReturn:
    """In the fork: keep the pipes' write ends and nothing else, then run the case."""
    try:
        answer, violations, output, *code = write_ends
        os.dup2(answer, RESERVED_FD, False)
        os.dup2(violations, RESERVED_FD + 1, False)
        for descriptor in code:
            os.dup2(descriptor, RESERVED_FD + 2, False)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, RESERVED_FD)
        os.setsid()
        context = suite.context
        if not context.get("scratch"):
            context["session_prctl"].install_filter()
        folder = f"{request['scratch']}/case-{case[0]}"
        os.mkdir(folder, 0o700)
        os.chdir(folder)
        set_handler(SIGINT, _signal.default_int_handler)
        context["case_runner"].run(
            suite, case[1], nonce, tuple(range(RESERVED_FD, RESERVED_FD + 2 + len(code))), request["limits"]
        )
    except BaseException as error:
        os.write(2, repr(error).encode()[:1000])
    os._exit(125)


def exit_process(context: dict[str, Any]) -> NoReturn:
    """Exit; without isolation, remove the scratch folder on the host first."""
    if context.get("scratch"):
        __import__("shutil").rmtree(context["scratch"], ignore_errors=True)
    os._exit(0)


def clean_scratch(roots: tuple[str, ...]) -> None:
    """Remove what the case left in its scratch space, so that the next one starts clean.

    Bounded and best effort: a later case of the same implementation may find what an earlier one hid, which
    does not help it; other implementations have their own sandbox.
    """
    remaining = MAX_LEFTOVERS
    folders = list(roots)
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
    for folder in reversed(folders[len(roots) :]):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # not empty, see above


def run_cases(request: dict[str, Any], suite: LoadedSuite, cases: list[tuple[int, bytes]]) -> None:
    """Run the cases and reply to each, until one does anything but answer at once."""
    wall, cpu, output = request["remaining"]
    goes_on = True
    while cases and goes_on:
        case = CaseProcess(case_request(request, wall, cpu, output), cases.pop(0), suite)
        case.watch()
        case.finish()
        clean_scratch(request["clean"])
        seconds = time.monotonic() - case.started
        wall, cpu, output = wall - max(case.cpu, seconds), cpu - case.cpu, output - case.printed
        kind, code = case.outcome()
        goes_on = bool(cases) and kind == "answered" and seconds < QUICK_SECONDS
        goes_on = goes_on and min(wall, cpu) > QUICK_SECONDS and output > 0
        if suite.code is None and kind == "answered":
            suite.code = complete_code(case.received["code"])
        write_all(suite.control[1], encode_reply(case, kind, code, seconds, goes_on))


def case_request(request: dict[str, Any], wall: float, cpu: float, output: int) -> dict[str, Any]:
    """Return the request with the limits of one case, by what all the rest may use."""
    process = request["process_limits"] | {"RLIMIT_CPU": max(1, int(cpu) + 1)}
    limits = {"answer": request["answer"], "process": process}
    return request | {"wall": wall * request["wall_factor"], "output": output, "limits": limits}


def complete_code(received: bytearray) -> bytes:
    """Return the code that a case has sent, or nothing if it is not whole."""
    size = int.from_bytes(received[:CODE_SIZE_BYTES], "big")
    code = bytes(received[CODE_SIZE_BYTES:])
    return code if len(code) == size else b""


def encode_reply(case: CaseProcess, kind: str, code: int, seconds: float, goes_on: bool) -> bytes:
    """Encode how a case ended, and whether the next one runs already."""
    parts = [case.received[name] for name in ("answer", "violations", "output")]
    del parts[0][:HEADER_BYTES]
    sizes = " ".join([str(len(part)) for part in parts])
    numbers = f"{code} {int(case.cpu * 1e6)} {int(seconds * 1e6)} {case.printed} {sizes} {int(goes_on)}"
    return f"{kind} {numbers}\n".encode() + b"".join(parts)


def preload(names: tuple[str, ...]) -> None:
    """Import standard modules once, here, instead of in every case."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            continue  # the implementation gets the same error and reports it
    if "multiprocessing" in names or "concurrent" in names:
        # The default of newer Python versions needs a unix socket, which the sandbox forbids.
        __import__("multiprocessing").set_start_method("fork")


def preload_packages(names: list[str]) -> None:
    """Import packages of the environment once; threads of their own would not exist in the cases."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    for name in names:
        try:
            __import__(name)
        except Exception:  # the implementation gets the same error and reports it
            continue


def prepare_filters(context: dict[str, Any]) -> None:
    """Prepare the calls that install the filters of all cases and of each session."""
    for name in ("case", "session"):
        context[f"{name}_prctl"] = PreparedPrctl(context[f"{name}_filter"])


def lock_down(prctl: PreparedPrctl) -> None:
    """Give up, for this process and all cases, what hides memory and CPU time from the judge.

    The kernel adds an ended child's CPU time to its parent only if that collects it. So the kernel's handler
    for ended children is installed first and kept by the filter; a case changes only what Python calls then.
    """
    _signal.signal(SIGCHLD, _leave_children)
    _signal.siginterrupt(SIGCHLD, False)
    _signal.signal, _signal.getsignal = _set_handler, _get_handler
    if prctl.call(PR_SET_THP_DISABLE, 1) != 0:
        raise OSError("huge pages cannot be disabled")
    prctl.install_filter()


class PreparedPrctl:
    """The C library's ``prctl``, looked up once before forks: the calls of each case take microseconds."""

    def __init__(self, filter_code: bytes = b"") -> None:
        # The ctypes module takes ten times as long to import.
        self.native = __import__("_ctypes")
        self.prctl = self.native.dlsym(self.native.dlopen(None, 0), "prctl")
        fields = {"_fields_": (("length", _simple(self.native, "H")), ("code", _simple(self.native, "z")))}
        self.filter_type = type("Filter", (self.native.Structure,), fields)
        self.program = self.filter_type(len(filter_code) // 8, filter_code)
        self.arguments = PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self.native.byref(self.program), 0, 0

    def call(self, option: int, argument: int) -> int:
        """Call it, and return 0 unless it failed."""
        return self.native.call_cdeclfunction(self.prctl, (option, argument, 0, 0, 0))  # type: ignore[no-any-return]

    def install_filter(self) -> None:
        """Let the kernel filter system calls of this process and its children; raises ``OSError``."""
        if self.native.call_cdeclfunction(self.prctl, self.arguments) != 0:
            raise OSError("the system call filter cannot be installed")


def _simple(native: Any, kind: str) -> type:
    return type(kind, (native._SimpleCData,), {"_type_": kind})


def _leave_children(number: int, frame: Any) -> None:
    """Do what the kernel does by default when a child ends: nothing."""


def _collect_children(number: int, frame: Any, waitpid: Callable[..., Any] = os.waitpid) -> None:
    """Do what the kernel does when ended children are ignored, but keep their CPU time."""
    try:
        while waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _set_handler(number: int, handler: Any, set_handler: Callable[[int, Any], Any] = _signal.signal) -> Any:
    if number == SIGCHLD and not callable(handler):
        handler = _collect_children if handler == _signal.SIG_IGN else _leave_children
    return _as_kernel_constant(set_handler(number, handler))


def _get_handler(number: int, get_handler: Callable[[int], Any] = _signal.getsignal) -> Any:
    return _as_kernel_constant(get_handler(number))


def _as_kernel_constant(handler: Any) -> Any:
    if handler is _collect_children:
        return _signal.SIG_IGN
    return _signal.SIG_DFL if handler is _leave_children else handler


def limit_shared_memory() -> None:
    """Make anonymous shared memory a file in the scratch space, where its size is limited and counted."""
    import mmap

    class SharedMemory(mmap.mmap):
        def __new__(
            cls, fileno: int, length: int, flags: int = mmap.MAP_SHARED, *args: Any, **kwargs: Any
        ) -> SharedMemory:
            if fileno != -1 or not flags & mmap.MAP_SHARED:
                return super().__new__(cls, fileno, length, flags, *args, **kwargs)
            descriptor = os.open(SHARED_FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, length)
                return super().__new__(cls, descriptor, length, flags & ~mmap.MAP_ANONYMOUS, *args, **kwargs)
            except OSError as error:
                raise MemoryError(f"{length} bytes of shared memory: {error.strerror}") from None
            finally:
                os.close(descriptor)

    SharedMemory.__name__ = SharedMemory.__qualname__ = "mmap"
    SharedMemory.__module__ = "mmap"
    mmap.mmap = SharedMemory  # type: ignore[misc]


def warm_up() -> None:
    """Do once, before forks, what each fork would do; exclude loaded objects from garbage collection."""
    compile("0", "warm", "eval")  # the first call makes all types of syntax nodes, which takes a millisecond
    gc.collect()
    gc.freeze()


def serve(context: dict[str, Any], control: tuple[int, int] | None = None) -> NoReturn:
    """Answer requests until the pipe closes."""
    if control is None:
        control = os.dup(0), os.dup(1)
        if not context.get("scratch"):
            prepare_filters(context)
            limit_shared_memory()
        warm_up()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    sys.argv[:] = ["implementation"]
    # Python's own handler would let a case interrupt this process; pid 1 ignores a signal with the default.
    _signal.signal(SIGINT, _signal.SIG_DFL)
    if context.get("scratch"):
        os.mkdir(context["scratch"], 0o700)
    else:
        lock_down(context["case_prctl"])
    try:
        write_all(control[1], b"ready\n")
        handle_requests(context, control)
    except (BrokenPipeError, EOFError):
        pass  # the judge died while it sent a request or received a reply
    exit_process(context)


def handle_requests(context: dict[str, Any], control: tuple[int, int]) -> None:
    """Handle one request after the other until their pipe closes."""
    suite, cases = None, []
    with os.fdopen(control[0], "rb", closefd=False) as requests:
        while size := requests.read(4):
            request = marshal.loads(requests.read(int.from_bytes(size, "big")))
            if request["command"] == "load":
                suite = load(request, context, control)
            elif suite is not None:
                cases += request["cases"]
                run_cases(request, suite, cases)


def load(request: dict[str, Any], context: dict[str, Any], control: tuple[int, int]) -> LoadedSuite:
    """Prepare for the cases of an implementation what is not their own work."""
    sys.path += request["paths"]
    preload(request["preload"])
    # Importing these is slow and must not count as a case's time.
    if request["packages"]:
        preload_packages(request["packages"])
    if request["files"] is not None:
        context["pytest_runner"].preload()
    if request["files"] is not None or request["packages"]:
        warm_up()
        write_all(control[1], b"ready\n")
    context["case_runner"].limit_process(request["limits"])  # each case inherits them
    return LoadedSuite(request, context, control)

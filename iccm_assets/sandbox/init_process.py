"""The init process of a sandbox: forks one child per case and reports how each ended.

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
HEADER_BYTES = NONCE_BYTES + 4
MAX_OUTPUT_TEXT = 2000  # bytes of output that a reply carries
SIGINT, SIGKILL, SIGCHLD = 2, 9, 17  # the signal module takes as long to import as all others here
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_THP_DISABLE = 22, 2, 41
SHARED_FOLDER = "/tmp"
EXIT_SECONDS = 0.05  # between a complete answer and the process's own exit
MAX_LEFTOVERS = 2000
RESERVED_FD = 240  # of the answer pipe: honest code may close or count the lowest descriptors


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
        self.pipes = dict(zip((read_end for read_end, _ in pipes), self.received, strict=True))
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            run_in_child(request, source, context, self.nonce, pipes, control)
        for read_end, write_end in pipes:
            os.close(write_end)
            os.set_blocking(read_end, False)

    def watch(self) -> None:
        """Wait until the process has ended or has to be killed."""
        deadline = self.started + self.request["wall"]
        handle = os.pidfd_open(self.pid)
        poll = select.poll()
        for descriptor in (handle, *self.pipes):
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
        """Wait for the pipes and read them; exit with everything when the judge has ended."""
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self.control:
                self.finish()
                exit_process(self.context)
            if descriptor in self.pipes and not self.drain(descriptor):
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
            size, limit = len(buffer), self.request["answer"] + HEADER_BYTES
        if size > limit:
            self.killed = "output"

    def expected_size(self) -> int:
        """The size of the whole answer, as its header says."""
        return HEADER_BYTES + int.from_bytes(self.answer[NONCE_BYTES:HEADER_BYTES], "big")

    def complete(self) -> bool:
        """Whether one whole answer has arrived."""
        return len(self.answer) >= HEADER_BYTES and len(self.answer) >= self.expected_size()

    def reap(self, flags: int) -> None:
        """Collect ended processes, if there are any."""
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
        for descriptor in (*control, *(read_end for read_end, _ in pipes)):
            os.close(descriptor)
        answer_fd, violations_fd = (os.dup2(pipes[n][1], RESERVED_FD + n, False) for n in (0, 1))
        output = pipes[2][1]
        os.dup2(output, 1)
        os.dup2(output, 2)
        for _, write_end in pipes:
            os.close(write_end)
        os.setsid()
        if not context.get("scratch"):
            context["session_prctl"].install_filter()
        folder = f"{request['scratch']}/case-{request['case']}"
        os.mkdir(folder, 0o700)
        os.chdir(folder)
        _signal.signal(SIGINT, _signal.default_int_handler)
        context["case_runner"].run(
            source, request["plan"], nonce, answer_fd, violations_fd, request["limits"], context
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


def run_case(
    request: dict[str, Any], source: str, context: dict[str, Any], control: tuple[int, int]
) -> bytes:
    """Run one case and encode its outcome as a reply."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    case = CaseProcess(request, source, context, control)
    case.watch()
    case.finish()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    clean_scratch(request["clean"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - case.started
    kind, code = case.outcome()
    del case.answer[:HEADER_BYTES]
    sizes = " ".join(str(len(part)) for part in case.received.values())
    header = f"{kind} {code} {int(cpu * 1e6)} {int(wall * 1e6)} {case.printed} {sizes}\n"
    return header.encode() + b"".join(case.received.values())


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


def lock_down(case_filter: bytes) -> None:
    """Give up, for this process and all cases, what hides memory and CPU time from the judge.

    The kernel adds an ended child's CPU time to its parent only if that collects it. So the kernel's handler
    for ended children is installed first and kept by the filter; a case changes only what Python calls then.
    """
    _signal.signal(SIGCHLD, _leave_children)
    _signal.siginterrupt(SIGCHLD, False)
    _signal.signal, _signal.getsignal = _set_handler, _get_handler
    prctl = PreparedPrctl(case_filter)
    prctl.call(PR_SET_THP_DISABLE, 1, 0)
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

    def call(self, option: int, *arguments: Any) -> None:
        """Call it; raises ``OSError``."""
        if self.native.call_cdeclfunction(self.prctl, (option, *arguments, 0, 0)) != 0:
            raise OSError(f"prctl {option} failed")

    def install_filter(self) -> None:
        """Let the kernel filter the system calls of this process and of what it starts from now on."""
        self.call(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self.native.byref(self.program))


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
        lock_down(context["case_filter"])
        context["session_prctl"] = PreparedPrctl(context["session_filter"])
    try:
        write_all(control[1], b"ready\n")
        handle_requests(context, control)
    except (BrokenPipeError, EOFError):
        pass  # the judge died while it sent a request or received a reply
    exit_process(context)


def handle_requests(context: dict[str, Any], control: tuple[int, int]) -> None:
    """Handle one request after the other until their pipe closes."""
    source, files = "", None
    with os.fdopen(control[0], "rb", closefd=False) as requests:
        while size := requests.read(4):
            request = marshal.loads(requests.read(int.from_bytes(size, "big")))
            if request["command"] == "load":
                source, files, limits = request["source"], request["files"], request["limits"]
                sys.path += request["paths"]
                preload(request["preload"])
                # Importing these is slow and must not count as a case's time.
                if request["packages"]:
                    preload_packages(request["packages"])
                if files is not None:
                    context["pytest_runner"].preload()
                if files is not None or request["packages"]:
                    warm_up()
                    write_all(control[1], b"ready\n")
                context["case_runner"].limit_process(limits)  # each case inherits them
                continue
            if files is not None:
                request["plan"] = (*request["plan"], files)
            write_all(control[1], run_case(request, source, context, control))

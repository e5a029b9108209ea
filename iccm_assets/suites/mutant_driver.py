"""Run variants of a source in forked processes and compare their answers with those of the source itself.

Standard library only: sent into the sandbox as if it were the implementation, with the variants as text. So
one sandbox serves all variants of a source. This process never runs a line of a variant; each fork does,
without any descriptor but the pipe of its own answers, and is killed at a limit of CPU time. The answers are
those of the judge's own runner, which is sent along. (D5)
"""

from __future__ import annotations

import _operator
import _signal  # type: ignore[import-not-found]
import builtins
import gc
import marshal
import os
import resource
import select
import sys
import time
from types import ModuleType

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

MODULE, FILENAME = "implementation", "implementation.py"
IMPORTED = '["v",["n"]]'  # the answer to the plan that only imports
ANSWER_FD = 3
MAX_ANSWER = 1 << 18  # characters
MAX_DIFFERENCES = 8  # of a variant; its answers may be within the tolerance of what is expected
MAX_REFUSING = 24  # inputs that tell a mutant from the source, of which three at most are needed
MAX_REPORT = 400_000  # characters of all differences
EMPTY_FOLDER_BYTES = 40  # in scratch space; on a disk, where a size says nothing, a folder is larger
MAX_WAIT = 8  # milliseconds, between two looks at what was answered
MAX_PIECES = 16  # of 64 KiB, that one look reads
VARIANTS_PER_PROCESS = 24  # a process costs more than the inputs of a small source
MAX_RESTARTS = 8  # of the source, after inputs that it does not answer
SOURCE_SECONDS, MIN_SECONDS = 5.0, 0.1  # CPU time of the source, and of a variant of a quick source
SOURCE_IDLE_SECONDS, MIN_IDLE_SECONDS = 10.0, 2.0  # in which they use none
POOL_SECONDS, POOL_IDLE_SECONDS = 0.1, 5.0  # until an input counts as one that the source never answers
SLOWER = 5.0  # how many times as long as the source a variant may take
MIN_IMPORT_SECONDS = 0.25  # CPU time of the source, before the plans that are limited each
MIN_PLAN_SECONDS = 0.01  # CPU time of one plan of a variant, most of which answer in a hundredth of it
IDLE_FACTOR = 2.0  # of the CPU time of all variants, in which they may use none
WALL_FACTOR = 15.0  # the same for the time that passes: other processes may keep the machine busy
LOOK_SECONDS = 0.02  # of idle time at most between two looks: this process waits for the processor, too
TURN_SECONDS = 1.0  # in which any process gets a processor
PROGRESS_SECONDS = 1e-5  # CPU time that says that a process is not idle
CPU_CLOCK = 2  # with the inverted process id before it, the clock of what a process has used
DATA_BYTES = 448 << 20
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": _operator.lt, "<=": _operator.le, ">": _operator.gt, ">=": _operator.ge,
    "==": _operator.eq, "!=": _operator.ne,
}  # fmt: skip


class Measurement:
    """What all forks share: the request, the judge's runner and the budget."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.runner = load_module("case_runner", request["case_runner"])
        self.source_files = load_module("source_files", request["source_files"])
        self.pytest_runner: Any = None
        self.audit_hooks: Any = None
        self.violations_fd = 0  # of the judge's own audit hook, where it watches the process of the variants
        self.hits: set[int] = set()
        self.cpu_seconds, self.idle_seconds = SOURCE_SECONDS, SOURCE_IDLE_SECONDS  # of one process
        self.idle = 0.0  # of all processes so far
        self.each = False  # whether the CPU time is that of each plan
        self.longest = self.plan_seconds = 0.0  # of the source's plans; of one plan of a variant
        self.cpu_started = 0.0  # when the variant of this process began
        self.home, self.folder, self.folders = "", "", 0
        self.max_answer = request.get("max_answer", MAX_ANSWER)
        self.deadline = time.monotonic() + WALL_FACTOR * request["seconds"]
        if request["files"] is not None:
            sys.path += request["paths"]
            self.pytest_runner = load_module("pytest_runner", request["pytest_runner"])
            self.pytest_runner.preload()
            os.environ["PYTEST_ADDOPTS"] = "-x"  # the first failure decides
        self.idle_before = 0.0
        gc.freeze()

    def limit_variants(self, cpu_before: float = 0.0) -> None:
        """From now on, limit processes by what the source has used since ``idle_before``, ``cpu_before``."""
        self.each = False
        if self.request["files"] is None:
            self.plan_seconds = max(MIN_PLAN_SECONDS, SLOWER * self.longest)
        used = children_seconds() - cpu_before
        self.cpu_seconds = min(SOURCE_SECONDS, max(MIN_SECONDS, SLOWER * used))
        self.idle_seconds = MIN_IDLE_SECONDS + SLOWER * (self.idle - self.idle_before)

    def watch(self, is_watched: bool) -> None:
        """Let the judge's audit hook report what the variants do outside, as in a case of their own."""
        self.audit_hooks = self.audit_hooks or load_module("audit_hooks", self.request["audit_hooks"])
        self.violations_fd = self.request["violations_fd"] if is_watched else 0

    def is_over(self) -> bool:
        """Whether the time of all variants is used up: CPU time, or time in which they use none.

        The time that passes says nothing on a busy machine; its limit is for what only seems to do something.
        """
        seconds = float(self.request["seconds"])
        is_used = children_seconds() > seconds or self.idle > IDLE_FACTOR * seconds
        return is_used or time.monotonic() > self.deadline

    def write_variant(self, edits: list[tuple[int, int, str]]) -> str:
        """Return the source with these byte ranges replaced."""
        source, pieces, end = self.request["source"], [], 0
        for start, stop, text in sorted(edits, key=lambda edit: edit[:2]):
            pieces += [source[end:start], text.encode()]
            end = stop
        return b"".join([*pieces, source[end:]]).decode()

    def choose_size(self) -> int:
        """Choose how many variants share a process: one if they are files, which import each other.

        The slower the source, the fewer, so that all together stay within the budget.
        """
        files = self.source_files.split_files(self.request["source"].decode())
        is_alone = files or self.request["files"] is not None
        return 1 if is_alone else max(1, int(VARIANTS_PER_PROCESS * MIN_SECONDS / self.cpu_seconds))

    def answers(
        self, texts: list[str], plans: list[Any], fresh: bool, comparison: Comparison | None = None
    ) -> Iterator[bytes | None]:
        """Yield one answer per plan of each variant; None, and nothing more, where the process of all ended.

        It ends, too, where a variant takes too long. ``fresh`` imports the variant again for each plan.
        ``comparison`` ends a variant early; who reads the answers has to note the same ones.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.run_variants(texts, plans, fresh, write_end, comparison)
        os.close(write_end)
        yield from self.read_answers(pid, read_end, len(texts), len(plans))

    def ask_interpreter(self, seed: int, plans: list[Any]) -> Iterator[bytes | None]:
        """Yield one answer per plan of the source in a new interpreter with another hash seed."""
        requests, (read_end, write_end) = os.pipe(), os.pipe()
        arguments = [sys.executable, *["-P", "-s", "-S", "-B", "-X", "utf8", "-c"], INTERPRETER]
        # No fork: this process would be copied only to be replaced. Other descriptors are not inherited.
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            {**os.environ, "PYTHONHASHSEED": str(seed)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, requests[0], 0),
                (os.POSIX_SPAWN_DUP2, write_end, 1),
            ],
        )
        os.close(requests[0])
        os.close(write_end)
        unused = dict.fromkeys(("pytest_runner", "audit_hooks", "answer_agreement", "driver"), b"")
        request = {**self.request, **unused, "answers": [], "plans": plans}
        parts = sys.path, request["packages"], self.request["driver"], marshal.dumps(request)
        try:
            with os.fdopen(requests[1], "wb") as stream:
                marshal.dump(parts, stream)
        except BrokenPipeError:
            pass  # it has ended, which its answers say
        yield from self.read_answers(pid, read_end, 1, len(plans))

    def read_answers(self, pid: int, read_end: int, variants: int, plans: int) -> Iterator[bytes | None]:
        """Yield the frames of a process, at most one per plan of each variant; then end it."""
        idle = min(variants * self.idle_seconds, IDLE_FACTOR * self.request["seconds"] - self.idle)
        watch = IdleWatch(pid, max(MIN_IDLE_SECONDS, idle), max(self.deadline, time.monotonic() + 2.0))
        frames = read_frames(read_end, watch)
        try:
            for _, frame in zip(range(variants * plans), frames, strict=False):
                if frame is not None and not self.plan_seconds:
                    self.longest = max(self.longest, read_seconds(frame))
                yield frame
        finally:
            self.idle += watch.idle
            os.close(read_end)
            for kill, target in ((os.killpg, pid), (os.kill, pid)):
                try:  # noqa: SIM105 (contextlib would double what this process imports)
                    kill(target, _signal.SIGKILL)
                except OSError:
                    pass
            os.waitpid(pid, 0)

    def run_variants(
        self, texts: list[str], plans: list[Any], fresh: bool, pipe: int, comparison: Comparison | None = None
    ) -> NoReturn:
        """In the fork: answer the plans in order, with one variant after the other, then exit."""
        try:
            os.setsid()
            os.dup2(pipe, ANSWER_FD)
            null = os.open("/dev/null", os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            kept = self.violations_fd or 256
            os.closerange(ANSWER_FD + 1, kept)
            os.closerange(kept + 1, 256)
            sys.modules.pop(MODULE, None)  # this module is loaded as if it were the implementation
            resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
            setattr(builtins, self.request["probe"], self.record_hit)  # where pytest imports the variant
            self.home = os.getcwd()
            for number, text in enumerate(texts):
                self.cpu_started = time.process_time()
                self.limit_cpu()
                if comparison is not None:
                    comparison.begin(number)
                self.answer_plans(text, plans, fresh, comparison)
            if self.violations_fd:
                self.audit_hooks.report_tampering(self.violations_fd)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def limit_cpu(self, plan: bool = False) -> None:
        """Limit the CPU time of a variant from now on, which is that of its import, or of its next ``plan``.

        An import takes longer than most plans, and on a busy machine several times as long as on a quiet one.
        """
        seconds = self.cpu_seconds
        if self.plan_seconds:
            seconds = max(1e-6, seconds - (time.process_time() - self.cpu_started))
            seconds = min(self.plan_seconds, seconds) if plan else seconds
        elif self.each and not plan:
            seconds = max(MIN_IMPORT_SECONDS, seconds)
        _signal.setitimer(_signal.ITIMER_PROF, seconds)

    def answer_plans(
        self, text: str, plans: list[Any], fresh: bool, comparison: Comparison | None = None
    ) -> None:
        module, code = None, None
        own_files, shim = self.source_files.write_shim(text)
        # pytest imports its tests' variant itself, and several files import each other
        if not own_files and any(plan[0] != "test" for plan in plans):
            code = compile(text, FILENAME, "exec", dont_inherit=True)
        for number, plan in enumerate(plans):
            if comparison is not None and not comparison.asks(number):
                continue
            self.enter_empty_folder()
            has_own_limit = self.each or self.plan_seconds > 0
            if plan[0] != "test" and (module is None or fresh):
                if has_own_limit:
                    self.limit_cpu()
                module = self.import_variant(text, code)
            started = time.process_time()
            if has_own_limit:
                self.limit_cpu(plan=True)
            if plan[0] == "test":
                encode_text = self.runner.encode_text
                files = self.request["files"]
                answer = self.pytest_runner.run_test(shim, own_files, plan[1], files, encode_text)
            else:
                assert module is not None
                self.hits.clear()  # what runs at import is not what the suite reaches
                answer = self.execute(module, plan)
            hits, used = ",".join(map(str, sorted(self.hits))), int(1e6 * (time.process_time() - started))
            frame = f"{answer}\n{hits}\n{used}".encode("ascii")
            data = len(frame).to_bytes(4, "big") + frame
            while data:
                data = data[os.write(ANSWER_FD, data) :]
            if comparison is not None:
                comparison.note(number, answer.encode("ascii"), bool(self.hits))

    def enter_empty_folder(self) -> None:
        """Work in the folder of the last plan if it is still empty, or else in a new one."""
        try:
            if self.folder and os.stat(self.folder).st_size == EMPTY_FOLDER_BYTES:
                if os.getcwd() != self.folder:
                    os.chdir(self.folder)
                return
        except OSError:
            pass  # it was removed
        self.folders += 1
        self.folder = f"{self.home}/{os.getpid()}-{self.folders}"
        os.mkdir(self.folder)
        os.chdir(self.folder)

    def import_variant(self, text: str, code: Any) -> ModuleType | str:
        """Import a variant; returns the answer of each case where that fails."""
        module = ModuleType(MODULE)
        module.__file__ = FILENAME
        module.__dict__[self.request["probe"]] = self.record_hit
        sys.modules[MODULE] = module
        try:
            if code is None:
                self.runner.own_modules.update(self.source_files.run_source(text, module, FILENAME))
            else:
                exec(code, module.__dict__)
        except BaseException as error:
            return f'["e",{self.runner.encode_exception(error)}]'
        return module

    def execute(self, module: ModuleType | str, plan: Any) -> str:
        if isinstance(module, str):
            return module
        if plan[0] == "import":
            return IMPORTED
        try:
            answer: str = self.runner.execute_case(plan, module, self.runner.Encoder(self.max_answer))
        except self.runner.AnswerTooLargeError:
            return '["large"]'
        except self.runner.NestingTooDeepError:
            return '["deep"]'
        return answer

    def record_hit(self, arm: int, value: Any = True, other: Any = None, operator: str = "") -> Any:
        """Record that the branch is reached; ``arm`` + 1 is the branch of a false condition.

        With an ``operator`` compare two values, and record which is larger, of integers also by one or more.
        """
        if operator:
            if type(value) is int and type(other) is int:
                self.hits.add(arm + max(0, min(4, value - other + 2)))
            elif type(value) is float or type(other) is float:
                self.hits.add(arm + (2 if value == other else 4 * (value > other)))
            return COMPARE[operator](value, other)
        self.hits.add(arm if value else arm + 1)
        return value


class Comparison:
    """Compares the answers of variants with those of the source, and says which plans are still asked.

    The process of the variants and who reads its answers count alike, so no other word passes between them.
    """

    def __init__(
        self,
        expected: list[bytes | None],
        is_same: Callable[[bytes | None, bytes | None], bool],
        limit: int,
        chosen: list[Any] | None = None,
    ) -> None:
        self.expected, self.is_same, self.limit = expected, is_same, limit
        self.chosen = chosen  # for each variant the numbers of the plans that may tell it from the source
        self.remaining: Any = None
        self.differing: list[int] = []
        self.has_hits = False

    def begin(self, variant: int) -> None:
        self.differing, self.has_hits = [], False
        self.remaining = self.chosen[variant] if self.chosen is not None else None

    def asks(self, number: int) -> bool:
        """Whether a plan is still asked; with probes all are, since they tell what they reach."""
        is_enough = len(self.differing) >= self.limit and not self.has_hits
        return not is_enough and (self.remaining is None or number in self.remaining)

    def note(self, number: int, answer: bytes | None, has_hits: bool = False) -> None:
        self.has_hits = self.has_hits or has_hits
        if not self.is_same(self.expected[number], answer):
            self.differing.append(number)


def load_module(name: str, code: bytes) -> Any:
    module = ModuleType(name)
    exec(marshal.loads(code), module.__dict__)
    return module


def write_report(report: dict[str, Any]) -> str:
    import json  # not at the top: further interpreters need none, and it takes half their start

    return json.dumps(report)


def children_seconds() -> float:
    """Return the CPU time of all forks that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class IdleWatch:
    """Adds up the time in which a process uses no processor, and says when that is enough.

    Without /proc, which the sandbox does not have, a wait for the processor looks like any other. But it ends
    when the turn of the process comes, so that only what lasts longer counts.
    """

    def __init__(self, pid: int, seconds: float, deadline: float) -> None:
        self.pid, self.seconds, self.deadline = pid, seconds, deadline
        self.idle = self.stretch = self.cpu = 0.0
        self.looked = time.monotonic()

    def is_over(self) -> bool:
        """Look at the process now, and say whether it is idle for too long, or the last deadline over."""
        now, cpu = time.monotonic(), process_seconds(self.pid)
        interval, self.looked = min(now - self.looked, LOOK_SECONDS), now
        if cpu - self.cpu > PROGRESS_SECONDS:
            self.cpu, self.stretch = cpu, 0.0
        else:
            self.stretch += interval
            self.idle += interval if self.stretch > TURN_SECONDS else 0.0
        return max(self.idle, self.stretch) > self.seconds or now > self.deadline


def process_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, 0 where it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | CPU_CLOCK)
    except OSError:
        return 0.0


def read_frames(descriptor: int, watch: IdleWatch) -> Iterator[bytes | None]:
    """Yield frames; None, and nothing more, at the end of the pipe or after a frame that is too large.

    So, too, where the ``watch`` over its writer says that it is over.

    Waits for the end of the writer, and looks now and then: a wait for each frame would cost more than what
    is answered.
    """
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, 0)
    buffer, position, wait, is_open = bytearray(), 0, 1, True
    while is_open and len(buffer) - position <= 2 * MAX_ANSWER and not watch.is_over():
        poll.poll(wait)
        wait = min(MAX_WAIT, 2 * wait)
        del buffer[:position]
        is_open, position = read_available(descriptor, buffer), 0
        while len(buffer) >= position + 4:
            end = position + 4 + int.from_bytes(buffer[position : position + 4], "big")
            if end > len(buffer):
                break
            yield bytes(buffer[position + 4 : end])
            position = end
    yield None


def read_available(descriptor: int, buffer: bytearray) -> bool:
    """Read what a pipe holds; False once it is at its end."""
    try:
        for _ in range(MAX_PIECES):
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return False
            buffer += piece
    except BlockingIOError:
        pass
    return True


def split_frame(frame: bytes) -> tuple[bytes, list[int]]:
    """Return the answer, and the branches reached."""
    answer, _, rest = frame.partition(b"\n")
    return answer, [int(number) for number in rest.partition(b"\n")[0].split(b",") if number.isdigit()]


def read_seconds(frame: bytes) -> float:
    """Return the CPU time of a plan, as its process says."""
    digits = frame.rpartition(b"\n")[2][:9]
    return int(digits) / 1e6 if digits.isdigit() else 0.0


# ---- the suite's own cases -----------------------------------------------------------------------


def run_cases(packed: bytes) -> str:
    """Run the suite's cases on every variant, the first of which is the source itself.

    JSON: ``answers`` of the source, its CPU time in ``seconds``, ``hits`` of the variant with probes, and for
    each variant but the source its ``differences``, a list of [case, answer or null], or null where the time
    was over. The variants after the source are ``stubs`` stubs, then others; a stub that differs in nothing
    is the last that runs.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    plans = request["plans"]
    expected: list[bytes | None] = []
    measurement.watch(is_watched=request["files"] is None)
    for frame in iterate_answers(measurement, request["variants"][:1], plans):
        expected.append(answer_part(frame))
        if frame is None:
            break
    measurement.watch(is_watched=False)
    seconds = children_seconds()
    measurement.limit_variants()
    hits: set[int] = set()
    differences: list[Any] = []
    budget = MAX_REPORT
    variants = request["variants"][1:] if None not in expected else []
    size = measurement.choose_size() if len(plans) == request["cases_per_process"] else 1
    while len(differences) < len(variants):
        if budget < 0 or measurement.is_over():
            differences += [None] * (len(variants) - len(differences))
            break
        first = len(differences)
        comparison = Comparison(expected, _operator.eq, MAX_DIFFERENCES)
        frames = iterate_answers(measurement, variants[first : first + size], plans, comparison)
        end, is_complete = min(first + size, len(variants)), True
        while is_complete and budget >= 0 and len(differences) < end:
            comparison.begin(len(differences) - first)
            own, reached, is_complete = compare(comparison, frames)
            budget -= sum(len(answer or "") for _, answer in own)
            hits |= reached
            differences.append(own)
            if len(differences) <= request["stubs"] and not own:
                variants = variants[: len(differences)]  # a stub that passes decides
                break
        frames.close()  # type: ignore[attr-defined]
    answers = [decode(answer) for answer in expected]
    report = {"answers": answers, "seconds": seconds, "hits": sorted(hits), "differences": differences}
    return write_report(report)


def compare(
    comparison: Comparison, frames: Iterator[bytes | None]
) -> tuple[list[tuple[int, str | None]], set[int], bool]:
    """Return the first answers that differ from the expected ones, the branches reached, and if all came.

    With probes the lines of exceptions differ, too.
    """
    differences: list[tuple[int, str | None]] = []
    hits: set[int] = set()
    for case in range(len(comparison.expected)):
        if not comparison.asks(case):
            break
        frame = next(frames, None)
        answer, reached = (None, []) if frame is None else split_frame(frame)
        hits.update(reached)
        comparison.note(case, answer, bool(reached))
        if comparison.differing[-1:] == [case]:
            differences.append((case, decode(answer)))
        if answer is None:
            return differences, hits, False
    return differences, hits, True


def decode(answer: bytes | None) -> str | None:
    return None if answer is None else answer.decode("ascii", "replace")


def iterate_answers(
    measurement: Measurement, variants: Any, plans: list[Any], comparison: Comparison | None = None
) -> Iterator[bytes | None]:
    """Yield the answer of each case, each with the variant imported anew, some in one process.

    Several variants share one that answers all cases, and with ``comparison`` only as many as it asks for.
    """
    texts, size = list(map(measurement.write_variant, variants)), measurement.request["cases_per_process"]
    own = comparison if size >= len(plans) else None
    for start in range(0, len(plans), size):
        yield from measurement.answers(texts, plans[start : start + size], fresh=True, comparison=own)


# ---- the pool of further inputs ------------------------------------------------------------------


def run_pool(packed: bytes) -> str:
    """Run further inputs on the source and on the variants that the suite does not refuse.

    Inputs count that the source answers twice the same, and as requirements could state. JSON: ``inputs``,
    the number of these, and ``differs``, for each variant but the source whether it differs on one, or null
    where the time was over.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    agreement = load_module("answer_agreement", request["answer_agreement"])
    source = measurement.write_variant(request["variants"][0])
    measurement.cpu_seconds, measurement.idle_seconds = POOL_SECONDS, POOL_IDLE_SECONDS
    measurement.each = True
    first = answer_all(measurement, source, request["plans"])
    raised = frozenset(request["raised"])
    chosen = [number for number, answer in enumerate(first) if agreement.is_specified(answer, raised)]
    plans = [request["plans"][number] for number in chosen]
    # What the inputs without an answer used is no measure for the others.
    cpu_before, measurement.idle_before = children_seconds(), measurement.idle
    again = answer_all(measurement, source, plans)
    same = [place for place, number in enumerate(chosen) if agreement.is_same(first[number], again[place])]
    plans, expected = [plans[place] for place in same], [again[place] for place in same]
    measurement.limit_variants(cpu_before)
    differs: list[bool | None] = []
    for edits in request["variants"][1:]:
        if measurement.is_over():
            differs.append(None)
            continue
        text = measurement.write_variant(edits)
        answers = measurement.answers([text], plans, fresh=False)
        pairs = zip(expected, map(answer_part, answers), strict=False)
        differs.append(any(not agreement.is_same(*pair) for pair in pairs))
        answers.close()  # type: ignore[attr-defined]
    return write_report({"inputs": len(plans), "differs": differs})


def answer_all(measurement: Measurement, text: str, plans: list[Any]) -> list[bytes | None]:
    """Answer every plan, going on after one that ends the process."""
    answers: list[bytes | None] = []
    for _ in range(MAX_RESTARTS):
        rest = plans[len(answers) :]
        answers += map(answer_part, measurement.answers([text], rest, fresh=False))
        if len(answers) >= len(plans):
            break
    return answers + [None] * (len(plans) - len(answers))


def answer_part(frame: bytes | None) -> bytes | None:
    return None if frame is None else frame.partition(b"\n")[0]


# ---- recording a suite ---------------------------------------------------------------------------


def explore(packed: bytes) -> str:
    """Run inputs on the source.

    JSON: ``answers``, for each plan its answer or null, and ``branches``, those that each reaches.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    measurement.cpu_seconds, measurement.each = request["plan_seconds"], True
    text = measurement.write_variant(request["variants"][0])

    frames = answer_each(measurement, request["plans"], text=text)
    parts = [(None, []) if frame is None else split_frame(frame) for frame in frames]
    answers = [decode(answer) for answer, _ in parts]
    return write_report({"answers": answers, "branches": [hits for _, hits in parts]})


def repeat(packed: bytes) -> str:
    """Run inputs again in new interpreters with other hash seeds, and in reverse order.

    JSON: ``again``, for each hash seed whether the answer is the one that is known, or the other answer.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    known = request["answers"]
    again: list[list[Any]] = []
    for seed in request["hash_seeds"]:
        frames = answer_each(measurement, request["plans"][::-1], seed=seed)
        answers = [decode(answer_part(frame)) for frame in reversed(frames)]
        pairs = zip(answers, known, strict=True)
        again.append([other is not None and (other == own or other) for other, own in pairs])
    return write_report({"again": again})


def answer_each(
    measurement: Measurement, plans: list[Any], text: str = "", seed: int | None = None
) -> list[bytes | None]:
    """Answer every plan; None, and the next in a new process, where the process ends or takes too long.

    A variant answers, or with ``seed`` the source in a new interpreter.
    """
    frames: list[bytes | None] = []
    measurement.idle_seconds = MIN_IDLE_SECONDS
    for _ in range(measurement.request["max_restarts"]):
        rest = plans[len(frames) :]
        if seed is None:
            frames += measurement.answers([text], rest, fresh=False)
        else:
            frames += measurement.ask_interpreter(seed, rest)
        if len(frames) >= len(plans) or measurement.is_over():
            break
    return frames + [None] * (len(plans) - len(frames))


def answer_alone(request: dict[str, Any]) -> NoReturn:
    """Answer the plans of a request in this process, which is a new interpreter."""
    measurement = Measurement(request)
    measurement.cpu_seconds, measurement.each = request["plan_seconds"], True
    measurement.run_variants([measurement.write_variant([])], request["plans"], fresh=False, pipe=1)


INTERPRETER = (
    "import marshal,os,sys,types;sys.path[:],packages,code,request=marshal.load(sys.stdin.buffer)\n"
    "for package in packages:\n"
    " try: __import__(package)\n"
    " except Exception: pass\n"
    "module=types.ModuleType('driver');exec(marshal.loads(code),module.__dict__);"
    "module.answer_alone(marshal.loads(request))"
)


def run_matrix(packed: bytes) -> str:
    """Run inputs on the source and on its variants.

    JSON: ``differs``, for each variant but the source the numbers of the plans that it answers differently,
    the first ``MAX_REFUSING`` of those that were ``chosen`` for it, or null where the time was over.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    agreement = load_module("answer_agreement", request["answer_agreement"])
    plans, chosen = request["plans"], request["chosen"]
    expected = answer_all(measurement, measurement.write_variant(request["variants"][0]), plans)
    measurement.limit_variants()
    differs: list[list[int] | None] = []
    texts = [measurement.write_variant(edits) for edits in request["variants"][1:]]
    size = measurement.choose_size()
    while len(differs) < len(texts):
        if measurement.is_over():
            differs += [None] * (len(texts) - len(differs))
            break
        first = len(differs)
        batch = texts[first : first + size]
        comparison = Comparison(expected, agreement.is_same, MAX_REFUSING, chosen[first : first + size])
        frames = measurement.answers(batch, plans, fresh=False, comparison=comparison)
        for place in range(len(batch)):
            comparison.begin(place)
            is_complete = note_answers(comparison, frames)
            differs.append(comparison.differing)
            if not is_complete:
                break  # its process has ended, and the others need a new one
        frames.close()  # type: ignore[attr-defined]
    return write_report({"differs": differs})


def note_answers(comparison: Comparison, frames: Iterator[bytes | None]) -> bool:
    """Note the answers of one variant, and return whether all came."""
    for number in range(len(comparison.expected)):
        if comparison.asks(number):
            answer = answer_part(next(frames, None))
            comparison.note(number, answer)
            if answer is None:
                return False
    return True

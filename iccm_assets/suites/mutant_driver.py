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
import json
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
MAX_REPORT = 400_000  # characters of all differences
MAX_RESTARTS = 8  # of the source, after inputs that it does not answer
SOURCE_SECONDS, MIN_SECONDS = 5.0, 0.1  # CPU time of the source, and of a variant of a quick source
SOURCE_WALL_SECONDS, MIN_WALL_SECONDS = 10.0, 2.0  # generous: other processes may keep the machine busy
POOL_SECONDS, POOL_WALL_SECONDS = (
    0.1,
    5.0,
)  # of the source, until an input counts as one that it never answers
SLOWER = 5.0  # how many times as long as the source a variant may take
WALL_FACTOR = 2.0  # of the CPU time of all variants: other processes may keep the machine busy
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
        self.hits: set[int] = set()
        self.cpu_seconds, self.wall_seconds = SOURCE_SECONDS, SOURCE_WALL_SECONDS  # of one process
        self.each = False  # whether the CPU time is that of each plan
        self.max_answer = request.get("max_answer", MAX_ANSWER)
        self.deadline = time.monotonic() + WALL_FACTOR * request["seconds"]
        if request["files"] is not None:
            sys.path += request["paths"]
            self.pytest_runner = load_module("pytest_runner", request["pytest_runner"])
            self.pytest_runner.preload()
            os.environ["PYTEST_ADDOPTS"] = "-x"  # the first failure decides
        self.started = time.monotonic()
        gc.freeze()

    def limit_variants(self, cpu_before: float = 0.0) -> None:
        """From now on, limit processes by what the source has used since ``started`` and ``cpu_before``."""
        self.each = False
        used = children_seconds() - cpu_before
        self.cpu_seconds = min(SOURCE_SECONDS, max(MIN_SECONDS, SLOWER * used))
        self.wall_seconds = MIN_WALL_SECONDS + SLOWER * (time.monotonic() - self.started)

    def is_over(self) -> bool:
        """Whether the time of all variants is used up."""
        return time.monotonic() > self.deadline or children_seconds() > float(self.request["seconds"])

    def write_variant(self, edits: list[tuple[int, int, str]]) -> str:
        """Return the source with these byte ranges replaced."""
        source, pieces, end = self.request["source"], [], 0
        for start, stop, text in sorted(edits, key=lambda edit: edit[:2]):
            pieces += [source[end:start], text.encode()]
            end = stop
        return b"".join([*pieces, source[end:]]).decode()

    def answers(self, text: str, plans: list[Any], fresh: bool) -> Iterator[bytes | None]:
        """Yield one answer per plan; None, and nothing more, where the process ended or took too long.

        ``fresh`` imports the variant again for each plan.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.run_variant(text, plans, fresh, write_end)
        os.close(write_end)
        buffer, deadline = bytearray(), time.monotonic() + self.wall_seconds
        poll = select.poll()
        poll.register(read_end, select.POLLIN)
        try:
            for _ in plans:
                answer = read_frame(read_end, poll, buffer, deadline)
                yield answer
                if answer is None:
                    return
        finally:
            os.close(read_end)
            for kill, target in ((os.killpg, pid), (os.kill, pid)):
                try:  # noqa: SIM105 (contextlib would double what this process imports)
                    kill(target, _signal.SIGKILL)
                except OSError:
                    pass
            os.waitpid(pid, 0)

    def run_variant(self, text: str, plans: list[Any], fresh: bool, pipe: int) -> NoReturn:
        """In the fork: answer the plans in order, then exit."""
        try:
            os.setsid()
            os.dup2(pipe, ANSWER_FD)
            null = os.open("/dev/null", os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.closerange(ANSWER_FD + 1, 256)
            sys.modules.pop(MODULE, None)  # this module is loaded as if it were the implementation
            resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
            self.limit_cpu()
            setattr(builtins, self.request["probe"], self.record_hit)  # where pytest imports the variant
            self.answer_plans(text, plans, fresh)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def limit_cpu(self) -> None:
        """Limit the CPU time of this process, from now on."""
        _signal.setitimer(_signal.ITIMER_PROF, self.cpu_seconds)

    def answer_plans(self, text: str, plans: list[Any], fresh: bool) -> None:
        home, module, code = os.getcwd(), None, None
        own_files, shim = self.source_files.write_shim(text)
        # pytest imports its tests' variant itself, and several files import each other
        if not own_files and any(plan[0] != "test" for plan in plans):
            code = compile(text, FILENAME, "exec", dont_inherit=True)
        for number, plan in enumerate(plans):
            if self.each:
                self.limit_cpu()
            folder = f"{home}/{os.getpid()}-{number}"
            os.mkdir(folder)
            os.chdir(folder)
            if plan[0] == "test":
                encode_text = self.runner.encode_text
                files = self.request["files"]
                answer = self.pytest_runner.run_test(shim, own_files, plan[1], files, encode_text)
            else:
                if module is None or fresh:
                    module = self.import_variant(text, code)
                self.hits.clear()  # what runs at import is not what the suite reaches
                answer = self.execute(module, plan)
            frame = f"{answer}\n{','.join(map(str, sorted(self.hits)))}".encode("ascii")
            data = len(frame).to_bytes(4, "big") + frame
            while data:
                data = data[os.write(ANSWER_FD, data) :]
            os.chdir(home)
            try:  # noqa: SIM105
                os.rmdir(folder)
            except OSError:
                pass  # it wrote files, which end with the sandbox

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


def load_module(name: str, code: bytes) -> Any:
    module = ModuleType(name)
    exec(marshal.loads(code), module.__dict__)
    return module


def children_seconds() -> float:
    """Return the CPU time of all forks that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_frame(descriptor: int, poll: select.poll, buffer: bytearray, deadline: float) -> bytes | None:
    """Read one frame; None at the end of the pipe, at the deadline, or where it is too large."""
    while len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[:4], "big"):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or len(buffer) > 2 * MAX_ANSWER or not poll.poll(remaining * 1000):
            return None
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return None
        buffer += piece
    size = 4 + int.from_bytes(buffer[:4], "big")
    frame = bytes(buffer[4:size])
    del buffer[:size]
    return frame


def split_frame(frame: bytes) -> tuple[bytes, list[int]]:
    answer, _, hits = frame.partition(b"\n")
    return answer, [int(number) for number in hits.split(b",") if number.isdigit()]


# ---- the suite's own cases -----------------------------------------------------------------------


def run_cases(packed: bytes) -> str:
    """Run the suite's cases on every variant, the first of which is the source itself.

    JSON: ``answers`` of the source, ``hits`` of the variant with probes, and for each variant but the source
    its ``differences``, a list of [case, answer or null], or null where the time was over. The variants after
    the source are ``stubs`` stubs, then others; a stub that differs in nothing is the last that runs.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    plans = request["plans"]
    expected: list[bytes | None] = []
    for frame in iterate_answers(measurement, request["variants"][0], plans):
        expected.append(answer_part(frame))
        if frame is None:
            break
    measurement.limit_variants()
    hits: set[int] = set()
    differences: list[Any] = []
    budget = MAX_REPORT
    for edits in request["variants"][1:] if None not in expected else ():
        if budget < 0 or measurement.is_over():
            differences.append(None)
            continue
        own, reached = compare(expected, iterate_answers(measurement, edits, plans))
        budget -= sum(len(answer or "") for _, answer in own)
        hits |= reached
        differences.append(own)
        if len(differences) <= request["stubs"] and not own:
            break  # a stub that passes decides
    answers = [decode(answer) for answer in expected]
    return json.dumps({"answers": answers, "hits": sorted(hits), "differences": differences})


def compare(
    expected: list[bytes | None], frames: Iterator[bytes | None]
) -> tuple[list[tuple[int, str | None]], set[int]]:
    """Return the first answers that differ from the expected ones, and the branches reached."""
    differences: list[tuple[int, str | None]] = []
    hits: set[int] = set()
    for case, frame in enumerate(frames):
        answer, reached = (None, []) if frame is None else split_frame(frame)
        hits.update(reached)
        if answer is None or answer != expected[case]:
            differences.append((case, decode(answer)))
        # With probes the lines of exceptions differ, and all cases tell what they reach.
        if answer is None or (len(differences) >= MAX_DIFFERENCES and not hits):
            break
    frames.close()  # type: ignore[attr-defined]
    return differences, hits


def decode(answer: bytes | None) -> str | None:
    return None if answer is None else answer.decode("ascii", "replace")


def iterate_answers(measurement: Measurement, edits: Any, plans: list[Any]) -> Iterator[bytes | None]:
    """Yield the answer of each case, each with the variant imported anew, some in one process."""
    text, size = measurement.write_variant(edits), measurement.request["cases_per_process"]
    for start in range(0, len(plans), size):
        yield from measurement.answers(text, plans[start : start + size], fresh=True)


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
    measurement.cpu_seconds, measurement.wall_seconds = POOL_SECONDS, POOL_WALL_SECONDS
    measurement.each = True
    first = answer_all(measurement, source, request["plans"])
    raised = frozenset(request["raised"])
    chosen = [number for number, answer in enumerate(first) if agreement.is_specified(answer, raised)]
    plans = [request["plans"][number] for number in chosen]
    # What the inputs without an answer used is no measure for the others.
    cpu_before, measurement.started = children_seconds(), time.monotonic()
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
        answers = measurement.answers(text, plans, fresh=False)
        pairs = zip(expected, map(answer_part, answers), strict=False)
        differs.append(any(not agreement.is_same(*pair) for pair in pairs))
        answers.close()  # type: ignore[attr-defined]
    return json.dumps({"inputs": len(plans), "differs": differs})


def answer_all(measurement: Measurement, text: str, plans: list[Any]) -> list[bytes | None]:
    """Answer every plan, going on after one that ends the process."""
    answers: list[bytes | None] = []
    for _ in range(MAX_RESTARTS):
        rest = plans[len(answers) :]
        answers += map(answer_part, measurement.answers(text, rest, fresh=False))
        if len(answers) >= len(plans):
            break
    return answers + [None] * (len(plans) - len(answers))


def answer_part(frame: bytes | None) -> bytes | None:
    return None if frame is None else split_frame(frame)[0]


# ---- recording a suite ---------------------------------------------------------------------------


def explore(packed: bytes) -> str:
    """Run inputs on the source, and again in interpreters with other hash seeds and in reverse order.

    JSON: ``answers``, for each plan its answer or null, ``branches``, those that each reaches, and ``again``,
    for each hash seed whether the answer is the same, or the other answer.
    """
    request = marshal.loads(packed)
    again: list[list[Any]] = [ask_interpreter(seed, request) for seed in request["hash_seeds"]]
    measurement = Measurement(request)
    measurement.cpu_seconds, measurement.each = request["plan_seconds"], True
    frames = answer_each(measurement, measurement.write_variant(request["variants"][0]), request["plans"])
    parts = [(None, []) if frame is None else split_frame(frame) for frame in frames]
    answers = [decode(answer) for answer, _ in parts]
    again = [
        [other is not None and (other == own or other) for other, own in zip(others, answers, strict=True)]
        for others in again
    ]
    return json.dumps({"answers": answers, "branches": [hits for _, hits in parts], "again": again})


def answer_each(measurement: Measurement, text: str, plans: list[Any]) -> list[bytes | None]:
    """Answer every plan; None, and the next in a new process, where the process ends or takes too long."""
    frames: list[bytes | None] = []
    for _ in range(measurement.request["max_restarts"]):
        frames += measurement.answers(text, plans[len(frames) :], fresh=False)
        if len(frames) >= len(plans) or measurement.is_over():
            break
    return frames + [None] * (len(plans) - len(frames))


def ask_interpreter(seed: int, request: dict[str, Any]) -> list[str | None]:
    """Return the answers of the unchanged source in a new interpreter; none where that one fails."""
    plans = request["plans"][::-1]
    own = {**request, "plans": plans, "variants": [[]], "hash_seeds": []}
    requests, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(requests[0], 0)
            os.dup2(answers[1], 1)
            os.closerange(3, 256)
            arguments = [sys.executable, *["-P", "-s", "-S", "-B", "-X", "utf8", "-c"], INTERPRETER]
            os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": str(seed)})
        finally:
            os._exit(1)
    os.close(requests[0])
    os.close(answers[1])
    with os.fdopen(requests[1], "wb") as stream:
        marshal.dump((sys.path, request["packages"], request["driver"], marshal.dumps(own)), stream)
    with os.fdopen(answers[0], "rb") as stream:
        written = stream.read()
    os.waitpid(pid, 0)
    try:
        report: list[str | None] = json.loads(written)["answers"]
    except (ValueError, TypeError, LookupError):
        return [None] * len(plans)
    return report[::-1]


INTERPRETER = (
    "import marshal,os,sys,types;sys.path[:],packages,code,request=marshal.load(sys.stdin.buffer)\n"
    "for package in packages:\n"
    " try: __import__(package)\n"
    " except Exception: pass\n"
    "module=types.ModuleType('driver');exec(marshal.loads(code),module.__dict__);"
    "sys.stdout.write(module.explore(request))"
)


def run_matrix(packed: bytes) -> str:
    """Run inputs on the source and on its variants.

    JSON: ``differs``, for each variant but the source the numbers of the plans that it answers differently,
    or null where the time was over.
    """
    request = marshal.loads(packed)
    measurement = Measurement(request)
    agreement = load_module("answer_agreement", request["answer_agreement"])
    plans = request["plans"]
    expected = answer_all(measurement, measurement.write_variant(request["variants"][0]), plans)
    measurement.limit_variants()
    differs: list[list[int] | None] = []
    for edits in request["variants"][1:]:
        if measurement.is_over():
            differs.append(None)
            continue
        answers = map(answer_part, measurement.answers(measurement.write_variant(edits), plans, fresh=False))
        pairs = enumerate(zip(expected, answers, strict=False))
        differs.append([number for number, pair in pairs if not agreement.is_same(*pair)])
    return json.dumps({"differs": differs})

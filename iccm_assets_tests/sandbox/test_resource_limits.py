"""The limits hold in all: every way round them ends by its limit, two sandboxes at once. (J3)"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from iccm_assets.sandbox import usage_sampler
from iccm_assets.sandbox.resource_usage import ResourceUsage, imposed_wait
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.sandbox.usage_sampler import UsageSampler
from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories import memory_attacks, time_attacks
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot

SUITE = parse_suite({"kind": "cases", "cases": [{"call": "f", "expect": 1}]})
TOLERANCE = 1.3
MEMORY = [
    *memory_attacks.SHARED_MAPPINGS,
    *memory_attacks.PAGE_TABLES,
    *memory_attacks.ENDED_FIRST_THREADS,
    *memory_attacks.FAMILIES,
]
TIME = [*time_attacks.UNCOLLECTED_CHILDREN, *time_attacks.OWN_CONTENTION]
# One attack of each kind; `make test-all` runs the others, too.
QUICK = {
    "shared memory whose pages are given back",
    "page tables that each fork copies",
    "a child whose first thread has ended",
    "the memory of a family",
    "the memory of a family in sessions of their own",
    "children that nobody collects: ignored",
    "competes with children in sessions of their own",
    "makes itself unimportant and competes with children",
}


def parametrized(attacks):
    slow = pytest.mark.slow
    return [pytest.param(a, id=a.name, marks=() if a.name in QUICK else slow) for a in attacks]


def limited(**limits):
    settings = load_settings()
    return settings.model_copy(update={"judge": settings.judge.model_copy(update=limits)})


def run_twice(source, settings):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: run_suite(source, SUITE, settings), range(2)))


@pytest.fixture
def largest_sample(monkeypatch):
    """The most memory that any sample of a sandbox showed."""
    samples = [0]
    original = UsageSampler.sample

    def sample(sampler):
        usage = original(sampler)
        samples.append(usage.memory)
        return usage

    monkeypatch.setattr(UsageSampler, "sample", sample)
    return lambda: max(samples)


@pytest.fixture
def busy_machine():
    """Two processes per processor that are always ready."""
    pids = []
    for _ in range(2 * len(os.sched_getaffinity(0))):
        pids.append(os.fork())
        if pids[-1] == 0:
            while True:
                pass
    yield
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("attack", parametrized(MEMORY))
def test_memory_that_no_process_shows_ends_by_the_memory_limit(attack, largest_sample):
    settings = limited(wall_seconds=30.0, cpu_seconds=20)
    before = snapshot()
    for result in run_twice(attack.source, settings):
        assert {case.verdict for case in result.results} <= attack.verdicts, result.results
    if not attack.estimated:
        assert largest_sample() <= TOLERANCE * (settings.judge.memory_mib << 20)
    assert_unchanged(before)


def test_the_memory_of_a_family_ends_by_its_limit_on_a_busy_machine(busy_machine, largest_sample):
    settings = limited(wall_seconds=30.0, cpu_seconds=20)
    [attack] = [attack for attack in MEMORY if attack.name == "the memory of a family"]
    for result in run_twice(attack.source, settings):
        assert {case.verdict for case in result.results} == {"out_of_memory"}, result.results
    assert largest_sample() <= TOLERANCE * (settings.judge.memory_mib << 20)


def test_pages_that_many_processes_share_count_once_when_the_limit_is_reached_while_they_are_stopped(
    monkeypatch,
):
    """Only undivided are they above the limit: the case goes on."""
    mib, family, signals = 1 << 20, [10, *range(11, 31)], []
    sizes = iter([(90, False), (130, False), (60, True)])

    def measure(_pid, _tmpfs, _extra=0, *, divided=False):
        size, expected = next(sizes)
        assert divided is expected
        return ResourceUsage(size * mib, size * mib, 0, 0.0, 0, tuple(family))

    for name, replacement in {
        "descendant_pids": lambda _pid: family, "measure_usage": measure, "measure_mappings": lambda *_: 0,
        "lower_priority": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(usage_sampler, name, replacement)
    process = SimpleNamespace(pid=10, signal_in_namespace=lambda pid, number: signals.append((number, pid)))
    sampler = UsageSampler(process, ("/tmp",), 100 * mib, _mappings_due=0.0)
    assert sampler.sample().memory == 60 * mib
    assert [number for number, _ in signals] == [signal.SIGSTOP] * 20 + [signal.SIGCONT] * 20


@pytest.mark.parametrize("attack", parametrized(TIME))
def test_time_that_no_process_shows_ends_by_the_time_limits(attack):
    settings = limited(wall_seconds=8.0, cpu_seconds=1)
    before = snapshot()
    for result in run_twice(attack.source, settings):
        assert {case.verdict for case in result.results} <= attack.verdicts, result.results
        assert result.duration_ms <= TOLERANCE * 8000
    assert_unchanged(before)


# ---- what honest code may still do -------------------------------------------------------------------

CHILDREN = """
import mmap, os, signal, time
block = b""
def family(members, shared):
    global block
    block = b"x" * shared
    pids = []
    for _ in range(members):
        pids.append(os.fork())
        if pids[-1] == 0:
            time.sleep(0.4)
            os._exit(block[-1] - 120)
    codes = {os.waitpid(pid, 0)[1] for pid in pids}
    return codes, os.getpriority(os.PRIO_PROCESS, 0) > 0
hits = []
def counted():
    signal.signal(signal.SIGCHLD, lambda number, frame: hits.append(number))
    for _ in range(3):
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    return len(hits)
def ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(100):
        if os.fork() == 0:
            os._exit(0)
        time.sleep(0.002)
    time.sleep(0.2)  # a child that ends during the wait is returned by it, unlike with a real SIG_IGN
    try:
        os.wait()
    except ChildProcessError:
        return before is signal.SIG_DFL, signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
def shared(size):
    block = mmap.mmap(-1, size)
    if os.fork() == 0:
        block[size - 3:] = b"abc"
        os._exit(0)
    os.wait()
    return block[size - 3:]
def private():
    with mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[:2] = b"ab"
        return type(block).__name__, block[:3]
def zeros():
    with open("/dev/zero", "rb") as device:
        return device.read(4)
def polite():
    os.nice(1)
    os.setpriority(os.PRIO_PROCESS, 0, 2)
    return os.getpriority(os.PRIO_PROCESS, 0)
"""


@pytest.mark.parametrize(
    ("call", "args", "expect"),
    [
        # 300 MiB of each process are the same pages; they are stopped to see that, and go on.
        ("family", [4, 300 << 20], {"$tuple": [{"$set": [0]}, False]}),
        ("family", [18, 300 << 20], {"$tuple": [{"$set": [0]}, True]}),
        ("counted", [], 3),
        ("ignored", [], {"$tuple": [True, True]}),
        ("shared", [1 << 20], {"$bytes": "YWJj"}),
        ("shared", [20 << 20], {"$bytes": "YWJj"}),
        ("private", [], {"$tuple": ["mmap", {"$bytes": "YWIA"}]}),
        ("zeros", [], {"$bytes": "AAAAAA=="}),
        ("polite", [], 2),
    ],
)
def test_honest_code_keeps_its_handlers_shared_memory_and_devices(call, args, expect):
    suite = parse_suite({"kind": "cases", "cases": [{"call": call, "args": args, "expect": expect}]})
    result = run_suite(CHILDREN, suite, load_settings())
    assert [(case.verdict, case.detail) for case in result.results] == [("passed", "")]
    assert not result.suspect, result.violations


def test_the_time_of_children_is_complete_however_they_are_collected():
    source = dedent(
        """
        import os, signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        def f():
            for _ in range(5):
                if os.fork() == 0:
                    while time.process_time() < 0.2: pass
                    os._exit(0)
            try:
                while True: os.wait()
            except ChildProcessError:
                return 1
        """
    )
    with Sandbox.start(load_settings()) as sandbox:
        sandbox.load(source)
        outcome = sandbox.run_case(0, ("call", "f", [], {}), Limits(60, 30, 1000))
    assert outcome.kind == "answered"
    assert 1.0 <= outcome.cpu < 1.3


# ---- waiting for a busy machine ----------------------------------------------------------------------


@pytest.fixture
def competing_pid():
    """A process that is always ready, on a processor that a second one keeps busy, too."""
    core = {min(os.sched_getaffinity(0))}
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os.sched_setaffinity(0, core)
            while True:
                pass
        children.append(pid)
    yield children[0]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _waited(pid):
    ran, waited = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[:2]
    return int(ran) / 1e9, int(waited) / 1e9


def test_waiting_for_others_is_excluded_and_waiting_for_itself_is_not(competing_pid):
    while _waited(competing_pid)[1] < 0.7:
        pass
    ran, waited = _waited(competing_pid)
    pids = (os.getpid(), competing_pid)
    wait, competes = imposed_wait(pids, ran)
    assert wait >= waited - 0.05
    assert not competes
    # Its other processes ran meanwhile: that is its own time.
    wait, competes = imposed_wait(pids, _waited(competing_pid)[0] + 0.6)
    assert wait == pytest.approx(_waited(competing_pid)[1] - 0.6, abs=0.2)
    assert competes
    os.setpriority(os.PRIO_PROCESS, competing_pid, os.getpriority(os.PRIO_PROCESS, 0) + 1)
    assert imposed_wait(pids, ran) == (0.0, False)

"""The limits hold in all: every way round them ends by its limit, two sandboxes at once. (J3)"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from iccm_assets.sandbox import sandbox as sandbox_module
from iccm_assets.sandbox.resource_usage import imposed_wait
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.sandbox.host_probe import assert_unchanged, snapshot
from iccm_assets_tests.sandbox.limit_attacks import MEMORY, TIME

SUITE = parse_suite({"kind": "cases", "cases": [{"call": "f", "expect": 1}]})
TOLERANCE = 1.3


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
    original = sandbox_module.measure_usage

    def measure(*args):
        usage = original(*args)
        samples.append(usage.memory)
        return usage

    monkeypatch.setattr(sandbox_module, "measure_usage", measure)
    return lambda: max(samples)


@pytest.mark.parametrize("attack", MEMORY, ids=lambda attack: attack.name)
def test_memory_that_no_process_shows_ends_by_the_memory_limit(attack, largest_sample):
    settings = limited(wall_seconds=30.0, cpu_seconds=20)
    before = snapshot()
    for result in run_twice(attack.source, settings):
        assert {case.verdict for case in result.results} <= attack.verdicts, result.results
    if not attack.estimated:
        assert largest_sample() <= TOLERANCE * (settings.judge.memory_mib << 20)
    assert_unchanged(before)


@pytest.mark.parametrize("attack", TIME, ids=lambda attack: attack.name)
def test_time_that_no_process_shows_ends_by_the_time_limits(attack):
    settings = limited(wall_seconds=8.0, cpu_seconds=2)
    before = snapshot()
    for result in run_twice(attack.source, settings):
        assert {case.verdict for case in result.results} <= attack.verdicts, result.results
        assert result.duration_ms <= TOLERANCE * 8000
    assert_unchanged(before)


# ---- what honest code may still do -------------------------------------------------------------------

CHILDREN = """
import mmap, os, signal, time
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

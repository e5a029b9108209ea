"""A judge that is killed, at whatever moment, leaves nothing: its sandboxes notice and end."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PR_SET_CHILD_SUBREAPER = 36
KILLED = 15

# Forks judging processes, so that each is at work at once: one line per request, its pid as the answer.
JUDGES = """
import os, sys, time
from iccm_assets.judging import bubblewrap
from iccm_assets.suites.suite_runner import judge, judge_many
from iccm_assets.sandbox.sandbox import Sandbox
from iccm_assets.suites.test_suites import load_suite
from iccm_assets.settings import load_settings

BUSY = "import os, time\\nos.fork()\\nos.setsid()\\ntime.sleep(0.1)\\ndef f():\\n    return 0\\n"
settings = load_settings(sandbox=sys.argv[1])
suite = load_suite({"kind": "cases", "cases": [{"call": "f", "expect": 0}] * 3})
bubblewrap.find_bubblewraps(), bubblewrap.find_interpreter()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        if line == "warm\\n":
            Sandbox.start(settings).close()
        while True:
            for _ in judge_many([(BUSY, suite)] * 6, settings, workers=2):
                pass
    print(pid, flush=True)
"""


@pytest.fixture
def orphans():
    """What this process's descendants leave is this process's; ``orphans()`` are those there are now."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def now():
        found = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        return [child for child in found if not buried(child)]

    yield now
    for child in now():
        child.kill()
    now()
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def buried(process):
    """Whether it has ended; it is then waited for."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        if process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    except (psutil.NoSuchProcess, ChildProcessError):
        pass
    return True


@pytest.mark.parametrize(
    ("sandbox", "start", "longest"),
    [("strict", "cold", 0.3), ("strict", "warm", 1.5), ("unsafe", "cold", 1.0)],
)
def test_a_judge_killed_at_any_moment_leaves_nothing(sandbox, start, longest, orphans, tmp_path):
    chance = random.Random(start)
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    judges = subprocess.Popen(
        [sys.executable, "-c", JUDGES, sandbox],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ICCM_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    seen = 0
    for _ in range(KILLED if sandbox == "strict" else 3):
        judges.stdin.write(start + "\n")
        judges.stdin.flush()
        pid = int(judges.stdout.readline())
        time.sleep(chance.uniform(0, longest))
        seen = max(seen, len(orphans()))
        os.kill(pid, signal.SIGKILL)
    judges.kill()
    judges.communicate()
    assert seen > 2, "no sandbox was ever started"
    until = time.monotonic() + 15
    while (left := orphans()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [(one.pid, one.name(), one.status()) for one in left]
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == mounts
    assert not os.listdir(tmp_path)


FORKED = """
import os, time
from iccm_assets.sandbox.sandbox import Sandbox
from iccm_assets.settings import load_settings
settings = load_settings()
Sandbox.start(settings).close()
sandboxes = [Sandbox.start(settings)]
time.sleep(1.0)  # a nursery has started
sandboxes.append(Sandbox.start(settings))
fork = os.fork()
if fork:
    print(fork, *(one.started.driver.pid for one in sandboxes), flush=True)
time.sleep(60)
"""


def test_a_fork_of_a_killed_judge_keeps_no_sandbox_going(orphans, tmp_path):
    judge = subprocess.Popen(
        [sys.executable, "-c", FORKED],
        stdout=subprocess.PIPE,
        env={**os.environ, "ICCM_HOME": str(tmp_path)},
    )
    fork, *drivers = map(int, judge.stdout.readline().split())
    assert len(drivers) == 2
    assert all(psutil.pid_exists(pid) for pid in drivers)
    judge.kill()
    judge.wait()
    judge.stdout.close()
    until = time.monotonic() + 10
    while (left := {one.pid for one in orphans()}) != {fork} and time.monotonic() < until:
        time.sleep(0.1)
    assert left == {fork}

"""A judge that is killed at any moment leaves nothing behind: its sandboxes notice and end."""

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
KILLS = 15

# Forks judging processes, so that each is at work at once: one line per request, answered with its pid.
JUDGES = """
import os, sys, time
from iccm_assets.sandbox import bubblewrap
from iccm_assets.suites.suite_runner import run_suites
from iccm_assets.sandbox.sandbox import Sandbox
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets.settings import load_settings

BUSY = "import os, time\\nos.fork()\\nos.setsid()\\ntime.sleep(0.1)\\ndef f():\\n    return 0\\n"
settings = load_settings(sandbox=sys.argv[1])
suite = parse_suite({"kind": "cases", "cases": [{"call": "f", "expect": 0}] * 3})
bubblewrap.find_bubblewraps(), bubblewrap.find_interpreter()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        if line == "warm\\n":
            Sandbox.start(settings).close()
        while True:
            for _ in run_suites([(BUSY, suite)] * 6, settings, workers=2):
                pass
    print(pid, flush=True)
"""


@pytest.fixture
def orphans():
    """Adopt what this process's descendants leave behind; ``orphans()`` lists the living ones."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def now():
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        return [child for child in children if not reap(child)]

    yield now
    for child in now():
        child.kill()
    now()
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def reap(process):
    """Return whether a process has ended, after collecting its exit status."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        if process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    except (psutil.NoSuchProcess, ChildProcessError):
        pass
    return True


@pytest.mark.parametrize(
    ("sandbox", "start", "max_delay"),
    [("strict", "cold", 0.3), ("strict", "warm", 1.5), ("unsafe", "cold", 1.0)],
)
def test_a_judge_killed_at_any_moment_leaves_nothing(sandbox, start, max_delay, orphans, tmp_path):
    rng = random.Random(start)
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    judges = subprocess.Popen(
        [sys.executable, "-c", JUDGES, sandbox],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ICCM_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    max_orphans = 0
    for _ in range(KILLS if sandbox == "strict" else 3):
        judges.stdin.write(start + "\n")
        judges.stdin.flush()
        pid = int(judges.stdout.readline())
        time.sleep(rng.uniform(0, max_delay))
        max_orphans = max(max_orphans, len(orphans()))
        os.kill(pid, signal.SIGKILL)
    judges.kill()
    judges.communicate()
    assert max_orphans > 2, "no sandbox was ever started"
    deadline = time.monotonic() + 15
    while (survivors := orphans()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [(process.pid, process.name(), process.status()) for process in survivors]
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == mounts
    assert not os.listdir(tmp_path)


FORKED = """
import os, time
from iccm_assets.sandbox.sandbox import Sandbox
from iccm_assets.settings import load_settings
settings = load_settings()
Sandbox.start(settings).close()
sandboxes = [Sandbox.start(settings)]
time.sleep(1.0)  # a warm pool has started
sandboxes.append(Sandbox.start(settings))
fork = os.fork()
if fork:
    print(fork, *(sandbox.running.init_process.pid for sandbox in sandboxes), flush=True)
time.sleep(60)
"""


def test_a_fork_of_a_killed_judge_keeps_no_sandbox_going(orphans, tmp_path):
    judge = subprocess.Popen(
        [sys.executable, "-c", FORKED],
        stdout=subprocess.PIPE,
        env={**os.environ, "ICCM_HOME": str(tmp_path)},
    )
    fork, *init_processes = map(int, judge.stdout.readline().split())
    assert len(init_processes) == 2
    assert all(psutil.pid_exists(pid) for pid in init_processes)
    judge.kill()
    judge.wait()
    judge.stdout.close()
    deadline = time.monotonic() + 10
    while (survivors := {process.pid for process in orphans()}) != {fork} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert survivors == {fork}

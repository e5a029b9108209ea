"""Judges that are killed while their sandboxes work; run as a process of its own, which adopts what is left.

    python -m iccm_assets_tests.factories.killed_judges strict warm 1.5 15
    python -m iccm_assets_tests.factories.killed_judges fork

Prints what happened as JSON. Alone in its process: other tests of a session may have platforms that run on
and start processes at any time.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil

PR_SET_CHILD_SUBREAPER = 36
WAIT_SECONDS = 15.0

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


def find_orphans() -> list[psutil.Process]:
    """Find the living descendants of this process, and collect those that have ended."""
    return [child for child in psutil.Process().children(recursive=True) if not _reap(child)]


def _reap(process: psutil.Process) -> bool:
    """Return whether a process has ended, after collecting its exit status."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        if process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    except (psutil.NoSuchProcess, ChildProcessError):
        pass
    return True


def wait_for_survivors(expected: set[int]) -> list[psutil.Process]:
    """Wait until only the expected descendants live, or some time; return the others."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        survivors = find_orphans()
        if {process.pid for process in survivors} == expected or time.monotonic() > deadline:
            return [process for process in survivors if process.pid not in expected]
        time.sleep(0.1)


def kill_judges(sandbox: str, start: str, max_delay: float, kills: int) -> dict[str, object]:
    """Kill judges at random moments of their work."""
    rng = random.Random(start)
    judges = subprocess.Popen(
        [sys.executable, "-c", JUDGES, sandbox], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert judges.stdin and judges.stdout
    max_orphans = 0
    for _ in range(kills):
        judges.stdin.write(start + "\n")
        judges.stdin.flush()
        pid = int(judges.stdout.readline())
        time.sleep(rng.uniform(0, max_delay))
        max_orphans = max(max_orphans, len(find_orphans()))
        os.kill(pid, signal.SIGKILL)
    judges.kill()
    judges.communicate()
    return {"max_orphans": max_orphans, "survivors": _describe(wait_for_survivors(set()))}


def kill_forked_judge() -> dict[str, object]:
    """Kill a judge that has forked while it had sandboxes; the fork lives on."""
    judge = subprocess.Popen([sys.executable, "-c", FORKED], stdout=subprocess.PIPE)
    assert judge.stdout
    fork, *init_processes = map(int, judge.stdout.readline().split())
    living = sum(map(psutil.pid_exists, init_processes))
    judge.kill()
    judge.wait()
    judge.stdout.close()
    survivors = _describe(wait_for_survivors({fork}))
    lives = psutil.pid_exists(fork)
    os.kill(fork, signal.SIGKILL)
    return {"sandboxes": living, "fork_lives": lives, "survivors": survivors}


def _describe(processes: list[psutil.Process]) -> list[str]:
    described: list[str] = []
    for process in processes:
        try:
            described.append(f"{process.pid} {process.name()} {process.status()} {process.cmdline()}"[:500])
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return described


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if sys.argv[1] == "fork":
        report = kill_forked_judge()
    else:
        sandbox, start, max_delay, kills = sys.argv[1:]
        report = kill_judges(sandbox, start, float(max_delay), int(kills))
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

"""Measure how long judging takes compared with a bare run of the same calls.

    python benchmarks/judge.py [--suites 100] [--implementations 1000]

Suites of five cases are judged one after the other, each followed by a bare baseline (one interpreter that
makes the same five calls, without isolation); medians, 95th percentiles and their ratio are printed. Then
many implementations, honest and hostile, are judged eight at a time, and what they leave behind is counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from iccm_assets.settings import JudgeSettings, Settings, load_settings
from iccm_assets.suites.suite_runner import run_suite, run_suites
from iccm_assets.suites.test_suites import parse_suite

SOURCE = "def add(a, b):\n    return a + b\n\ndef label(n):\n    return f'item-{n}'\n"
SUITE = {
    "kind": "cases",
    "cases": [
        {"call": "add", "args": [1, 2], "expect": 3},
        {"call": "add", "args": [-5, 8], "expect": 3},
        {"call": "add", "kwargs": {"a": 40, "b": 2}, "expect": 42},
        {"call": "add", "args": [1, None], "raises": "TypeError"},
        {"call": "label", "args": [7], "expect": "item-7"},
    ],
}
BARE = SOURCE + (
    "assert add(1, 2) == 3 and add(-5, 8) == 3 and add(a=40, b=2) == 42 and label(7) == 'item-7'\n"
    "try: add(1, None)\nexcept TypeError: pass\n"
)
HOSTILE = (
    "import os\ndef add(a, b):\n    os.fork(); os.setsid(); return 0\n",
    "import os\nos._exit(0)\n",
    "import os\ndef add(a, b):\n    os.kill(-1, 9)\n",
    "import os\nfor n in range(50): open(f'/tmp/{n}', 'w').close()\ndef add(a, b):\n    return None\n",
    "import os\ndef add(a, b):\n    os.closerange(3, 256)\n",
)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def measure_milliseconds(call: Callable[[], object]) -> float:
    """Measure the duration of a call in milliseconds."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def latency(suites: int, settings: Settings) -> None:
    """Alternate judged suites and bare runs."""
    suite = parse_suite(SUITE)
    for _ in range(5):  # warm
        run_suite(SOURCE, suite, settings)
        time.sleep(0.05)
    judged, bare = [], []
    for _ in range(suites):
        judged.append(measure_milliseconds(lambda: run_suite(SOURCE, suite, settings)))
        bare.append(
            measure_milliseconds(lambda: subprocess.run([sys.executable, "-I", "-c", BARE], check=True))
        )
    for name, values in (("judge", judged), ("bare", bare)):
        values.sort()
        median, late = statistics.median(values), values[int(0.95 * len(values))]
        say(f"{name:6} median {median:7.1f} ms   p95 {late:7.1f} ms")
    ratio = statistics.median(judged) / statistics.median(bare)
    say(f"ratio  median {ratio:7.2f}      load {os.getloadavg()[0]:.1f}")


def count_leftovers() -> tuple[int, int, int]:
    """Count processes below this one, descriptors and mounts."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").count("\n")
    return len(psutil.Process().children(recursive=True)), len(os.listdir("/proc/self/fd")), mounts


def leaks(implementations: int, settings: Settings) -> None:
    """Judge many implementations, a quarter of them hostile, and count what they leave behind."""
    suite = parse_suite(SUITE)
    limits = JudgeSettings().model_copy(update={"wall_seconds": 4.0, "cpu_seconds": 1})
    settings = settings.model_copy(update={"judge": limits})
    work = ((HOSTILE[n // 4 % len(HOSTILE)] if n % 4 == 0 else SOURCE, suite) for n in range(implementations))
    before, started = count_leftovers(), time.perf_counter()
    rates = [result.test_pass_rate for result in run_suites(work, settings, workers=8)]
    seconds = time.perf_counter() - started
    time.sleep(2)
    say(f"{implementations} implementations, 8 at a time: {implementations / seconds:.1f} a second")
    say(f"passed fully {rates.count(1.0)}, without verdict {rates.count(None)}")
    say(f"processes, descriptors, mounts: before {before}, after {count_leftovers()}")


def main() -> None:
    """Run both measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", type=int, default=100)
    parser.add_argument("--implementations", type=int, default=1000)
    options = parser.parse_args()
    settings = load_settings()
    if options.suites:
        latency(options.suites, settings)
    if options.implementations:
        leaks(options.implementations, settings)


if __name__ == "__main__":
    main()

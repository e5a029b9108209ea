"""Measure what recording a test suite costs compared with the bare execution of the same inputs.

    python benchmarks/recorder.py [FILE…] [--every 15]

Each source is recorded. Then the bare execution runs every input that the recording ran on the source, also
those that measured its suite, once in one sandbox: without probes, mutants, other hash seeds and repetitions.
Both count the CPU time of this process and its children and of all that ran in the sandboxes. Printed are
medians, and a digest of all suites, which no change of the recorder's speed may change. Without files the
sources are every fifteenth of the packaged audit set.
"""

from __future__ import annotations

import argparse
import atexit
import gzip
import hashlib
import json
import marshal
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from iccm_assets.sandbox import warm_pool
from iccm_assets.sandbox.sandbox import CaseOutcome, Sandbox
from iccm_assets.settings import Settings, load_settings
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.suite_recording import SuiteRecording, record_suite
from iccm_assets.suites.test_suites import Suite
from iccm_assets.suites.variant_runs import VariantRunner

CPU_CLOCK = 2  # with the inverted pid before it, the clock of what a process has used


class Meter:
    """Adds up the CPU time in all sandboxes, and keeps the inputs that run on a source."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.plans: dict[bytes, Any] = {}
        self._wrap(Sandbox, "run_case", self._add_case)
        self._wrap(Sandbox, "close", self._add_init_process)
        self._wrap(VariantRunner, "explore", self._add_plans)
        self._wrap(VariantRunner, "run_pool", self._add_plans)

    def _wrap(self, owner: type, name: str, meter: Callable[..., Any]) -> None:
        method = getattr(owner, name)
        setattr(owner, name, lambda *args, **options: meter(method, *args, **options))

    def _add_case(self, run_case: Callable[..., CaseOutcome], *args: Any) -> CaseOutcome:
        outcome = run_case(*args)
        self.seconds += outcome.cpu
        return outcome

    def _add_init_process(self, close: Callable[..., None], sandbox: Sandbox) -> None:
        self.seconds += time.clock_gettime(~sandbox.running.init_process.pid << 3 | CPU_CLOCK)
        close(sandbox)

    def _add_plans(
        self, run: Callable[..., Any], runner: Any, edits: Any, plans: Any, *rest: Any, **options: Any
    ) -> Any:
        self.plans |= {marshal.dumps(plan, 2): plan for plan in plans}
        return run(runner, edits, plans, *rest, **options)

    def measure(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Return the CPU seconds of a call, and its result."""
        before = self._read()
        result = call()
        return self._read() - before, result

    def _read(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return self.seconds + time.process_time() + children.ru_utime + children.ru_stime


def run_bare(source: SourceText, plans: list[Any], settings: Settings) -> None:
    """Run the inputs once."""
    with VariantRunner(source, Suite("cases", (), ""), settings, 0.0) as runner:
        runner.explore([], plans)


def warm_up(source: str, settings: Settings) -> None:
    """Record once, for the imports, and keep a sandbox of the warm pool, so that all others come from it.

    What a sandbox of its own uses would count twice: in its cases, and in this process's children.
    """
    for _ in range(100):
        record_suite(source, settings)
        sandbox = Sandbox.start(settings)
        if warm_pool.warm_pool.busy:
            atexit.register(sandbox.close)
            return
        sandbox.close()
    raise SystemExit("There is no warm pool here, so that figures would mean nothing.")


def read_audit_set() -> list[str]:
    packed = resources.files("iccm_assets.simulation") / "data/audit_set.jsonl.gz"
    return [json.loads(row)["source_code"] for row in gzip.decompress(packed.read_bytes()).splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=15)
    options = parser.parse_args()
    settings, meter = load_settings(), Meter()
    sources = [path.read_text() for path in options.files] or read_audit_set()[:: options.every]
    digest = hashlib.sha256()
    costs: list[tuple[float, float]] = []
    warm_up(sources[0], settings)
    for text in sources:
        meter.plans.clear()
        seconds, recording = meter.measure(partial(record_suite, text, settings))
        assert isinstance(recording, SuiteRecording)
        digest.update(json.dumps(recording.document).encode())
        source, plans = SourceText.parse(text), list(meter.plans.values())
        if recording.document is not None and source is not None:
            bare, _ = meter.measure(partial(run_bare, source, plans, settings))
            costs.append((seconds, bare))
    ratio = statistics.median(seconds / bare for seconds, bare in costs)
    median, bare = (statistics.median(values) for values in zip(*costs, strict=True))
    sys.stdout.write(
        f"{len(costs)} of {len(sources)} sources recorded: {median:.3f} s of CPU each, bare {bare:.3f} s, "
        f"ratio {ratio:.1f}; suites {digest.hexdigest()[:12]}\n"
    )


if __name__ == "__main__":
    main()

"""Compare the platform's hot paths with peers and with what the machine can do at best.

`make bench` installs the peers and runs all benchmarks, `make bench-quick` smaller ones in five minutes. CPU
seconds and the ratios of interleaved rounds count: wall times say little on a machine that does other work.
The status is 1 if a result is wrong or a benchmark fails; a missed target is only reported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Options, Outcome, run_comparison

# In the order in which they run; each is a module with a function `compare`.
BENCHMARKS = {
    "deduplication": "benchmarks.deduplication",
    "encoder": "benchmarks.encoder",
    "generation": "benchmarks.generation",
    "imports": "benchmarks.imports",
    "filter": "benchmarks.filter",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks, print and write the results; return the exit status."""
    names = ", ".join(BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {names}; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller ones, five minutes on two quiet cores")
    parser.add_argument("--rounds", type=int, help="rounds of every comparison, instead of its own number")
    parser.add_argument("--conversations", type=int, help="size of the smaller table of `filter`")
    parser.add_argument(
        "--output", type=Path, default=Options.output, help="directory (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {names}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds takes a number from 1 on")
    options = Options(chosen.quick, chosen.rounds, chosen.conversations, chosen.output.absolute())
    from benchmarks import report

    options.output.mkdir(parents=True, exist_ok=True)
    machine = report.describe_machine()
    outcomes = []
    for name in chosen.names or BENCHMARKS:
        for outcome in run_benchmark(name, options):
            outcomes.append(outcome)
            ratios = "; ".join(
                f"{ratio.median or 0:.2f} x {ratio.peer} {ratio.verdict}" for ratio in outcome.ratios
            )
            sys.stderr.write(f"{name}: {outcome.comparison}: {outcome.problem or ratios}\n")
    document = report.write_results(outcomes, machine, options.output)
    text = json.dumps(document) + "\n" if chosen.json else report.format_table(outcomes, machine)
    sys.stdout.write(text)
    return int(any(outcome.problem for outcome in outcomes))


def run_benchmark(name: str, options: Options) -> Iterator[Outcome]:
    """Yield the outcome of each comparison; what fails ends this benchmark alone."""
    try:
        for comparison in importlib.import_module(BENCHMARKS[name]).compare(options):
            yield run_comparison(name, comparison, options.rounds)
    except Exception as error:
        traceback.print_exc()
        yield Outcome(name, "all", problem=f"failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    # With more threads, what else runs on the machine would be measured, too.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    sys.exit(main())

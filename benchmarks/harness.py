"""Compare what a piece of work costs with what the same work costs otherwise, in one run.

A benchmark is a module of this folder that ``benchmarks/__main__.py`` lists, with one function:

    def compare(options: Options) -> Iterator[Comparison]:
        yield Comparison(
            "a suite of five cases",
            {"iccm": lambda: run_suite(SOURCE, suite, settings), "python -I": run_bare},
            check=lambda results: expect(results["iccm"].test_pass_rate == 1, "a case failed"),
            targets=[Target("python -I", 8)],
            rounds=20,
        )

- **A contender** does the work once and returns its result; the platform's comes first. One that is None is
  not installed. Around each call are measured CPU seconds (of this process and its ended children), wall
  seconds and the peak of resident memory above the start. What has costs elsewhere (a server, sandboxes, a
  process that measures itself, such as ``peers.Worker``) returns ``Measured``; its costs may have any name.
- **The check comes first.** Every contender runs once to warm up, and ``check`` gets these results by name.
  It returns a note for the report, or raises ``WrongResult``: then there is no figure, and the run fails.
- **Rounds are interleaved**: each runs every contender, every other round in reverse order.
- **A ratio** is the median cost of a peer divided by the platform's: how many times as fast the platform is.
  Its spread is the lowest and the highest ratio of a round. ``Target(peer, 8)`` means at least 8, and
  ``Target(peer, 1 / 1.3)`` at most 1.3 times the cost of the peer. A missed target is reported, no failure.

Only the standard library is imported here: peers run in an environment without the platform's packages.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CPU, WALL, MEMORY = "CPU s", "wall s", "peak MB"


class WrongResult(Exception):
    """A contender's result is not the one it must be."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a benchmark.

    ``quick`` leaves out what takes minutes; ``rounds`` replaces the number of rounds of every comparison.
    """

    quick: bool = False
    rounds: int | None = None
    conversations: int | None = None
    output: Path = Path("build/bench")


@dataclass(frozen=True)
class Measured:
    """A result with its costs by name; ``was_stopped`` if the work would have cost more."""

    result: Any
    costs: Mapping[str, float]
    was_stopped: bool = False


@dataclass(frozen=True)
class Target:
    """The lowest ratio of a peer's cost to the platform's that is good enough."""

    peer: str
    min_ratio: float
    cost: str = CPU


@dataclass(frozen=True)
class Comparison:
    """Contenders for the same work, the platform's first; see the module's docstring."""

    name: str
    contenders: Mapping[str, Callable[[], Any] | None]
    check: Callable[[dict[str, Any]], str | None]
    targets: Sequence[Target] = ()
    rounds: int = 5


@dataclass(frozen=True)
class Ratio:
    """How many times the platform's cost a peer's is: quotient of the medians, lowest and highest of a round.

    All three are None if the peer is not installed. It is a lower bound if the peer was stopped.
    """

    peer: str
    cost: str
    target: float | None
    median: float | None = None
    lowest: float | None = None
    highest: float | None = None
    is_lower_bound: bool = False
    verdict: str = ""


@dataclass
class Outcome:
    """What a comparison measured: each contender's costs in each round; no figure if there is a problem."""

    benchmark: str
    comparison: str
    costs: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    note: str = ""
    problem: str = ""
    load_average: tuple[float, float] = (0.0, 0.0)


def expect(condition: bool, problem: str) -> None:
    """Raise ``WrongResult`` unless the condition holds."""
    if not condition:
        raise WrongResult(problem)


def read_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(call: Callable[[], Any], read_cpu: Callable[[], float] = read_cpu_seconds) -> Measured:
    """Call and measure; what measures itself is returned as it is."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # begins a new peak
    memory, wall, cpu = _read_status("VmRSS"), time.perf_counter(), read_cpu()
    result = call()
    cpu, wall = read_cpu() - cpu, time.perf_counter() - wall
    if isinstance(result, Measured):
        return result
    return Measured(result, {CPU: cpu, WALL: wall, MEMORY: max(0.0, _read_status("VmHWM") - memory)})


def _read_status(name: str) -> float:
    """Return a line of the process's status in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def run_comparison(benchmark: str, comparison: Comparison, rounds: int | None = None) -> Outcome:
    """Warm up, check the results, measure in rounds."""
    outcome, before = Outcome(benchmark, comparison.name), os.getloadavg()[0]
    calls = {name: call for name, call in comparison.contenders.items() if call is not None}
    try:
        outcome.note = comparison.check({name: measure(call).result for name, call in calls.items()}) or ""
    except WrongResult as error:
        outcome.problem = f"wrong result: {error}"
        return outcome
    outcome.costs, stopped = {name: [] for name in calls}, set()
    for number in range(rounds or comparison.rounds):
        for name in list(calls) if number % 2 == 0 else reversed(calls):
            measured = measure(calls[name])
            outcome.costs[name].append(measured.costs)
            stopped |= {name} if measured.was_stopped else set()
    outcome.load_average = (before, os.getloadavg()[0])
    ours, *peers = comparison.contenders
    compared = {target.peer for target in comparison.targets}
    targets = [(target.peer, target.cost, target.min_ratio) for target in comparison.targets]
    for peer, cost, target in [*targets, *((peer, CPU, None) for peer in peers if peer not in compared)]:
        ratio = Ratio(peer, cost, target, verdict="not installed")
        if peer in calls:
            ratio = compute_ratio(outcome.costs[ours], outcome.costs[peer], ratio, peer in stopped)
        outcome.ratios.append(ratio)
    return outcome


def compute_ratio(
    ours: Sequence[Mapping[str, float]], peers: Sequence[Mapping[str, float]], ratio: Ratio, was_stopped: bool
) -> Ratio:
    """Complete the ratio from the costs of the rounds."""
    pairs = [(own[ratio.cost], other[ratio.cost]) for own, other in zip(ours, peers, strict=True)]
    own, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    rounds = [other / own for own, other in pairs]
    verdict = ""
    if ratio.target is not None:
        # A peer that was stopped too early gives no verdict.
        missed = "unknown" if was_stopped else "missed"
        verdict = "met" if other / own >= ratio.target else missed
    median, lowest, highest = other / own, min(rounds), max(rounds)
    return Ratio(ratio.peer, ratio.cost, ratio.target, median, lowest, highest, was_stopped, verdict)

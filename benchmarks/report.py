"""The results of a run: a JSON document, a Markdown table, and a plot of the ratios."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from benchmarks.harness import CPU, MEMORY, WALL, Outcome, Ratio
from benchmarks.peers import Worker


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, Python and load average."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "load_average": os.getloadavg(),
    }


def list_versions() -> dict[str, str]:
    """Return the releases of the platform's dependencies and of the peers that ran."""
    names = {
        re.split(r"[^-\w.]", line)[0] for line in requires("iccm-assets") or () if "extra ==" not in line
    }
    versions = dict(Worker.versions)
    for name in sorted(names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def format_table(outcomes: Sequence[Outcome], machine: dict[str, Any]) -> str:
    """Return the Markdown table, with what it was measured on."""
    lines = [
        "| what | contender | CPU s | wall s | peak MB | times as fast as it | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for outcome in outcomes:
        what = f"{outcome.benchmark}: {outcome.comparison}"
        if outcome.problem:
            lines.append(f"| {what} | **{outcome.problem}** | | | | | | |")
            continue
        ours = next(iter(outcome.costs))
        lines.append(f"| {what} | {ours} | {_format_costs(outcome, ours)} | | | |")
        lines += [f"| | {_format_ratio(outcome, ratio)} |" for ratio in outcome.ratios]
        notes += [f"- {what}: {outcome.note}."] if outcome.note else []
    about = (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB, Python "
        f"{machine['python']}, one thread; load average {machine['load_average'][0]:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after. Costs are medians. A ratio is the quotient of two medians, with "
        "the lowest and the highest of a round; `>` stands before that of a peer that was stopped."
    )
    return "\n".join([*lines, "", *notes, "", about, ""])


def _format_costs(outcome: Outcome, contender: str) -> str:
    cells = []
    for cost in (CPU, WALL, MEMORY):
        values = [costs[cost] for costs in outcome.costs.get(contender, []) if cost in costs]
        cells.append(f"{statistics.median(values):.2g}" if values else "")
    return " | ".join(cells)


def _format_ratio(outcome: Outcome, ratio: Ratio) -> str:
    name = ratio.peer if ratio.cost == CPU else f"{ratio.peer} ({ratio.cost})"
    spread = ""
    if ratio.median is not None:
        sign = "> " if ratio.is_lower_bound else ""
        spread = f"{sign}{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
    target = "" if ratio.target is None else f"≥ {ratio.target:.2g}"
    return f"{name} | {_format_costs(outcome, ratio.peer)} | {spread} | {target} | {ratio.verdict}"


def plot_ratios(outcomes: Sequence[Outcome], directory: Path) -> None:
    """Draw the ratios with their spread, and a mark at each target, as SVG and PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [
        (f"{outcome.benchmark}: {outcome.comparison}\nagainst {ratio.peer}", ratio)
        for outcome in outcomes
        for ratio in outcome.ratios
        if ratio.median is not None
    ]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.55 * len(rows)), layout="constrained")
    for position, (_, ratio) in enumerate(rows):
        color = "tab:red" if ratio.verdict == "missed" else "tab:blue"
        axes.plot([ratio.lowest, ratio.highest], [position] * 2, color=color, linewidth=2)
        axes.plot([ratio.median], [position], "o", color=color)
        if ratio.target is not None:
            axes.plot([ratio.target], [position], "|", color="black", markersize=14)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="gray", linewidth=0.5)
    axes.set_xlabel("times as fast as the other one; line: lowest and highest of a round; bar: target")
    for kind in ("svg", "png"):
        figure.savefig(directory / f"ratios.{kind}")
    pyplot.close(figure)


def write_results(outcomes: Sequence[Outcome], machine: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write `results.json`, `results.md`, `ratios.svg` and `ratios.png`; return the document."""
    document = {
        "machine": machine,
        "packages": list_versions(),
        "comparisons": [asdict(outcome) for outcome in outcomes],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    (directory / "results.md").write_text(format_table(outcomes, machine), encoding="utf-8")
    plot_ratios(outcomes, directory)
    return document

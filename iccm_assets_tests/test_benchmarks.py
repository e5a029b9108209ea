"""The harness of the benchmarks, with a comparison whose costs are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import __main__ as command_line
from benchmarks.harness import CPU, Comparison, Measured, Options, Target, expect, measure


def costing(result: int, *seconds: float) -> Callable[[], Measured]:
    """A contender with these CPU seconds: the first in the warm-up, the others in the rounds."""
    rounds = cycle(seconds)
    return lambda: Measured(result, {CPU: next(rounds)})


def run(peer_result: int, output: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, object]]:
    def compare(options: Options) -> Iterator[Comparison]:
        yield Comparison(
            "nine",
            {"iccm": costing(9, 99, 1, 2, 4), "peer": costing(peer_result, 99, 8, 2, 12), "absent": None},
            lambda results: expect(len(set(results.values())) == 1, "results differ"),
            [Target("peer", 4), Target("absent", 2)],
            rounds=3,
        )

    module = ModuleType("trivial")
    module.compare = compare  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trivial", module)
    monkeypatch.setattr(command_line, "BENCHMARKS", {"trivial": "trivial"})
    status = command_line.main(["trivial", "--output", str(output)])
    [comparison] = json.loads((output / "results.json").read_text(encoding="utf-8"))["comparisons"]
    return status, comparison


def test_a_ratio_is_that_of_the_medians_with_the_extremes_of_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, comparison = run(9, tmp_path, monkeypatch)
    peer, absent = comparison["ratios"]
    assert status == 0
    assert (peer["median"], peer["lowest"], peer["highest"], peer["verdict"]) == (4, 1, 8, "met")
    assert (absent["median"], absent["verdict"]) == (None, "not installed")
    assert "| peer | 8 |  |  | 4.00 (1.00 to 8.00) | ≥ 4 | met |" in capsys.readouterr().out
    assert (tmp_path / "ratios.svg").exists() and (tmp_path / "ratios.png").exists()


def test_a_wrong_result_has_no_figure_and_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, comparison = run(8, tmp_path, monkeypatch)
    assert status == 1
    assert comparison["problem"] == "wrong result: results differ"
    assert (comparison["costs"], comparison["ratios"]) == ({}, [])
    assert not (tmp_path / "ratios.svg").exists()


def test_an_unknown_benchmark_is_an_error_that_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["encoders"])
    assert "unknown benchmark encoders; there are deduplication, encoder, " in capsys.readouterr().err


def test_cpu_seconds_include_those_of_ended_children() -> None:
    spinning = "import time\nwhile time.process_time() < 0.2: pass"
    costs = measure(lambda: subprocess.run([sys.executable, "-c", spinning], check=True)).costs
    assert costs[CPU] >= 0.2

"""The measurement of a GPU, tried with a tiny model on the CPU: its figures, its checks, what it skips."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts import gpu_check

SCRIPT = Path(gpu_check.__file__)


@pytest.fixture
def bench() -> gpu_check.ModelBench:
    run = gpu_check.Run(torch.device("cpu"), gpu_check.TINY, minutes=10, seed=0)
    return gpu_check.ModelBench(run, "tiny", gpu_check.TINY.shapes["tiny"])


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leaves one part to measure."""

    def choose(part: str) -> None:
        sizes = dataclasses.replace(gpu_check.TINY, seconds={part: gpu_check.TINY.seconds[part]})
        monkeypatch.setattr(gpu_check, "TINY", sizes)

    return choose


def test_the_script_needs_no_other_file_of_the_repository() -> None:
    """It is carried alone to the machine with the GPU."""
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers", "peft", "safetensors", "numpy"}


def test_the_shapes_have_as_many_weights_as_the_public_models() -> None:
    run = gpu_check.Run(torch.device("cpu"), gpu_check.FULL, minutes=10, seed=0)
    parameters = {
        name: gpu_check.ModelBench(run, name, shape).parameters
        for name, shape in gpu_check.FULL.shapes.items()
    }
    assert parameters == {"0.5b": 494_032_768, "1.5b": 1_543_714_304}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_arithmetic_of_the_formula_is_that_of_the_products_that_torch_counts(
    bench: gpu_check.ModelBench, method: str
) -> None:
    length, shape = 64, bench.shape
    model = bench.build(torch.float32)
    # The counter counts attention as if every token looked at all others: twice the formula's.
    model.config._attn_implementation = "eager"
    expected = bench.count_flops([length], method) + 6 * shape.layers * shape.hidden * length**2
    if method == "lora":
        model = peft.get_peft_model(model, gpu_check.lora_config())
        # Nothing below the first layer is trained, so its three projections need no gradient of their inputs.
        first = model.base_model.model.model.layers[0].self_attn
        projections = (first.q_proj, first.k_proj, first.v_proj)
        frozen = sum(projection.weight.numel() for projection in projections)
        expected -= 2 * length * (frozen + 3 * gpu_check.LORA_RANK * shape.hidden)
    ids = torch.randint(0, shape.vocabulary, (1, length))
    with FlopCounterMode(display=False) as counter:
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        gpu_check.token_losses(model, batch).sum().backward()
    assert counter.get_total_flops() == expected


def test_without_a_device_nothing_is_measured_and_the_status_is_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--json", str(tmp_path / "report.json")]) == gpu_check.EXIT_NO_DEVICE == 3
    output = capsys.readouterr()
    assert output.out == "" and "finds no CUDA device, nothing was measured" in output.err
    assert not (tmp_path / "report.json").exists()


def test_what_does_not_fit_into_the_time_is_left_out_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    assert gpu_check.main(["--tiny", "--minutes", "0.001", "--json", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["part"] for entry in report["skipped"]] == list(gpu_check.FULL.seconds)
    assert "skipped: tiny full: needs up to 0.5 s of time, " in capsys.readouterr().out
    assert report["checks"] == []


def test_a_wrong_answer_after_a_swap_is_a_failed_check_and_status_1(
    only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only("adapters")
    answers = itertools.count()
    monkeypatch.setattr(gpu_check, "answer", lambda *_, **__: str(next(answers)))
    assert gpu_check.main(["--tiny"]) == 1
    assert "FAILED: tiny: every arm repeats its answer bit for bit after all swaps" in capsys.readouterr().out


def test_training_steps_that_differ_are_a_failed_check(
    bench: gpu_check.ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = itertools.count()
    train = bench.train

    def train_differently(model: Any, steps: int) -> Any:
        with torch.no_grad():
            model.model.norm.weight.add_(1e-6 * next(seeds))
        return train(model, steps)

    monkeypatch.setattr(bench, "train", train_differently)
    assert bench.measure_determinism()["tensors_that_differ"] > 0
    assert [check["passed"] for check in bench.run.checks] == [False]


def test_a_part_that_ends_in_an_error_fails_and_leaves_the_others(
    only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    only("precision")
    monkeypatch.setattr(gpu_check, "token_losses", exhaust)
    assert gpu_check.main(["--tiny"]) == 1
    assert "precision runs to its end (OutOfMemoryError: CUDA out of memory.)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tiny_run_measures_every_part_and_passes_every_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "report.json"
    assert gpu_check.main(["--tiny", "--json", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["tiny"] and report["skipped"] == [] and report["ceiling_tflops"] > 0
    assert all(check["passed"] for check in report["checks"])
    tiny = report["models"]["tiny"]
    assert set(gpu_check.FULL.seconds) < set(tiny)
    for method in ("full", "lora"):
        figures = tiny[method]
        assert 0 < figures["ceiling_share"] < 1.5 and 0 <= figures["padding_share"] < 1
        assert figures["useful_tokens_per_second"] > 0 and figures["peak_memory_bytes"] > 0
        assert figures["last_loss"] < figures["first_loss"] < 2 * math.log(512)
    assert tiny["lora"]["trained_parameters"] < tiny["full"]["trained_parameters"] == tiny["parameters"]
    assert tiny["generation"]["tokens_per_second_batch_4"] > 0
    adapters = tiny["adapters"]
    assert adapters["load_seconds"] > adapters["swap_seconds"] > 0 and adapters["wrong_answers"] == 0
    assert adapters["file_bytes"] > 2 * tiny["lora"]["trained_parameters"]
    output = capsys.readouterr().out
    assert "Tiny sizes on a CPU" in output and "ceiling_share" in output

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.models.generation import load_model
from iccm_assets.training.micro_batch_trainer import collate, divide_batch, token_loss
from iccm_assets.training.micro_batches import (
    MIN_CPU_TOKENS,
    PASS_COST_TOKENS,
    Widths,
    divide_step,
    get_max_tokens,
    share_step,
)
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_t5

LENGTHS = st.lists(st.builds(Widths, st.integers(1, 3000), st.integers(0, 1000)), min_size=1, max_size=7)


@given(LENGTHS, st.integers(1, 3))
def test_passes_cover_the_step_within_the_limit_and_no_division_by_length_is_cheaper(
    examples: list[Widths], batch_size: int
) -> None:
    most = get_max_tokens(examples, batch_size, on_cpu=False)
    passes = divide_step(examples, most)
    order = [row for micro_batch in passes for row in micro_batch.rows]
    assert sorted(order) == list(range(len(examples)))
    for rows, widths in passes:
        assert widths == tuple(max(side) for side in zip(*(examples[row] for row in rows), strict=True))
        assert all(len(rows) * width <= limit for width, limit in zip(widths, most, strict=True))

    def cost(groups: list[list[int]]) -> float:
        total = 0.0
        for group in groups:
            widths = [max(side) for side in zip(*(examples[row] for row in group), strict=True)]
            fits = all(len(group) * width <= limit for width, limit in zip(widths, most, strict=True))
            total += PASS_COST_TOKENS + len(group) * sum(widths) if fits else float("inf")
        return total

    best = cost([micro_batch.rows for micro_batch in passes])
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            bounds = [0, *cuts, len(order)]
            assert best <= cost([order[a:b] for a, b in pairwise(bounds)])


@given(LENGTHS, st.integers(1, 3), st.integers(1, 4))
def test_processes_share_a_step_in_equally_many_passes_and_each_example_counts_once(
    examples: list[Widths], batch_size: int, processes: int
) -> None:
    most = get_max_tokens(examples, batch_size, on_cpu=False)
    shares = [share_step(examples, most, processes, rank) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for part in share for row in part.rows]
    assert sorted(rows) == list(range(len(examples)))
    counts = [sum(len(part.rows) for part in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    for part in (part for share in shares for part in share if part.rows):
        widths = [examples[row] for row in part.rows]
        assert part.widths == tuple(max(side) for side in zip(*widths, strict=True))


def test_a_gpu_pass_has_the_memory_of_the_longest_examples_and_a_cpu_some_more() -> None:
    examples = [Widths(1500, 10), Widths(20, 700), Widths(30, 5)]
    assert get_max_tokens(examples, 2, on_cpu=False) == (3000, 1400)
    assert get_max_tokens(examples, 2, on_cpu=True) == (3000, MIN_CPU_TOKENS)
    assert [rows for rows, _ in divide_step([Widths(500, 0)] * 5, Widths(1000, 0))] == [[0], [1, 2], [3, 4]]


@pytest.mark.parametrize("make", [tiny_t5, tiny_gpt2])
def test_a_divided_step_has_the_loss_and_the_gradient_of_the_undivided_one(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    loaded = load_model(make(tmp_path))
    texts = [("x", "It shall run."), ("y" * 70, "It shall stop."), ("zz", "No." * 20), ("x = 1", "Yes.")]
    rows = [loaded.encoder.encode_example(source, text, 200, 200) for source, text in texts]
    batch = collate(loaded, [row for row in rows if row is not None])
    tokens = batch["labels"].ne(-100).sum()

    def compute(parts: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
        loaded.model.zero_grad()
        total = 0.0
        for part in parts:
            labels = part.pop("labels")
            loss = token_loss(loaded.kind, loaded.model(**part), labels, tokens)
            loss.backward()
            total += float(loss.detach())
        gradients = [weight.grad.flatten() for weight in loaded.model.parameters() if weight.grad is not None]
        return total, torch.cat(gradients)

    parts = list(divide_batch(batch, Widths(150, 150)))
    assert len(parts) > 1
    assert sum(part["input_ids"].numel() for part in parts) < batch["input_ids"].numel()
    divided, whole = compute(parts), compute([dict(batch)])
    assert divided[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(divided[1], whole[1], atol=1e-6)

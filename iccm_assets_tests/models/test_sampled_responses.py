"""Samples are drawn by seeds, one for each response, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iccm_assets.models.decoding import SamplingNoise
from iccm_assets.models.generation import generate, load_model, sample
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_t5

SOURCES = ["def f(x):\n    return x\n", "def g(a, b):\n    return a * b + 1\n", "x = 1\n"]


@pytest.mark.parametrize("make", [tiny_t5, tiny_gpt2])
def test_a_seed_gives_the_same_response_alone_and_in_a_batch(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    loaded = load_model(make(tmp_path / "m"), device="cpu")
    limits = {"max_new_tokens": 12, "batch_size": 3}
    together = [row.text for row in sample(loaded, SOURCES, [5, 6, 7], temperature=1.0, **limits)]
    alone = [
        sample(loaded, [source], [seed], temperature=1.0, **limits)[0].text
        for source, seed in zip(SOURCES, (5, 6, 7), strict=True)
    ]
    assert together == alone
    others = [row.text for row in sample(loaded, SOURCES, [8, 9, 10], temperature=1.0, **limits)]
    assert others != together
    greedy = [row.text for row in generate(loaded, SOURCES, **limits)]
    cold = [row.text for row in sample(loaded, SOURCES, [5, 6, 7], temperature=1e-6, **limits)]
    assert cold == greedy != together


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0, 2.0):
        noise = SamplingNoise(range(4000), temperature)
        drawn = noise(torch.zeros(4000, 1), logits.expand(4000, 4)).argmax(-1).bincount(minlength=4) / 4000
        assert torch.allclose(drawn, (logits[0] / temperature).softmax(-1), atol=0.03)

"""Unusual models are trained and generate; unusable ones are rejected by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iccm_assets.errors import ModelError
from iccm_assets.models.generation import generate, load_model
from iccm_assets.training.parent_model import merge_adapter
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.training_jobs import tiny_job
from iccm_assets_tests.factories.unusual_models import UNUSABLE, UNUSUAL, bfloat16, short_gpt2, tied

LONG = "def f(x):\n    return x + 1\n" * 60


@pytest.mark.parametrize("make", UNUSUAL)
@pytest.mark.slow
def test_an_unusual_model_is_trained_published_loaded_and_reads_a_truncated_source(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    outcome = train(tiny_job(tmp_path, make, epochs=1))
    assert outcome.best_validation_loss < outcome.initial_validation_loss
    loaded = load_model(outcome.path)
    assert loaded.digest == outcome.digest
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    long, short = generate(loaded, [LONG, "x = 1"], max_new_tokens=20, batch_size=2)
    assert 1 <= long.output_tokens <= 20 and 1 <= short.output_tokens <= 20


@pytest.mark.parametrize("make", [tied, bfloat16, short_gpt2])
def test_an_adapter_of_an_unusual_model_gives_the_logits_of_its_merged_float32_weights(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, make, epochs=1, method="lora")
    outcome = train(job)
    assert outcome.weight_change.relative > 0
    merged = merge_adapter(Path(outcome.path), Path(job.base), device="cpu").model
    assert {weight.dtype for weight in merged.parameters()} == {torch.float32}
    before, after = load_model(job.base).model.state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    ids = torch.tensor([[5, 6, 7, 8]])
    extra = {"decoder_input_ids": ids} if merged.config.is_encoder_decoder else {}
    with torch.inference_mode():
        expected = load_model(outcome.path, device="cpu").model(input_ids=ids, **extra).logits
        assert torch.allclose(merged(input_ids=ids, **extra).logits, expected, atol=1e-5)
        assert not torch.allclose(
            load_model(job.base).model(input_ids=ids, **extra).logits, expected, atol=1e-5
        )


@pytest.mark.parametrize("make", UNUSABLE)
def test_an_unusable_model_is_rejected_by_name(make: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=make(tmp_path / "model")):
        load_model(tmp_path / "model")
    assert not (tmp_path / "model" / "ran").exists()


def test_more_new_tokens_than_a_model_has_positions_is_an_error_that_names_the_setting(
    tmp_path: Path,
) -> None:
    loaded = load_model(short_gpt2(tmp_path))
    with pytest.raises(ModelError, match=r"128 tokens.*ICCM_EVALUATION__MAX_NEW_TOKENS"):
        generate(loaded, ["x"], max_new_tokens=128, batch_size=1)

"""Unusual models are trained and generate; unusable ones are rejected by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iccm_assets.errors import ModelError
from iccm_assets.models.generation import generate, load_model
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
def test_adapters_on_an_unusual_model_are_merged_into_float32_weights(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, make, epochs=1, method="lora")
    outcome = train(job)
    assert outcome.weight_change.relative > 0
    before, after = load_model(job.base).model.state_dict(), load_model(outcome.path).model.state_dict()
    assert before.keys() == after.keys()
    assert json.loads((Path(outcome.path) / "config.json").read_text())["dtype"] == "float32"
    assert not list(Path(outcome.path).glob("adapter*"))


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

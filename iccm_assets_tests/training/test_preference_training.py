"""Learning to prefer accepted requirements to worse-scored answers (L12)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iccm_assets import settings as settings_module
from iccm_assets.errors import SettingsError, TrainingDivergedError, TrainingError
from iccm_assets.models.generation import load_model
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.settings import TrainingSettings, load_settings
from iccm_assets.training.dataset import Dataset
from iccm_assets.training.finetuning import FineTuneResult
from iccm_assets.training.preference_training import encode_pairs, fine_tune_preferences
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_t5
from iccm_assets_tests.factories.training_jobs import FAST, tiny_job, tiny_pairs


def fine_tune(directory: Path, dataset: Dataset | None = None, **config: Any) -> FineTuneResult:
    training = TrainingSettings(**{**FAST, "objective": "dpo", **config})
    return fine_tune_preferences(
        load_model(directory),
        dataset or tiny_pairs(),
        training,
        epochs=training.epochs,
        scratch=directory.parent / "scratch",
        on_progress=lambda point: None,
    )


def measure_margin(loaded: Any, dataset: Dataset) -> float:
    """How much likelier the accepted texts are than the rejected ones, in nats a pair."""
    training = TrainingSettings(objective="dpo")
    pairs, _, _ = encode_pairs(loaded, dataset, training)
    total = 0.0
    for pair in pairs:
        for sign, answer in ((1, pair["chosen_ids"]), (-1, pair["rejected_ids"])):
            ids = torch.tensor([[*pair["prompt_ids"], *answer]])
            with torch.inference_mode():
                logits = loaded.model(ids).logits[0].log_softmax(-1)
            start = len(pair["prompt_ids"])
            total += sign * sum(float(logits[start + n - 1, token]) for n, token in enumerate(answer))
    return total / len(pairs)


def test_a_causal_model_learns_to_prefer_what_was_accepted_and_the_same_bits_each_time(
    tmp_path: Path,
) -> None:
    directory = tiny_gpt2(tmp_path / "m")
    before = measure_margin(load_model(directory), tiny_pairs())
    trained = fine_tune(directory)
    assert measure_margin(trained.loaded, tiny_pairs()) > before + 1.0
    validation = [point.validation_loss for point in trained.history if point.validation_loss is not None]
    assert validation[0] == pytest.approx(0.6931, abs=1e-3) and min(validation) < validation[0]
    assert (
        trained.counts["new"] == 11 and trained.counts["validation"] == 1 and trained.counts["too_long"] == 0
    )
    again = fine_tune(directory)
    first, second = (dict(run.loaded.model.named_parameters()) for run in (trained, again))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert trained.history == again.history


def test_a_preference_candidate_is_published_like_any_version(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_gpt2, objective="dpo", epochs=1)
    points: list[LossPoint] = []
    outcome = train(job, progress=points.append)
    base, candidate = load_model(job.base), load_model(outcome.path)
    # As in any training: the cache of keys and values is off while training, and asked for when answering.
    assert candidate.model.config.to_diff_dict() == base.model.config.to_diff_dict() | {"use_cache": False}
    assert outcome.weight_change.changed_share > 0 and points
    assert "| objective | dpo |" in (Path(outcome.path) / "README.md").read_text(encoding="utf-8")
    assert candidate.encoder.prompt == base.encoder.prompt


def test_a_seq2seq_model_and_adapters_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="seq2seq"):
        fine_tune(tiny_t5(tmp_path / "t5"))
    with pytest.raises(SettingsError, match=r"as an adapter.*ICCM_TRAINING__METHOD=full"):
        fine_tune(tiny_gpt2(tmp_path / "gpt2"), method="lora")


def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_gpt2(tmp_path / "m")
    assert load_settings(training={"objective": "dpo"}).training.objective == "dpo"
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(TrainingError, match=r"iccm-assets\[dpo\]"):
        fine_tune(directory)
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"iccm-assets\[dpo\]"):
        load_settings(training={"objective": "dpo"})


def test_a_loss_that_is_not_finite_ends_the_training_by_name(tmp_path: Path) -> None:
    directory = tiny_gpt2(tmp_path / "m")
    loaded = load_model(directory)
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight.fill_(float("nan"))
    training = TrainingSettings(**{**FAST, "objective": "dpo"})
    with pytest.raises(TrainingDivergedError, match="step 0"):
        fine_tune_preferences(
            loaded, tiny_pairs(), training, epochs=1, scratch=tmp_path / "s", on_progress=lambda point: None
        )


def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    loaded = load_model(tiny_gpt2(tmp_path / "m"))
    pairs = tiny_pairs()
    long = replace(pairs.examples[0], rejected="x" * 600, role="new")
    dataset = Dataset((long, *pairs.examples[1:]), pairs.seed)
    _, _, counts = encode_pairs(loaded, dataset, TrainingSettings(objective="dpo"))
    assert counts["too_long"] == 1
    none = Dataset(tuple(row for row in pairs.examples if row.role == "validation"), 1)
    with pytest.raises(TrainingError, match="no pairs to train with"):
        encode_pairs(loaded, none, TrainingSettings(objective="dpo"))

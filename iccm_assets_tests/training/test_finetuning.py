from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iccm_assets.errors import TrainingDivergedError, TrainingError
from iccm_assets.models.generation import generate, load_model
from iccm_assets.models.tokenization import IGNORE_INDEX
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.dataset import Dataset
from iccm_assets.training.finetuning import (
    FineTuneResult,
    fine_tune,
    make_training_arguments,
)
from iccm_assets.training.micro_batch_trainer import collate, token_loss
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_llama, tiny_t5
from iccm_assets_tests.factories.training_jobs import FAST, tiny_dataset

MAKERS = [tiny_t5, tiny_gpt2, tiny_llama]


def run(
    directory: Path,
    on_point: Callable[[LossPoint], None] = lambda point: None,
    dataset: Dataset | None = None,
    **config: object,
) -> FineTuneResult:
    training = TrainingSettings(**{**FAST, **config})
    return fine_tune(
        load_model(directory),
        dataset or tiny_dataset(),
        training,
        epochs=training.epochs,
        scratch=directory.parent / "scratch",
        on_progress=on_point,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("make", MAKERS)
def test_any_architecture_is_trained_by_either_method(
    make: Callable[[Path], Path], method: str, tmp_path: Path
) -> None:
    trained = run(make(tmp_path / "m"), method=method, epochs=3, learning_rate=1e-2)
    losses = [point.validation_loss for point in trained.history if point.validation_loss is not None]
    assert min(losses[1:]) < losses[0] - 0.1
    assert 0 < trained.weight_change.relative < 1
    assert {weight.dtype for weight in trained.loaded.model.parameters()} == {torch.float32}
    trainable = [name for name, weight in trained.loaded.model.named_parameters() if weight.requires_grad]
    assert all(("lora_" in name) == (method == "lora") for name in trainable)


def test_the_first_recorded_losses_are_means_over_all_target_tokens_of_the_step(tmp_path: Path) -> None:
    """Recomputed here: one step over everything, split into uneven batches, without dropout."""
    directory = tiny_gpt2(tmp_path / "m")
    loaded = load_model(directory)
    rows = tiny_dataset().with_roles("new", "rehearsal")
    total, tokens = 0.0, 0
    for row in rows:
        encoded = loaded.encoder.encode_example(row.source_code, row.requirements, 2048, 1024)
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
        for position, label in enumerate(encoded.labels):
            if label != IGNORE_INDEX:
                total -= float(logits[position - 1, label])
                tokens += 1
    loaded.model.config.attn_pdrop = loaded.model.config.embd_pdrop = loaded.model.config.resid_pdrop = 0.0
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    training = TrainingSettings(**{**FAST, "batch_size": 5, "gradient_accumulation_steps": 100, "epochs": 1})
    trained = fine_tune(
        loaded, tiny_dataset(), training, epochs=1, scratch=tmp_path / "s", on_progress=lambda point: None
    )
    [first] = [point.loss for point in trained.history if point.loss is not None]
    assert first == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_neither_prompt_nor_padding_carries_loss(make: Callable[[Path], Path], tmp_path: Path) -> None:
    loaded = load_model(make(tmp_path))
    rows = [
        loaded.encoder.encode_example(source, "It shall run.", 100, 100) for source in ("x", "y" * 40, "zz")
    ]

    def loss(batch_rows: list) -> float:
        batch = collate(loaded, batch_rows)
        labels = batch.pop("labels")
        with torch.inference_mode():
            return float(token_loss(loaded.kind, loaded.model(**batch), labels))

    assert loss(rows) == pytest.approx(sum(loss([row]) for row in rows) / 3, rel=1e-5)


def test_every_step_and_every_epoch_is_reported_in_order_with_a_warm_up(tmp_path: Path) -> None:
    points: list[LossPoint] = []
    trained = run(tiny_t5(tmp_path / "m"), points.append, epochs=5, learning_rate=1e-3)
    assert tuple(points) == trained.history
    steps = [point for point in points if point.loss is not None]
    assert [point.step for point in steps] == list(range(1, steps[0].total_steps + 1))
    assert [point.epoch for point in points if point.validation_loss is not None] == [0, 1, 2, 3, 4, 5]
    rates = [point.learning_rate for point in steps]
    warm_up = int(0.2 * len(steps))
    assert rates[0] < rates[warm_up] == max(rates)
    assert 0 < rates[-1] < max(rates) / 5


def test_warm_up_is_ten_steps_but_at_most_a_fifth_of_all() -> None:
    def warm_up(examples: int) -> float:
        return make_training_arguments(TrainingSettings(), 5, examples, Path("scratch")).warmup_steps

    assert warm_up(400) == 10
    assert warm_up(40) == 5
    assert warm_up(3) == 1


def test_the_best_epoch_is_kept_and_training_stops_when_it_gets_worse(tmp_path: Path) -> None:
    # What is learned here soon makes validation worse: it is held to characters that no training text has.
    dataset = tiny_dataset()
    contradicting = [
        replace(row, requirements="QQ ## ZZ ~~ !!") if row.role == "validation" else row
        for row in dataset.examples
    ]
    contrary = Dataset(tuple(contradicting), dataset.seed)
    trained = run(tiny_t5(tmp_path / "m"), dataset=contrary, epochs=12, learning_rate=1e-2)
    losses = {
        point.step: point.validation_loss for point in trained.history if point.validation_loss is not None
    }
    epochs = {step: loss for step, loss in losses.items() if step > 0}
    assert trained.best_step == min(epochs, key=epochs.__getitem__)
    assert trained.stopped_early
    assert len(epochs) == [*epochs].index(trained.best_step) + 3 < 12  # two more were waited for
    model = trained.loaded.model
    rows = contrary.with_roles("validation")
    encoded = [
        trained.loaded.encoder.encode_example(row.source_code, row.requirements, 2048, 1024) for row in rows
    ]
    batch = collate(trained.loaded, encoded)
    labels = batch.pop("labels")
    with torch.inference_mode():
        kept = float(token_loss("seq2seq", model(**batch), labels))
    assert kept == pytest.approx(epochs[trained.best_step], rel=1e-4)


def test_averaging_interpolates_between_production_and_the_trained_weights(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path / "m")
    before = {name: weight.clone() for name, weight in load_model(directory).model.named_parameters()}
    fully_trained = dict(run(directory).loaded.model.named_parameters())
    trained = run(directory, weight_averaging_alpha=0.25)
    for name, weight in trained.loaded.model.named_parameters():
        expected = before[name] + 0.25 * (fully_trained[name] - before[name])
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert trained.weight_change.relative == pytest.approx(
        0.25 * run(directory).weight_change.relative, rel=1e-3
    )


def test_the_weight_change_is_measured_against_production(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path / "m")
    before = torch.cat(
        [weight.detach().flatten() for weight in load_model(directory).model.parameters()]
    ).double()
    trained = run(directory)
    after = torch.cat([weight.detach().flatten() for weight in trained.loaded.model.parameters()]).double()
    assert trained.weight_change.relative == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-6
    )
    assert trained.weight_change.largest == pytest.approx(float((after - before).abs().max()))
    assert trained.parameters == len(before)


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path / "m")
    loaded = load_model(directory)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="loss is nan"):
        fine_tune(
            loaded,
            tiny_dataset(),
            TrainingSettings(),
            epochs=1,
            scratch=tmp_path / "s",
            on_progress=lambda point: None,
        )


def test_a_gradient_that_is_not_finite_stops_the_run_by_name(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path / "m")
    loaded = load_model(directory)
    next(loaded.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingDivergedError, match=r"grad norm is (nan|inf)"):
        fine_tune(
            loaded,
            tiny_dataset(),
            TrainingSettings(),
            epochs=1,
            scratch=tmp_path / "s",
            on_progress=lambda point: None,
        )


def test_what_the_progress_callback_raises_stops_the_run(tmp_path: Path) -> None:
    def stop(point: LossPoint) -> None:
        if point.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_t5(tmp_path / "m"), stop)


def test_the_process_keeps_its_own_torch_settings(tmp_path: Path) -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    run(tiny_t5(tmp_path / "m"), threads=1, epochs=1)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_examples_that_are_too_long_are_left_out_and_counted_and_the_answers_end(tmp_path: Path) -> None:
    """A tenth is too long; cut examples would teach to end in the middle (L10)."""
    rows = list(tiny_dataset(40).examples)
    for index in range(0, len(rows), 10):
        rows[index] = replace(rows[index], requirements="It shall " * 40)
    dataset = Dataset(tuple(rows), 3)
    trained = run(
        tiny_gpt2(tmp_path / "m"), dataset=dataset, max_target_tokens=60, learning_rate=1e-2, epochs=12,
        max_grad_norm=1.0,
    )  # fmt: skip
    assert trained.counts["too_long"] == 8
    assert sum(trained.counts[role] for role in ("new", "rehearsal", "validation")) == 72
    sources = [row.source_code for row in rows if len(row.requirements) < 60][:10]
    answers = generate(trained.loaded, sources, max_new_tokens=60, batch_size=5)
    assert all(answer.is_complete and answer.text.endswith(".") for answer in answers)


def test_a_set_whose_examples_are_all_too_long_is_rejected_with_the_settings(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"32 that are too long .* Raise ICCM_TRAINING__MAX_SOURCE_TOKENS"
    ):
        run(tiny_t5(tmp_path / "m"), max_target_tokens=8)


def test_a_set_without_training_examples_is_rejected(tmp_path: Path) -> None:
    only_validation = Dataset(tuple(tiny_dataset().with_roles("validation")), 3)
    with pytest.raises(TrainingError, match="no examples to train with"):
        fine_tune(
            load_model(tiny_t5(tmp_path / "m")), only_validation, TrainingSettings(), epochs=1,
            scratch=tmp_path / "s", on_progress=lambda point: None,
        )  # fmt: skip

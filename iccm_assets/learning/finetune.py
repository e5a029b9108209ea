"""The training loop: Hugging Face ``Trainer``, set up so that it is careful and repeatable (L1, L2, L5).

Weights are float32 whatever the checkpoint holds: in bfloat16 updates of 1e-6 round to nothing. The loss
counts target tokens only and is their mean over a whole optimiser step, however it is cut into batches.
Runs in the trainer process; knows neither the database nor the model store.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from iccm_assets.errors import TrainingDiverged, TrainingError
from iccm_assets.learning import resume
from iccm_assets.learning.dataset import Dataset
from iccm_assets.learning.job import LossPoint, Movement
from iccm_assets.models.encoding import IGNORED, Encoded, Kind, encode_example, pad, pad_token
from iccm_assets.models.seq import LoadedModel, decoder_start, load_model, positions, set_threads
from iccm_assets.settings import Training

OnPoint = Callable[[LossPoint], None]


@dataclass(frozen=True)
class Trained:
    """The trained model (in evaluation mode, adapters merged, averaged) and its curve."""

    loaded: LoadedModel
    history: tuple[LossPoint, ...]
    best_step: int
    stopped_early: bool
    movement: Movement
    parameters: int
    resumed_from_step: int = 0


def fine_tune(
    loaded: LoadedModel,
    dataset: Dataset,
    config: Training,
    *,
    epochs: int,
    scratch: Path,
    on_point: OnPoint,
    identity: str | None = None,
) -> Trained:
    """Train on the dataset's new and rehearsal examples, keep the epoch of least validation loss.

    ``scratch`` takes the Trainer's checkpoints and may be deleted afterwards. ``on_point`` is called
    for every step and evaluation and may raise to stop. With an ``identity``, which names this training,
    each epoch's checkpoint can be gone on from, and one that lies in ``scratch`` is, to the same bits.
    Raises ``TrainingDiverged`` when the loss, the gradient or a weight is not finite.
    """
    kept = None if identity is None else resume.find(scratch, identity)
    production = {name: weight.detach().cpu().clone() for name, weight in loaded.model.named_parameters()}
    train = _encode(loaded, dataset, config, "new", "rehearsal")
    validation = _encode(loaded, dataset, config, "validation")
    with _repeatable(config):
        model = _trainable(loaded.model, config)
        recorder = _Recorder(on_point, identity, kept.history if kept else ())
        arguments = _arguments(
            config,
            epochs,
            len(train),
            scratch,
            # Optimiser state is three quarters of a checkpoint: written only to go on from.
            save_only_model=identity is None,
            eval_on_start=kept is None,
        )
        trainer = _trainer(loaded, model, train, validation, config, arguments, recorder)
        trainer.train(resume_from_checkpoint=str(kept.checkpoint) if kept else None)
        best_step = _best_step(trainer, recorder)
        model = _merged(trainer.model, loaded, config, scratch)
        _average(model, production, config.interpolation)
        movement = _movement(model, production)
    steps = [point.step for point in recorder.history]
    return Trained(
        replace(loaded, model=model.eval()),
        tuple(recorder.history),
        best_step,
        stopped_early=max(steps, default=0) < trainer.state.max_steps,
        movement=movement,
        parameters=sum(weight.numel() for weight in model.parameters()),
        resumed_from_step=kept.step if kept else 0,
    )


class _Recorder(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's logs into loss points, refuses what is not finite, marks whole checkpoints (L4)."""

    def __init__(self, on_point: OnPoint, identity: str | None, history: Sequence[LossPoint]) -> None:
        self.history: list[LossPoint] = list(history)
        self._on_point = on_point
        self._identity = identity

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self._record(
                state,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm", 0.0),
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self._record(state, validation_loss=metrics["eval_loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The Trainer forgets on resuming that it was about to stop: from there it would train on too long.
        if self._identity is not None and not control.should_training_stop:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            resume.mark(checkpoint, self._identity, self.history)

    def _record(self, state: Any, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"{name.replace('_', ' ')} is {value} at step {state.global_step}")
        point = LossPoint(state.global_step, state.max_steps, float(state.epoch or 0.0), **values)
        self.history.append(point)
        self._on_point(point)


class _Collator:
    """Pads encoded examples to one batch of tensors; makes the decoder's input for seq2seq models."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._kind: Kind = loaded.kind
        self._filler = pad_token(loaded.tokenizer)
        self._start = decoder_start(loaded.model) if loaded.kind == "seq2seq" else 0

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        inputs = [row.input_ids for row in rows]
        batch = {
            "input_ids": pad(inputs, self._filler),
            "attention_mask": pad([[1] * len(row) for row in inputs], 0),
            "labels": pad([row.labels for row in rows], IGNORED),
        }
        if self._kind == "seq2seq":
            batch["decoder_input_ids"] = pad([[self._start, *row.labels[:-1]] for row in rows], self._filler)
        return {name: torch.tensor(values) for name, values in batch.items()}


class _TokenLoss:
    """Cross entropy summed over target tokens, divided by the target tokens of the optimiser step."""

    def __init__(self, kind: Kind) -> None:
        self._shifted = kind == "causal"

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        if self._shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        total = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )
        return total / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def _trainer(
    loaded: LoadedModel,
    model: Any,
    train: list[Encoded],
    validation: list[Encoded],
    config: Training,
    arguments: TrainingArguments,
    recorder: _Recorder,
) -> Trainer:
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=_Collator(loaded),
        compute_loss_func=_TokenLoss(loaded.kind),
        callbacks=[recorder, EarlyStoppingCallback(config.early_stopping_patience)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(
    config: Training,
    epochs: int,
    examples: int,
    scratch: Path,
    *,
    save_only_model: bool = True,
    eval_on_start: bool = True,
) -> TrainingArguments:
    batches = math.ceil(examples / config.batch_size)
    steps = epochs * math.ceil(batches / config.gradient_accumulation_steps)
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=max(8, config.batch_size),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=min(config.warmup_steps, int(config.max_warmup_share * steps)),
        max_grad_norm=config.max_grad_norm,
        eval_strategy="epoch",
        eval_on_start=eval_on_start,
        save_strategy="epoch",
        save_only_model=save_only_model,
        restore_callback_states_from_checkpoint=not save_only_model,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        disable_tqdm=True,
        report_to="none",
        seed=config.seed,
        data_seed=config.seed,
    )


@contextlib.contextmanager
def _repeatable(config: Training) -> Iterator[None]:
    """Fixed seeds, threads and algorithms while training; the process's own settings afterwards (L5)."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    set_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    set_seed(config.seed)
    try:
        yield
    finally:
        set_threads(threads)
        torch.use_deterministic_algorithms(strict)


def _encode(loaded: LoadedModel, dataset: Dataset, config: Training, *roles: Any) -> list[Encoded]:
    examples = dataset.of_role(*roles)
    if not examples:
        raise TrainingError(f"the training set has no {' or '.join(roles)} examples")
    room = positions(loaded)
    return [
        encode_example(
            loaded.tokenizer,
            loaded.kind,
            one.source_code,
            one.requirements,
            config.max_source_tokens,
            config.max_target_tokens,
            room,
        )
        for one in examples
    ]


def _best_step(trainer: Trainer, recorder: _Recorder) -> int:
    """The step of the least validation loss among the epochs; the Trainer has loaded that checkpoint."""
    best = trainer.state.best_global_step
    if not best:
        raise TrainingDiverged(f"no epoch was evaluated in {len(recorder.history)} records")
    return int(best)


def _trainable(model: Any, config: Training) -> Any:
    """The model as the Trainer gets it: all of it in float32, or adapters on a frozen half-precision base."""
    if config.method == "full":
        return model.float()
    from peft import LoraConfig, get_peft_model

    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return get_peft_model(
        model.to(torch.bfloat16) if half else model.float(),
        LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear"),
    )


def _merged(model: Any, loaded: LoadedModel, config: Training, scratch: Path) -> Any:
    """The whole model in float32; adapters are merged into production's own, unrounded weights."""
    if config.method == "full":
        return model
    from peft import PeftModel

    model.save_pretrained(scratch / "adapter")
    fresh = load_model(loaded.path, device=str(loaded.model.device)).model
    return PeftModel.from_pretrained(fresh, str(scratch / "adapter")).merge_and_unload()


@torch.no_grad()
def _average(model: Any, production: dict[str, torch.Tensor], share: float) -> None:
    """weights = (1 - share) × production + share × trained; share 1 leaves the trained ones alone."""
    if share == 1.0:
        return
    for name, weight in model.named_parameters():
        weight.copy_(torch.lerp(production[name].to(weight.device, torch.float32), weight.float(), share))


@torch.no_grad()
def _movement(model: Any, production: dict[str, torch.Tensor]) -> Movement:
    """Compare with production's weights; raises ``TrainingDiverged`` naming one that is not finite."""
    moved = length = largest = 0.0
    changed = total = 0
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise TrainingDiverged(f"weight {name} is not finite")
        before = production[name].double()
        difference = weight.detach().cpu().double() - before
        moved += float(difference.square().sum())
        length += float(before.square().sum())
        largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
        changed += int(difference.count_nonzero())
        total += difference.numel()
    return Movement(
        math.sqrt(moved / length) if length else math.sqrt(moved), largest, changed / max(1, total)
    )

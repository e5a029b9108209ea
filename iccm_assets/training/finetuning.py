"""Fine-tune with the Hugging Face ``Trainer``, configured to be cautious and reproducible (L1, L2, L5).

Weights are float32, even if the checkpoint's are not: in bfloat16, updates of 1e-6 round to zero. The loss
covers target tokens only and is their mean over a whole optimizer step. The Trainer draws the examples of a
step together; they are divided into few forward passes of examples of similar length, which adds up to the
same gradient. Runs in the trainer process, without the database and the model store.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from iccm_assets.errors import TrainingDivergedError, TrainingError
from iccm_assets.models.generation import (
    LoadedModel,
    context_length,
    set_threads,
)
from iccm_assets.models.tokenization import (
    EncodedExample,
)
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.settings import TrainingSettings
from iccm_assets.training import checkpointing
from iccm_assets.training.dataset import Dataset
from iccm_assets.training.micro_batch_trainer import MicroBatchTrainer, collate, measure, token_loss
from iccm_assets.training.micro_batches import get_max_tokens
from iccm_assets.training.run_tracking import RunReporter
from iccm_assets.training.training_method import resolve_method
from iccm_assets.training.whole_model import WholeModelTraining, has_bf16
from iccm_assets.training.worker_protocol import WeightChange

if TYPE_CHECKING:
    from iccm_assets.training.process_group import ProcessGroup

ProgressCallback = Callable[[LossPoint], None]
DescribeStart = Callable[[Mapping[str, Any], Mapping[str, Any], int], Mapping[str, Any]]
Tracking = tuple[RunReporter, DescribeStart]


@dataclass(frozen=True)
class FineTuneResult:
    """The trained model (in evaluation mode, averaged, or with its adapter) and its loss curve.

    ``counts`` are those of the training set, without the examples that are too long, and their number (L10).
    """

    loaded: LoadedModel
    history: tuple[LossPoint, ...]
    best_step: int
    stopped_early: bool
    weight_change: WeightChange
    parameters: int
    counts: Mapping[str, int]
    resumed_from_step: int = 0


def fine_tune(
    loaded: LoadedModel,
    dataset: Dataset,
    config: TrainingSettings,
    *,
    epochs: int,
    scratch: Path,
    on_progress: ProgressCallback,
    identity: str | None = None,
    adapter: Path | None = None,
    tracking: Tracking | None = None,
    group: ProcessGroup | None = None,
) -> FineTuneResult | None:
    """Train on the dataset's new and rehearsal examples, and use the epoch of least validation loss.

    The method is ``full`` or ``lora``; ``lora`` continues the ``adapter`` of a directory, or begins one.

    ``scratch`` holds the Trainer's checkpoints and may be deleted afterwards. ``on_progress`` is called for
    every step and evaluation and may raise to stop. With an ``identity`` of this training, each epoch's
    checkpoint can be resumed, and a matching one in ``scratch`` is resumed, with the same bits as a
    result. With ``tracking`` the course of the training is sent to experiment trackers, too. Of a ``group``
    of processes that train together, all but the main one return None. Raises ``TrainingDivergedError`` if
    the loss, the gradient or a weight is not finite.
    """
    checkpoint = _find_checkpoint(scratch, identity, group)
    config = resolve_method(config, sum(weight.numel() for weight in loaded.model.parameters()))
    training = _select_training(config, adapter, keeps_parent=group is None or group.is_main)
    train, validation, counts = _encode(loaded, dataset, config)
    with reproducible(config):
        disable_cache(loaded.model)
        model = training.begin(loaded.model, config)
        recorder = ProgressRecorder(on_progress, identity, checkpoint.history if checkpoint else ())
        arguments = make_training_arguments(
            config,
            epochs,
            len(train),
            scratch,
            # Optimizer state is three quarters of a checkpoint: written only if the training can be resumed.
            save_only_model=identity is None,
            eval_on_start=checkpoint is None,
            **({} if group is None else make_group_arguments(group)),
        )
        trainer = MicroBatchTrainer(
            max_tokens=get_max_tokens(
                [measure(example, loaded.kind) for example in train],
                config.batch_size,
                on_cpu=loaded.model.device.type == "cpu",
            ),
            kind=loaded.kind,
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=sorted(validation, key=lambda example: measure(example, loaded.kind)),
            data_collator=partial(collate, loaded),
            compute_loss_func=partial(token_loss, loaded.kind),
            callbacks=make_callbacks(recorder, config, tracking),
        )
        run_trainer(trainer, recorder, str(checkpoint.checkpoint) if checkpoint else None)
        if group is not None:
            group.wait()  # the main process deletes the checkpoints next
            if not group.is_main:
                return None
        model = _get_whole_model(trainer, loaded, group)
        weight_change = training.finish(model, config)
    result = build_result(replace(loaded, model=model.eval()), trainer, recorder, weight_change, counts)
    return replace(result, resumed_from_step=checkpoint.step if checkpoint else 0)


def run_trainer(trainer: Trainer, recorder: ProgressRecorder, checkpoint: str | None = None) -> None:
    """Train, from a checkpoint if one is given, to the epoch of least validation loss.

    Raises ``TrainingDivergedError`` if no epoch was evaluated.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    if not trainer.state.best_global_step:
        raise TrainingDivergedError(f"no epoch was evaluated in {len(recorder.history)} records")


def build_result(
    trained: LoadedModel,
    trainer: Trainer,
    recorder: ProgressRecorder,
    weight_change: WeightChange,
    counts: Mapping[str, int],
) -> FineTuneResult:
    """Describe a finished training."""
    return FineTuneResult(
        trained,
        tuple(recorder.history),
        int(trainer.state.best_global_step),
        stopped_early=max(point.step for point in recorder.history) < trainer.state.max_steps,
        weight_change=weight_change,
        parameters=sum(weight.numel() for weight in trained.model.parameters()),
        counts=counts,
    )


def make_callbacks(
    recorder: ProgressRecorder, config: TrainingSettings, tracking: Tracking | None
) -> list[TrainerCallback]:
    """Return the Trainer's callbacks: progress, early stopping, and the trackers, if there are any."""
    trackers = [_TrackerForwarder(*tracking)] if tracking and tracking[0].trackers else []
    return [recorder, EarlyStoppingCallback(config.early_stopping_patience), *trackers]


def _find_checkpoint(
    scratch: Path, identity: str | None, group: ProcessGroup | None
) -> checkpointing.ResumePoint | None:
    """Return the checkpoint to resume, the same in all processes: the main one looks for it."""
    if identity is None:
        return None
    find = partial(checkpointing.find_resume_point, scratch, identity)
    return find() if group is None else group.call_in_main(find)


def _get_whole_model(trainer: Trainer, loaded: LoadedModel, group: ProcessGroup | None) -> Any:
    """Return the trained model: of a sharded one its best checkpoint, which has whole weights, on the CPU."""
    if group is None or not group.is_sharded:
        return trainer.model
    best = trainer.state.best_model_checkpoint
    return type(loaded.model).from_pretrained(best, dtype=torch.float32)


class ProgressRecorder(TrainerCallback):  # type: ignore[misc]
    """Records loss points, raises on values that are not finite, and marks complete checkpoints (L4)."""

    def __init__(
        self, on_progress: ProgressCallback, identity: str | None, history: Sequence[LossPoint]
    ) -> None:
        self.history: list[LossPoint] = list(history)
        self._on_progress = on_progress
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
        if args.world_size > 1:
            torch.distributed.barrier()  # each process writes a part of the checkpoint
        # A checkpoint does not record that training was about to stop: a resumed run would train too long.
        if self._identity is not None and not control.should_training_stop and args.process_index == 0:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checkpointing.mark_complete(checkpoint, self._identity, self.history)

    def _record(self, state: Any, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"{name.replace('_', ' ')} is {value} at step {state.global_step}"
                )
        point = LossPoint(state.global_step, state.max_steps, float(state.epoch or 0.0), **values)
        self.history.append(point)
        self._on_progress(point)


class _TrackerForwarder(TrainerCallback):  # type: ignore[misc]
    """Sends what the Trainer tells its callbacks to the process where the trackers' own ones are."""

    def __init__(self, reporter: RunReporter, describe_start: DescribeStart) -> None:
        self._reporter = reporter
        self._describe_start = describe_start

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        parameters = sum(weight.numel() for weight in model.parameters())
        self._reporter.send(self._describe_start(args.to_dict(), model.config.to_dict(), parameters))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        step = {"step": state.global_step, "total_steps": state.max_steps, "epoch": state.epoch}
        self._reporter.send({"log": {**step, "logs": dict(logs)}})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reporter.send({"finish": {}})


def make_training_arguments(
    config: TrainingSettings,
    epochs: int,
    examples: int,
    scratch: Path,
    *,
    save_only_model: bool = True,
    eval_on_start: bool = True,
    make: Callable[..., Any] = TrainingArguments,
    **more: Any,
) -> Any:
    """Return the Trainer's arguments, of the type ``make``; ``more`` of them replace these."""
    examples_per_step = config.batch_size * config.gradient_accumulation_steps
    steps = epochs * math.ceil(examples / examples_per_step)
    values = dict(
        output_dir=str(scratch),
        per_device_train_batch_size=examples_per_step,
        per_device_eval_batch_size=max(8, config.batch_size),
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
        bf16=has_bf16(),
        disable_tqdm=True,
        report_to="none",
        seed=config.seed,
        data_seed=config.seed,
    )
    return make(**{**values, **more})


def make_group_arguments(group: ProcessGroup) -> dict[str, Any]:
    """Return the Trainer's arguments that differ where several processes train together."""
    return {
        # Each process has the whole step, so that it knows its tokens.
        "average_tokens_across_devices": False,
        "use_cpu": group.device.type == "cpu",
        # `accelerate launch` says so, by the file's mixed_precision.
        "bf16": os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16",
    }


@contextlib.contextmanager
def reproducible(config: TrainingSettings) -> Iterator[None]:
    """Fix seeds, threads and algorithms for the block; restore the process's settings afterwards (L5)."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    set_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    set_seed(config.seed)
    try:
        yield
    finally:
        set_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _encode(
    loaded: LoadedModel, dataset: Dataset, config: TrainingSettings
) -> tuple[list[EncodedExample], list[EncodedExample], dict[str, int]]:
    """Tokenize the examples to train and to validate with, and count them; those too long are left out."""
    limits = (config.max_source_tokens, config.max_target_tokens, context_length(loaded))
    encoded = [
        (row, loaded.encoder.encode_example(row.source_code, row.requirements, *limits))
        for row in dataset.examples
    ]
    fitting = Dataset(tuple(row for row, example in encoded if example is not None), dataset.seed)
    too_long = len(dataset.examples) - len(fitting.examples)
    train = [example for row, example in encoded if example and row.role != "validation"]
    validation = [example for row, example in encoded if example and row.role == "validation"]
    for examples, purpose in ((train, "train"), (validation, "validate")):
        if not examples:
            raise TrainingError(
                f"the training set has no examples to {purpose} with, and {too_long} that are too long"
                f" ({config.max_source_tokens} source and {config.max_target_tokens} target tokens,"
                f" context {limits[2] or 'unlimited'})",
                hint="Raise ICCM_TRAINING__MAX_SOURCE_TOKENS and ICCM_TRAINING__MAX_TARGET_TOKENS, or use a"
                " model with a longer context.",
            )
    return train, validation, {**fitting.counts, "too_long": too_long}


def _select_training(config: TrainingSettings, adapter: Path | None, *, keeps_parent: bool) -> Any:
    """Return how weights become trainable and are compared with their parent's, by the method."""
    if config.method == "full":
        return WholeModelTraining(keeps_parent=keeps_parent)
    from iccm_assets.training.adapter_training import AdapterTraining

    return AdapterTraining(adapter)


def disable_cache(model: Any) -> None:
    """Turn off the cache of keys and values, which training does not use."""
    # The Trainer turns the cache of keys and values off in the model's config, of which a decoder has a copy.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False

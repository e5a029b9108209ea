"""Train a causal model to prefer accepted requirements to worse-scored answers: DPO by ``trl`` (L12).

Seeds, threads, validation after each epoch, early stopping, and what is done about values that are not finite
are those of ``finetuning``; the loss and its reference model, which is production, are ``trl``'s. An attempt
that was killed begins anew: its checkpoints are not resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iccm_assets.errors import TrainingError
from iccm_assets.models.generation import LoadedModel, context_length
from iccm_assets.models.tokenization import IGNORE_INDEX, EncodedExample, get_pad_token_id
from iccm_assets.settings import TrainingSettings
from iccm_assets.training import finetuning
from iccm_assets.training.dataset import Dataset, TrainingExample
from iccm_assets.training.finetuning import FineTuneResult, ProgressCallback, Tracking
from iccm_assets.training.training_method import require_kind, resolve_method
from iccm_assets.training.whole_model import WholeModelTraining

if TYPE_CHECKING:
    from iccm_assets.training.process_group import ProcessGroup

Pair = dict[str, list[int]]


def fine_tune_preferences(
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
) -> FineTuneResult:
    """Train on the dataset's pairs, and use the epoch of least validation loss; see ``fine_tune``.

    ``identity``, ``adapter`` and ``group`` are not used: nothing is resumed, all weights are trained, and in
    one process. Raises ``SettingsError`` for a seq2seq model and for the method ``lora``, ``TrainingError``
    without ``trl``.
    """
    del identity, adapter, group
    config = resolve_method(config, sum(weight.numel() for weight in loaded.model.parameters()))
    require_kind(config, seq2seq=loaded.kind == "seq2seq")
    trl, collator = _import_trl()
    from datasets import Dataset as Rows

    training = WholeModelTraining()
    train, validation, counts = encode_pairs(loaded, dataset, config)
    with finetuning.reproducible(config):
        finetuning.disable_cache(loaded.model)
        model = training.begin(loaded.model, config)
        recorder = finetuning.ProgressRecorder(on_progress, None, ())
        # The trainer changes the config and the forward pass of its model, so it gets a copy.
        trainer = _make_trainer_class(trl.DPOTrainer)(
            model=copy.deepcopy(model),
            ref_model=copy.deepcopy(model).eval(),
            args=_make_arguments(trl, config, epochs, len(train), scratch),
            train_dataset=Rows.from_list(train),
            eval_dataset=Rows.from_list(validation),
            data_collator=collator(pad_token_id=get_pad_token_id(loaded.tokenizer)),
            processing_class=copy.deepcopy(loaded.tokenizer),
            callbacks=finetuning.make_callbacks(recorder, config, tracking),
        )
        finetuning.run_trainer(trainer, recorder)
        model.load_state_dict(trainer.model.state_dict())
        weight_change = training.finish(model, config)
    trained = replace(loaded, model=model.eval())
    return finetuning.build_result(trained, trainer, recorder, weight_change, counts)


def encode_pairs(
    loaded: LoadedModel, dataset: Dataset, config: TrainingSettings
) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """Tokenize the pairs to train and to validate with, and count them; those too long are left out (L10)."""
    limits = (config.max_source_tokens, config.max_target_tokens, context_length(loaded))

    def encode(row: TrainingExample) -> Pair | None:
        texts = (row.requirements, row.rejected or "")
        chosen, rejected = (loaded.encoder.encode_example(row.source_code, text, *limits) for text in texts)
        return None if chosen is None or rejected is None else _to_pair(chosen, rejected)

    encoded = [(row, encode(row)) for row in dataset.examples if row.rejected is not None]
    train = [pair for row, pair in encoded if pair and row.role != "validation"]
    validation = [pair for row, pair in encoded if pair and row.role == "validation"]
    too_long = sum(pair is None for _, pair in encoded)
    for pairs, purpose in ((train, "train"), (validation, "validate")):
        if not pairs:
            raise TrainingError(
                f"the training set has no pairs to {purpose} with, and {too_long} that are too long",
                hint="Raise ICCM_TRAINING__MAX_SOURCE_TOKENS and ICCM_TRAINING__MAX_TARGET_TOKENS, or use a"
                " model with a longer context.",
            )
    fitting = Dataset(tuple(row for row, pair in encoded if pair), dataset.seed)
    return train, validation, {**fitting.counts, "too_long": too_long}


def _to_pair(chosen: EncodedExample, rejected: EncodedExample) -> Pair:
    prompt = chosen.labels.count(IGNORE_INDEX)
    return {
        "prompt_ids": chosen.input_ids[:prompt],
        "chosen_ids": chosen.input_ids[prompt:],
        "rejected_ids": rejected.input_ids[prompt:],
    }


def _make_arguments(trl: Any, config: TrainingSettings, epochs: int, pairs: int, scratch: Path) -> Any:
    more: Mapping[str, Any] = {
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "beta": config.dpo_beta,
        "max_length": None,  # pairs that are too long are left out before, and nothing is cut
        "gradient_checkpointing": False,
    }
    return finetuning.make_training_arguments(config, epochs, pairs, scratch, make=trl.DPOConfig, **more)


def _make_trainer_class(base: Any) -> Any:
    """Return the trainer for pairs that are tokenized already: by the model's own prompt, as for serving."""

    class PreferenceTrainer(base):  # type: ignore[misc]
        """Takes the pairs as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write no card into the checkpoints: the version has one of its own."""

    return PreferenceTrainer


def _import_trl() -> tuple[Any, Any]:
    try:
        import trl
        from trl.trainer import dpo_trainer
    except ImportError as error:
        raise TrainingError(
            f"the objective dpo needs the package trl, which cannot be imported ({error})",
            hint="pip install 'iccm-assets[dpo]'",
        ) from error
    return trl, dpo_trainer.DataCollatorForPreference

"""The Trainer's batches: the examples of one optimizer step, padded, in few forward passes, and their loss.

The Trainer draws the examples of a step together; they are divided into passes of examples of similar length,
among several processes if there are (K4), which adds up to the same gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from transformers import Trainer

from iccm_assets.models.generation import LoadedModel, decoder_start_token_id
from iccm_assets.models.tokenization import IGNORE_INDEX, EncodedExample, ModelKind, get_pad_token_id, pad
from iccm_assets.training.micro_batches import Widths, divide_step, share_step


class MicroBatchTrainer(Trainer):  # type: ignore[misc]
    """Computes a batch, the examples of one optimizer step, in the forward passes of ``divide_step``.

    Of several processes each has the whole batch, and computes its share of it: so the steps are those of one
    process, also the last of an epoch, which has fewer examples.
    """

    def __init__(self, *, max_tokens: Widths, kind: ModelKind, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._max_tokens = max_tokens
        self._kind = kind

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of the step, after adding up the gradients of its passes.

        Of several processes the mean of their losses is that of the step, as the Trainer and the averaging
        of gradients expect.
        """
        processes = self.args.world_size
        if processes > 1:
            num_items_in_batch = num_items_in_batch / processes
        losses = []
        parts = list(divide_batch(inputs, self._max_tokens, processes, self.args.process_index))
        for number, part in enumerate(parts, start=1):
            # Gradients travel once a step, with the last pass.
            is_last = number == len(parts)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def get_train_dataloader(self) -> Any:
        """Return the batches of examples, each whole in every process."""
        return _undivided(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the batches of examples, each whole in every process."""
        return _undivided(super().get_eval_dataloader(eval_dataset))

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate; of several processes each has the losses of all batches, so one of the copies counts."""
        if self.args.world_size > 1:
            self.gather_function = lambda losses: self.accelerator.gather_for_metrics(losses)[: len(losses)]
        return super().evaluation_loop(*arguments, **options)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """Return the loss of a batch, of which each of several processes computes its share."""
        processes = self.args.world_size
        if processes == 1:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        share = self._prepare_inputs(_take_share(inputs, processes, self.args.process_index))
        labels = share.pop("labels")
        with torch.no_grad():
            total = token_loss(self._kind, model(**share), labels, 1)
        counted = inputs["labels"][:, 1:] if self._kind == "causal" else inputs["labels"]
        return self.accelerator.reduce(total, "sum") / counted.ne(IGNORE_INDEX).sum(), None, None


def _undivided(loader: Any) -> Any:
    """Undo the division of a loader's batches among several processes."""
    if isinstance(loader.batch_sampler, BatchSamplerShard):
        shard = loader.batch_sampler
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    return loader


def collate(loaded: LoadedModel, rows: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """Pad tokenized examples to one batch of tensors (rows, tokens); add the decoder's input for seq2seq."""
    padding_id = get_pad_token_id(loaded.tokenizer)
    batch = {
        "input_ids": pad([row.input_ids for row in rows], padding_id),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0),
        "labels": pad([row.labels for row in rows], IGNORE_INDEX),
    }
    if loaded.kind == "seq2seq":
        start = decoder_start_token_id(loaded.model)
        batch["decoder_input_ids"] = pad([[start, *row.labels[:-1]] for row in rows], padding_id)
    return {name: torch.tensor(values) for name, values in batch.items()}


def divide_batch(
    batch: dict[str, torch.Tensor], max_tokens: Widths, processes: int = 1, rank: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a padded batch as the micro-batches of ``divide_step``, with no more padding than they need.

    Of several processes each has those of its share, and passes without target tokens to have as many.
    """
    inputs = batch["attention_mask"].sum(dim=1).tolist()
    labels = [0] * len(inputs)  # of a causal model as long as the inputs, and no tokens of their own
    if "decoder_input_ids" in batch:
        labels = batch["labels"].ne(IGNORE_INDEX).sum(dim=1).tolist()
    examples = list(map(Widths, inputs, labels))
    if processes == 1:
        micro_batches = divide_step(examples, max_tokens)
    else:
        micro_batches = share_step(examples, max_tokens, processes, rank)
    for rows, widths in micro_batches:
        width = dict.fromkeys(batch, widths.inputs)
        if widths.labels:
            width |= dict.fromkeys(("labels", "decoder_input_ids"), widths.labels)
        part = {name: values[rows or [0], : width[name]] for name, values in batch.items()}
        yield part if rows else _without_targets(part)


def _take_share(batch: dict[str, torch.Tensor], processes: int, rank: int) -> dict[str, torch.Tensor]:
    """Return every so many rows of a batch; one without target tokens if there are too few."""
    share = {name: values[rank::processes] for name, values in batch.items()}
    return share if len(share["labels"]) else _without_targets({n: v[:1] for n, v in batch.items()})


def _without_targets(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def measure(example: EncodedExample, kind: ModelKind) -> Widths:
    return Widths(len(example.input_ids), len(example.labels) if kind == "seq2seq" else 0)


def token_loss(
    kind: ModelKind, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
) -> torch.Tensor:
    """Return the cross entropy summed over target tokens, divided by those of the optimizer step."""
    logits = outputs["logits"].float()
    if kind == "causal":  # each position predicts the next token
        logits, labels = logits[:, :-1], labels[:, 1:]
    total = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (labels.ne(IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)

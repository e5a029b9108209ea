"""Greedy decoding of a batch of prompts, whose rows leave the batch as soon as they end (L9).

Sampling is greedy decoding as well, of logits with noise (``SamplingNoise``).

Responses of a batch differ in length. What is computed for a response that has ended is wasted: about half of
all, if it stays until the longest one has ended.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.utils import ModelOutput

from iccm_assets.models.token_streaming import BatchStreamer


class SamplingNoise(LogitsProcessor):  # type: ignore[misc]
    """Changes logits so that the likeliest token is a sample at ``temperature`` (the Gumbel-max trick).

    Each row draws from a generator of its own seed: what is drawn does not depend on the other rows.
    ``rows`` are the responses that the rows of the current batch continue.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.rows = list(range(len(seeds)))
        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits (rows, tokens) divided by the temperature, plus noise."""
        drawn = [torch.rand(scores.shape[-1], generator=self._generators[row]) for row in self.rows]
        return scores / self._temperature - (-torch.stack(drawn).log()).log().to(scores.device)


def decode_batch(
    model: Any,
    inputs: torch.Tensor,
    mask: torch.Tensor,
    config: Any,
    streamer: BatchStreamer | None = None,
    noise: SamplingNoise | None = None,
) -> list[list[int]]:
    """Return the likeliest token ids after each row of ``inputs``, up to its first end token.

    With ``noise`` they are samples. ``config`` is a generation config with a list of end tokens. A model that
    decodes in a way of its own, or whose state cannot be divided into rows, computes all rows until the last
    one has ended.
    """
    ends = set(config.eos_token_id)
    own_loop = {"custom_generate": partial(_decode_rows, streamer, noise)} if _decodes_as_usual(model) else {}
    output = model.generate(
        input_ids=inputs,
        attention_mask=mask,
        generation_config=config,
        streamer=streamer,
        logits_processor=LogitsProcessorList([] if noise is None else [noise]),
        **own_loop,
    )
    if isinstance(output, list):
        return output
    # The output of a seq2seq decoder begins with one start token, that of a causal model with its prompt.
    start = 1 if model.config.is_encoder_decoder else inputs.shape[1]
    return [_truncate_at_end(row, ends) for row in output[:, start:].tolist()]


def _decode_rows(
    streamer: BatchStreamer | None,
    noise: SamplingNoise | None,
    model: Any,
    input_ids: torch.Tensor,
    *,
    generation_config: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    **state: Any,
) -> list[list[int]] | torch.Tensor:
    """Decode as the greedy loop of ``transformers`` does, whose place this one takes; drop ended rows."""
    if not all(_is_divisible(value, len(input_ids)) for value in state.values()):
        ids: torch.Tensor = model._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=streamer,
            **state,
        )
        return ids
    ends = set(generation_config.eos_token_id)
    responses: list[list[int]] = [[] for _ in input_ids]
    rows = list(range(len(input_ids)))  # the response that each row of the batch continues
    options: dict[str, Any] = {"is_first_iteration": True}
    for _ in range(generation_config.max_new_tokens):
        prepared = model.prepare_inputs_for_generation(input_ids, **options, **state)
        output = model(**prepared, return_dict=True)
        options = {"next_sequence_length": 1 if state["use_cache"] else None}
        state = model._update_model_kwargs_for_generation(
            output, state, is_encoder_decoder=model.config.is_encoder_decoder
        )
        if noise is not None:
            noise.rows = rows
        scores = logits_processor(input_ids, output.logits[:, -1].to(torch.float32))
        likeliest = scores.argmax(-1)
        tokens = likeliest.tolist()
        for row, token in zip(rows, tokens, strict=True):
            responses[row].append(token)
        if streamer is not None:
            streamer.put_rows(rows, tokens)
        input_ids = torch.cat([input_ids, likeliest[:, None]], dim=-1)
        unended = [position for position, token in enumerate(tokens) if token not in ends]
        if not unended:
            break
        if len(unended) < len(rows):
            rows = [rows[position] for position in unended]
            index = torch.tensor(unended, device=input_ids.device)
            input_ids = input_ids[index]
            state = {name: _select_rows(value, index) for name, value in state.items()}
    return responses


def _decodes_as_usual(model: Any) -> bool:
    """Return whether the model has no generation of its own, and ``transformers`` the steps called here."""
    return (
        type(model).generate is GenerationMixin.generate
        and type(model)._sample is GenerationMixin._sample
        and "next_sequence_length"
        in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    )


def _is_divisible(value: Any, rows: int) -> bool:
    """Return whether ``_select_rows`` can take some of the rows from a part of the decoder's state."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 2 and len(value) == rows
    if isinstance(value, ModelOutput):
        return all(isinstance(part, torch.Tensor) and len(part) == rows for part in value.values())
    if type(value) is EncoderDecoderCache:
        return all(
            type(cache) is DynamicCache for cache in (value.self_attention_cache, value.cross_attention_cache)
        )
    return value is None or type(value) in (bool, int, DynamicCache)


def _select_rows(value: Any, index: torch.Tensor) -> Any:
    """Return the part of the state that belongs to some rows; a cache is changed."""
    if isinstance(value, torch.Tensor):
        return value[index]
    if isinstance(value, ModelOutput):
        return type(value)(**{name: part[index] for name, part in value.items()})
    if isinstance(value, (DynamicCache, EncoderDecoderCache)):
        value.reorder_cache(index)
    return value


def _truncate_at_end(row: list[int], ends: set[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
    return row[:length]

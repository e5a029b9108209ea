"""Tokenize text, the same way for training and for generation.

- seq2seq: the encoder reads the source as is, with the tokenizer's own special tokens; the decoder
  writes the requirements and the end token.
- causal: ``[bos] source SEPARATOR requirements eos``. Source and separator are tokenized separately, so
  their boundary is the same with and without a response after it; the loss covers the response only.

A source that is too long is truncated at its end; the separator always remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ModelKind = Literal["seq2seq", "causal"]

SEPARATOR = "\n\n### Requirements\n"
IGNORE_INDEX = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one training example; ``labels`` is ``IGNORE_INDEX`` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def encode_source(tokenizer: Any, kind: ModelKind, source: str, max_tokens: int) -> list[int]:
    """Return the token ids of the model's input: at least one, at most ``max_tokens``."""
    if kind == "seq2seq":
        ids = list(tokenizer(source, truncation=True, max_length=max_tokens)["input_ids"])
        return ids or [get_end_token_id(tokenizer)]
    head = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    separator = _tokenize(tokenizer, SEPARATOR)
    room = max(0, max_tokens - len(head) - len(separator))
    return [*head, *_tokenize(tokenizer, source)[:room], *separator]


def encode_example(
    tokenizer: Any,
    kind: ModelKind,
    source: str,
    requirements: str,
    max_source_tokens: int,
    max_target_tokens: int,
    context_length: int | None = None,
) -> EncodedExample:
    """Tokenize one training example; the target ends with the end token, even if it is truncated.

    ``context_length`` is the model's: per side for seq2seq; for both sides together for causal,
    where at least half of it stays for the source.
    """
    if context_length is not None:
        max_target_tokens = min(
            max_target_tokens, context_length // 2 if kind == "causal" else context_length
        )
    target = [*_tokenize(tokenizer, requirements)[: max_target_tokens - 1], get_end_token_id(tokenizer)]
    if context_length is not None:
        max_source_tokens = min(max_source_tokens, context_length - (len(target) if kind == "causal" else 0))
    prompt = encode_source(tokenizer, kind, source, max_source_tokens)
    if kind == "seq2seq":
        return EncodedExample(prompt, target)
    return EncodedExample([*prompt, *target], [IGNORE_INDEX] * len(prompt) + target)


def get_end_token_id(tokenizer: Any) -> int:
    """Return the token id that ends a response; ``ValueError`` if the tokenizer has none."""
    for name in ("eos_token_id", "sep_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise ValueError("the tokenizer has no end-of-sequence token")


def get_pad_token_id(tokenizer: Any) -> int:
    """Return the padding token id, or the end token id if the tokenizer has no padding token."""
    return get_end_token_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> list[list[int]]:
    """Pad rows to equal length with ``value``, on the right unless ``left``."""
    width = max(map(len, rows), default=0)
    fillers = ([value] * (width - len(row)) for row in rows)
    return [[*filler, *row] if left else [*row, *filler] for row, filler in zip(rows, fillers, strict=True)]


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])

"""How text becomes tokens, for training and generating alike: the one place that knows.

- seq2seq: the encoder reads the source as is, with the tokenizer's own special tokens; the decoder
  writes the requirements and the end token.
- causal: ``[bos] source SEPARATOR requirements eos``. Source and separator are tokenized apart, so
  their boundary is the same with and without an answer behind it; the loss counts the answer only.

A source that is too long loses its end, never the separator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["seq2seq", "causal"]

SEPARATOR = "\n\n### Requirements\n"
IGNORED = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Encoded:
    """Token ids of one training example; ``labels`` is ``IGNORED`` where there is no loss."""

    input_ids: list[int]
    labels: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer side, for batching by length."""
        return max(len(self.input_ids), len(self.labels))


def encode_source(tokenizer: Any, kind: Kind, source: str, max_tokens: int) -> list[int]:
    """Token ids the model reads before it answers; at most ``max_tokens``, at least one."""
    if kind == "seq2seq":
        ids = list(tokenizer(source, truncation=True, max_length=max_tokens)["input_ids"])
        return ids or [end_token(tokenizer)]
    head = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    separator = _plain(tokenizer, SEPARATOR)
    room = max(0, max_tokens - len(head) - len(separator))
    return [*head, *_plain(tokenizer, source)[:room], *separator]


def encode_example(
    tokenizer: Any,
    kind: Kind,
    source: str,
    requirements: str,
    max_source_tokens: int,
    max_target_tokens: int,
    positions: int | None = None,
) -> Encoded:
    """One training example; the target always ends with the end token, even when cut.

    ``positions`` is what the model can hold: on each side for seq2seq; together for causal, where at least
    half of them are left to the source.
    """
    if positions is not None:
        max_target_tokens = min(max_target_tokens, positions // 2 if kind == "causal" else positions)
    answer = [*_plain(tokenizer, requirements)[: max_target_tokens - 1], end_token(tokenizer)]
    if positions is not None:
        max_source_tokens = min(max_source_tokens, positions - (len(answer) if kind == "causal" else 0))
    prompt = encode_source(tokenizer, kind, source, max_source_tokens)
    if kind == "seq2seq":
        return Encoded(prompt, answer)
    return Encoded([*prompt, *answer], [IGNORED] * len(prompt) + answer)


def end_token(tokenizer: Any) -> int:
    """The id that ends an answer."""
    for name in ("eos_token_id", "sep_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise ValueError("the tokenizer has no end-of-sequence token")


def pad_token(tokenizer: Any) -> int:
    """The id batches are filled up with; the end token where the tokenizer has none."""
    return end_token(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> list[list[int]]:
    """Rows of equal length, filled with ``value``."""
    width = max((len(row) for row in rows), default=0)
    if left:
        return [[value] * (width - len(row)) + list(row) for row in rows]
    return [list(row) + [value] * (width - len(row)) for row in rows]


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])

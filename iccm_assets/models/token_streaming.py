"""Pass the tokens of a batch on as text, while the model generates (G8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iccm_assets.errors import ModelError

# Gets a piece of a response as soon as it is certain, and the number of tokens so far.
TextListener = Callable[[str, int], None]


class BatchStreamer:
    """Passes the tokens of a batch on as text; a streamer of ``transformers``' generation.

    A token may be a part of a character, and what a tokenizer writes for one depends on the token before it:
    so two ends of a short window are decoded, and what is new at its end is passed on.
    """

    def __init__(self, tokenizer: Any, ends: set[int], listeners: Sequence[TextListener | None]) -> None:
        self._tokenizer, self._ends, self._listeners = tokenizer, ends, listeners
        self._tokens: list[list[int]] = [[] for _ in listeners]
        self._windows = [(0, 0) for _ in listeners]  # where the window begins, and what of it was passed on
        self._texts: list[list[str]] = [[] for _ in listeners]
        self._ended = [listener is None for listener in listeners]
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Take the next token of each row; the first call brings the prompts."""
        if self._is_prompt:
            self._is_prompt = False
            return
        tokens = value.reshape(-1).tolist()
        self.put_rows(range(len(tokens)), tokens)

    def put_rows(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Take the next token of some rows."""
        for row, token in zip(rows, tokens, strict=True):
            if not self._ended[row]:
                self._tokens[row].append(token)
                self._ended[row] = token in self._ends
                self._pass_on(row)

    def end(self) -> None:
        """Do nothing: ``finish`` knows the whole texts."""

    def finish(self, texts: Sequence[str]) -> None:
        """Pass on what is left of each text; raises ``ModelError`` if what was passed on is no part of it."""
        for listener, text, parts, tokens in zip(
            self._listeners, texts, self._texts, self._tokens, strict=True
        ):
            passed = "".join(parts)
            if listener is not None and not text.startswith(passed):
                raise ModelError("the tokenizer writes tokens one by one in another way than all together")
            if listener is not None and len(text) > len(passed):
                listener(text[len(passed) :], len(tokens))

    def _pass_on(self, row: int) -> None:
        tokens, (start, end), listener = self._tokens[row], self._windows[row], self._listeners[row]
        before, after = decode(self._tokenizer, tokens[start:end]), decode(self._tokenizer, tokens[start:])
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self._windows[row] = (end, len(tokens))
            self._texts[row].append(after[len(before) :])
            if listener is not None:
                listener(after[len(before) :], len(tokens))


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """Decode tokens to the text of a response."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

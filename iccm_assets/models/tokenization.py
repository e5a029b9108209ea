"""Turn a source into the input of a model, the same way for training, evaluation and serving (L8).

A model has one prompt, stored in its manifest:

- ``plain``, seq2seq: the encoder reads the source as is, with the tokenizer's own special tokens.
- ``plain``, causal: ``[bos] source SEPARATOR``. Source and separator are tokenized separately, so their
  boundary is the same whatever the source ends with.
- ``chat``: the tokenizer's chat template, with a system message and the source as the user's message.
- ``template``: a Jinja template of the operator, rendered with ``source`` and ``system``.

The response follows, up to the end token: for seq2seq from the decoder, for causal after the prompt. Special
tokens that occur as text in a source or a response are text: they end nothing and begin no message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from iccm_assets.errors import ModelError, first_line
from iccm_assets.registry.manifest import Prompt

ModelKind = Literal["seq2seq", "causal"]

SEPARATOR = "\n\n### Requirements\n"
IGNORE_INDEX = -100  # label of a token that carries no loss
# The system message of a chat model for which none is configured.
CHAT_SYSTEM = (
    "Write the software requirements that the code in the next message fulfils: what it shall do, complete "
    "enough to write the code again without seeing it. Answer with the requirements only."
)
# Stands for the source, and for a response, where the texts around them are needed.
_SOURCE_MARK, _RESPONSE_MARK = "SOURCE-c0ffee-d00d", "RESPONSE-c0ffee-d00d"


@dataclass(frozen=True)
class EncodedSource:
    """Token ids of a model's input; ``is_truncated`` if the source was too long and its end is missing."""

    token_ids: list[int]
    is_truncated: bool = False


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one training example; ``labels`` is ``IGNORE_INDEX`` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


class PromptEncoder:
    """A model's tokenizer with its prompt; raises ``ModelError`` if the prompt cannot be rendered."""

    def __init__(self, tokenizer: Any, kind: ModelKind, prompt: Prompt) -> None:
        self.tokenizer, self.kind, self.prompt = tokenizer, kind, prompt
        self._special = sorted(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        )
        self._render_text = _make_renderer(tokenizer, kind, prompt)
        parts = self._render_text(_SOURCE_MARK).split(_SOURCE_MARK)
        if len(parts) != 2:
            raise ModelError(
                f"the {prompt.format} prompt contains the source {len(parts) - 1} times",
                hint="It must contain {{ source }} once, unchanged.",
            )
        self._before, self._after = parts

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends a response: of a chat model, the one that its template writes there."""
        if self.prompt.format == "chat":
            rendered = _render_chat(self.tokenizer, self.prompt.system, _SOURCE_MARK, _RESPONSE_MARK)
            ids = self._tokenize(rendered.rpartition(_RESPONSE_MARK)[2], is_text=False)
            if ids and self.tokenizer.convert_ids_to_tokens(ids[0]) in self._special:
                return int(ids[0])
        return get_end_token_id(self.tokenizer)

    def render(self, source: str) -> str:
        """Return the text of the prompt, without the tokens that the tokenizer adds on its own."""
        return self._render_text(source)

    def encode_source(self, source: str, max_tokens: int) -> EncodedSource:
        """Return the model's input: at least one token, at most ``max_tokens``.

        The end of a source that is too long is left out; what the prompt has around it remains. Raises
        ``ModelError`` if that alone is too long.
        """
        if not (self.prompt.format == "plain" or any(token in source for token in self._special)):
            ids = self._with_special_tokens(self._tokenize(self.render(source), is_text=False))
            if len(ids) <= max_tokens:
                return EncodedSource(ids)
        before, after = self._ids_around
        room = max_tokens - len(self._with_special_tokens([*before, *after]))
        if room < 0:
            raise ModelError(
                f"the prompt has {max_tokens - room} tokens without a source, {max_tokens} are allowed",
                hint="Shorten ICCM_PROMPT__TEMPLATE or ICCM_PROMPT__SYSTEM, or raise the limit.",
            )
        body = self._tokenize(source)
        ids = self._with_special_tokens([*before, *body[:room], *after])
        return EncodedSource(ids, len(body) > room)

    def encode_example(
        self,
        source: str,
        requirements: str,
        max_source_tokens: int,
        max_target_tokens: int,
        context_length: int | None = None,
    ) -> EncodedExample | None:
        """Tokenize one training example; None if it is longer than a limit: nothing is cut (L10).

        ``context_length`` is the model's: per side for seq2seq, for both sides together for causal.
        """
        prompt = self.encode_source(source, max_source_tokens)
        target = [*self._tokenize(requirements), self.end_token_id]
        causal = self.kind == "causal"
        lengths = [len(prompt.token_ids) + len(target)] if causal else [len(prompt.token_ids), len(target)]
        if (
            prompt.is_truncated
            or len(target) > max_target_tokens
            or (context_length is not None and max(lengths) > context_length)
        ):
            return None
        if not causal:
            return EncodedExample(prompt.token_ids, target)
        ignored = [IGNORE_INDEX] * len(prompt.token_ids)
        return EncodedExample([*prompt.token_ids, *target], ignored + target)

    @cached_property
    def _ids_around(self) -> tuple[list[int], list[int]]:
        """The tokens before and after the source."""
        return self._tokenize(self._before, is_text=False), self._tokenize(self._after, is_text=False)

    @cached_property
    def _wrapping(self) -> tuple[list[int], list[int]]:
        """The special tokens that an encoder's input begins and ends with."""
        whole, bare = self.tokenizer("x")["input_ids"], self._tokenize("x")
        start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        return list(whole[:start]), list(whole[start + len(bare) :])

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        """Add the tokenizer's own: of a decoder the begin token, unless the prompt decides about it."""
        if self.kind == "seq2seq":
            first, last = self._wrapping
            return [*first, *ids, *last] or [get_end_token_id(self.tokenizer)]
        begin = self.tokenizer.bos_token_id
        if self.prompt.format == "chat" or begin is None or ids[:1] == [begin]:
            return ids
        return [int(begin), *ids]

    def _tokenize(self, text: str, *, is_text: bool = True) -> list[int]:
        encoding = self.tokenizer(text, add_special_tokens=False, split_special_tokens=is_text)
        return list(encoding["input_ids"])


def resolve_prompt(tokenizer: Any, *, template: str = "", system: str = "") -> Prompt:
    """Return the prompt of a model that has none yet: the template, else its chat template, else plain."""
    if template:
        return Prompt(format="template", system=system, template=template)
    if getattr(tokenizer, "chat_template", None):
        return Prompt(format="chat", system=system or CHAT_SYSTEM)
    return Prompt(format="plain", system=system)


def get_end_token_id(tokenizer: Any) -> int:
    """Return the token id that ends a text; ``ValueError`` if the tokenizer has none."""
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


def _make_renderer(tokenizer: Any, kind: ModelKind, prompt: Prompt) -> Callable[[str], str]:
    if prompt.format == "chat":
        return lambda source: _render_chat(tokenizer, prompt.system, source)
    if prompt.format == "template":
        return _compile_template(prompt)
    before = f"{prompt.system}\n\n" if prompt.system else ""
    after = SEPARATOR if kind == "causal" else ""
    return lambda source: f"{before}{source}{after}"


def _render_chat(tokenizer: Any, system: str, source: str, response: str | None = None) -> str:
    """Render the chat template; without a response, up to where the response begins.

    Some templates reject or drop a system message: its text then begins the user's message.
    """
    answer = [] if response is None else [{"role": "assistant", "content": response}]
    user = {"role": "user", "content": source}
    merged = {"role": "user", "content": f"{system}\n\n{source}" if system else source}
    error: Exception | None = None
    for messages in ([{"role": "system", "content": system}, user], [merged]) if system else ([merged],):
        try:
            text = tokenizer.apply_chat_template(
                [*messages, *answer], tokenize=False, add_generation_prompt=response is None
            )
        except Exception as raised:  # whatever the template raises
            error = raised
            continue
        if system.strip() in text:
            return str(text)
    reason = "it drops the system text" if error is None else first_line(error)
    raise ModelError(
        f"the tokenizer's chat template cannot be rendered ({reason})", hint="Set ICCM_PROMPT__TEMPLATE."
    ) from error


def _compile_template(prompt: Prompt) -> Callable[[str], str]:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    hint = "Correct ICCM_PROMPT__TEMPLATE; it is rendered with `source` and `system`."
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        template = environment.from_string(prompt.template)
    except TemplateError as error:
        raise ModelError(f"the prompt template is no Jinja template ({error})", hint=hint) from error

    def render(source: str) -> str:
        try:
            return template.render(source=source, system=prompt.system)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the prompt template cannot be rendered ({first_line(error)})", hint=hint
            ) from error

    return render

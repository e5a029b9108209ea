"""The prompts that a model server gets: the token ids of training, or a text that has the same ones (L8)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iccm_assets.errors import ModelError, ModelNotFoundError
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.registry.manifest import read_manifest
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from iccm_assets.models.tokenization import PromptEncoder

# Longer sources are tokenized on a thread.
MAX_CHARACTERS_ON_EVENT_LOOP = 8192
# Sources on whose ends tokenizers disagree.
TEXT_PROBES = ("x = 1\n", "x = 1", "x = 1\n\n\n")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerPrompt:
    """The ``prompt`` of a request for a completion: token ids or text; ``is_truncated`` if ids were cut."""

    value: str | list[int]
    is_truncated: bool = False


class VersionPrompts:
    """Makes the prompts of one version, by its tokenizer and its prompt; its weights are not needed.

    Raises ``CorruptCheckpointError`` if the version's directory is another model's, ``ModelError`` if its
    tokenizer cannot be loaded. Without the directory, the plain prompt is sent as text. ``base_digest`` is
    that of an adapter's base, None for a whole model.
    """

    def __init__(self, version: ModelLocation, settings: Settings) -> None:
        self._encoder: PromptEncoder | None = None
        self._is_text = True
        self.base_digest: str | None = None
        try:
            directory = fetch_model(settings.home / version.path, settings)
        except ModelNotFoundError:
            directory = settings.home / version.path
        if not directory.is_dir():
            log.warning(
                "%s is not here: %s gets the plain prompt as text, and its tokens cannot be compared",
                directory,
                version.version,
            )
            self.directory = directory
            return
        manifest = read_manifest(directory)
        version.check_digest(manifest.digest)
        self.directory, self.base_digest = directory, manifest.base_digest
        from iccm_assets.models.generation import load_encoder, token_limits

        self._encoder, context = load_encoder(directory)
        limits = settings.training.max_source_tokens, settings.evaluation.max_new_tokens
        self._max_tokens, _ = token_limits(self._encoder.kind, context, *limits)
        self._is_text = False

    def encode(self, source: str) -> ServerPrompt:
        """Return the prompt of a source; a text is never cut: a server that cannot read it says so."""
        if self._encoder is None:
            from iccm_assets.models.tokenization import SEPARATOR

            return ServerPrompt(source + SEPARATOR)
        if self._is_text:
            begin = self._encoder.tokenizer.bos_token
            text = self._encoder.render(source)
            return ServerPrompt(text.removeprefix(begin) if begin else text)  # the server adds it
        encoded = self._encoder.encode_source(source, self._max_tokens)
        return ServerPrompt(encoded.token_ids, encoded.is_truncated)

    async def encode_async(self, source: str) -> ServerPrompt:
        """Return the prompt of a source; a long one is tokenized on another thread."""
        if len(source) <= MAX_CHARACTERS_ON_EVENT_LOOP or self._encoder is None:
            return self.encode(source)
        return await asyncio.to_thread(self.encode, source)

    def send_text(self) -> bool:
        """Send text from now on; return whether ids were sent before."""
        changed, self._is_text = not self._is_text, True
        return changed

    def check_text(self, source: str, tokens_read: int | None) -> None:
        """Compare the tokens that a server read of a text with those of training.

        Raises ``ModelError`` if their numbers differ. A server that does not say how many is only warned of.
        """
        assert self._encoder is not None  # since ids were sent before
        expected = len(self._encoder.encode_source(source, self._max_tokens).token_ids)
        if not tokens_read:
            log.warning("the server takes no token ids and does not say how many tokens it reads")
        elif tokens_read != expected:
            raise ModelError(
                f"the server takes no token ids, and reads {tokens_read} tokens where the model was trained"
                f" on {expected}",
                hint="Serve it with a server that takes a prompt of token ids, such as vLLM.",
            )

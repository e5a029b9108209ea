"""Backends: models in this process, or one OpenAI-compatible server per version (G7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from iccm_assets.gateway.batching import Backend, BackendResponse, DynamicBatcher
from iccm_assets.gateway.model_pool import ModelLoader, ServerCleaner
from iccm_assets.gateway.openai_backend import WARM_UP_SOURCE, OpenAiBackend
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.served_adapters import unload_unused_adapters
from iccm_assets.models.token_streaming import TextListener
from iccm_assets.registry.model_store import ModelStore, fetch_model
from iccm_assets.settings import Settings


def make_model_loader(settings: Settings) -> ModelLoader:
    """Make the function that loads a version; it raises ``ModelError`` or what reading the weights raises."""
    if settings.gateway.backend == "openai":
        return lambda version: OpenAiBackend(version, settings)
    return lambda version: load_transformers_backend(version, settings)


def make_server_cleaner(settings: Settings) -> ServerCleaner | None:
    """Make the function that unloads unused adapters from model servers; None where there are no servers."""
    return partial(unload_unused_adapters, settings) if settings.gateway.backend == "openai" else None


def load_transformers_backend(version: ModelLocation, settings: Settings) -> Backend:
    """Load a version into this process, verify its manifest, and generate one response to warm it up."""
    from iccm_assets.models import generation

    limits = settings.gateway
    generation.set_threads(limits.threads)
    store = ModelStore.open(settings)
    directory = fetch_model(settings.home / version.path, settings)
    try:
        loaded = generation.load_model(directory, device=limits.device or None, shared=True)
        version.check_digest(loaded.digest)
    except BaseException:
        store.release(directory.name)
        raise

    def generate(sources: Sequence[str], listeners: Sequence[TextListener | None]) -> list[BackendResponse]:
        responses = generation.generate(
            loaded,
            sources,
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=limits.batch_size,
            max_source_tokens=settings.training.max_source_tokens,
            listeners=listeners,
        )
        return [
            BackendResponse(
                response.text,
                response.output_tokens,
                response.source_tokens,
                response.is_complete,
                response.is_truncated,
            )
            for response in responses
        ]

    generate([WARM_UP_SOURCE], [None])
    return DynamicBatcher(
        version.version,
        generate,
        batch_size=limits.batch_size,
        batch_timeout_seconds=limits.batch_timeout_ms / 1000,
        queue_size=limits.queue_size,
        stall_timeout_seconds=limits.timeout_seconds,
        on_close=lambda: store.release(directory.name),
    )

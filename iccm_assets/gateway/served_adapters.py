"""Adapters that a model server loads and unloads while it serves their base model, as vLLM does (L11, G7).

An adapter's name on the server is the digest of its version. So loading it again changes nothing, replicas
need not agree on who loads it, and no name ever means other weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2

from iccm_assets.endpoint_urls import EndpointAddress, parse_orchestra
from iccm_assets.errors import AdapterNotServedError, ModelError
from iccm_assets.gateway.batching import GenerationError
from iccm_assets.gateway.model_server_client import (
    MAX_ERROR_BYTES,
    ListedModel,
    list_models,
    open_client,
    read_key,
)
from iccm_assets.gateway.model_server_errors import (
    MAX_CLASSIFIED_CHARACTERS,
    rejection_error,
    server_words,
)
from iccm_assets.registry.manifest import is_digest
from iccm_assets.registry.model_store import KIND
from iccm_assets.scoring.chat_responses import describe_error_body
from iccm_assets.settings import Settings

ENABLE_HINT = "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
_ALREADY_LOADED = re.compile(r"already (?:been )?loaded", re.IGNORECASE)
_NOT_LOADED = re.compile(r"adapter\b.*(?:cannot be|not) found", re.IGNORECASE)
_NO_FILES = re.compile(r"no adapter found|no such file|adapter_config\.json", re.IGNORECASE)
_NOT_ENABLED = re.compile(r"lora\b.*(?:is not|isn't) enabled|enable[-_]lora", re.IGNORECASE)
_NAMES_ADAPTER = re.compile(r"adapter|lora", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter on its server: the server's URL, and the path at which the server finds its files."""

    digest: str
    base_digest: str
    url: str
    path: str

    def load(self, client: httpx2.Client) -> bool:
        """Make the server load the adapter, unless it has it already; return whether it had to.

        Raises ``AdapterNotServedError`` with the server's words, ``httpx2.HTTPError``, or
        ``GenerationError`` for a refused key.
        """
        body = {"lora_name": self.digest, "lora_path": self.path}
        response = client.post(f"{self.url}/load_lora_adapter", json=body)
        if response.status_code == 200:
            return True
        text = _read_error(response)
        if response.status_code == 400 and _ALREADY_LOADED.search(text):
            return False
        raise _load_error(self, response.status_code, text)


def check_base(adapter: ServedAdapter, base: EndpointAddress, served: Collection[ListedModel]) -> None:
    """Raise ``AdapterNotServedError`` if the server has another base model than the adapter's.

    A server that is started with the directory of the model store states it, and so its digest.
    """
    name = PurePosixPath(next((model.root for model in served if model.name == base.model), "")).name
    if is_digest(name) and name != adapter.base_digest:
        raise AdapterNotServedError(
            f"{adapter.url} serves the base model {name[:12]}, the adapter {adapter.digest[:12]} belongs to"
            f" {adapter.base_digest[:12]}",
            hint=f"Add the server of this base to ICCM_GATEWAY__OPENAI_URLS under {adapter.base_digest}.",
        )


def unload_adapter(client: httpx2.Client, url: str, digest: str) -> None:
    """Make the server unload an adapter, if it has it; raises as ``ServedAdapter.load`` does."""
    response = client.post(f"{url}/unload_lora_adapter", json={"lora_name": digest})
    text = "" if response.status_code == 200 else _read_error(response)
    if text and not (response.status_code in (400, 404) and _NOT_LOADED.search(text)):
        raise AdapterNotServedError(
            f"{url} does not unload {digest[:12]}: HTTP {response.status_code}: {text}"
        )


def find_server(version: str, base_digest: str | None, urls: dict[str, str]) -> EndpointAddress:
    """Return the endpoint of a version; that of an adapter may also be under the digest of its base.

    Raises ``ModelError`` if no URL is configured for it.
    """
    url = urls.get(version) or urls.get(base_digest or "") or urls.get("*")
    if url is None:
        raise ModelError(f"no URL is configured for {version}", hint="Add it to ICCM_GATEWAY__OPENAI_URLS.")
    return _parse(url.replace("{version}", version))


def get_server_path(directory: Path, settings: Settings) -> str:
    """Return the path at which the model servers see a directory of the model store."""
    root = settings.gateway.openai_models_path
    return f"{root.rstrip('/')}/{directory.name}" if root else str(directory.absolute())


def unload_unused_adapters(settings: Settings, in_use: Collection[str]) -> None:
    """Unload the adapters of this model store that are not ``in_use`` from all servers, by their digests.

    The servers themselves are asked what they have, so it also finds what a killed gateway left behind.
    Raises ``AdapterNotServedError`` or ``GenerationError`` where a server refuses, ``httpx2.HTTPError``
    where it cannot be reached; the other servers have been asked nevertheless.
    """
    path = get_server_path(settings.home / KIND / "digest", settings)
    failure: Exception | None = None
    with open_client(settings.gateway.timeout_seconds) as client:
        for url in _list_server_urls(settings):
            try:
                for model in list_models(client, url):
                    is_ours = PurePosixPath(model.root) == PurePosixPath(path).with_name(model.name)
                    if is_ours and is_digest(model.name) and model.name not in in_use:
                        unload_adapter(client, url, model.name)
                        log.info("unloaded the adapter %s from %s", model.name[:12], url)
            except (AdapterNotServedError, GenerationError, httpx2.HTTPError) as error:
                failure = error
    if failure is not None:
        raise failure


def _list_server_urls(settings: Settings) -> list[str]:
    """Return the servers that can have several versions: those of one version have none to unload."""
    addresses = [url for url in settings.gateway.openai_urls.values() if "{version}" not in url.split("#")[0]]
    return sorted({_parse(url).url for url in addresses})


def _parse(url: str) -> EndpointAddress:
    [address] = parse_orchestra(f"openai:{url}")
    assert isinstance(address, EndpointAddress)  # since it starts with openai:
    return address


def _read_error(response: httpx2.Response) -> str:
    """Return the text that the server wrote; raises ``GenerationError`` if it refuses the key."""
    body = response.content[:MAX_ERROR_BYTES]
    if response.status_code in (401, 403):
        raise rejection_error(response.status_code, response.headers, body, read_key())
    return describe_error_body(body)[:MAX_CLASSIFIED_CHARACTERS]


def _load_error(adapter: ServedAdapter, status: int, text: str) -> AdapterNotServedError:
    words = server_words(text, read_key())
    reason = f"{adapter.url} cannot load the adapter {adapter.digest[:12]}: HTTP {status}: {words}"
    if status in (404, 405) and not _NAMES_ADAPTER.search(text):
        return AdapterNotServedError(
            f"{adapter.url} has no endpoint that loads adapters (HTTP {status})", hint=ENABLE_HINT
        )
    if _NO_FILES.search(text):
        hint = (
            f"The server has to see the model store: {adapter.path} is this adapter's path."
            " Where it is mounted elsewhere, set ICCM_GATEWAY__OPENAI_MODELS_PATH."
        )
    elif _NOT_ENABLED.search(text):
        hint = ENABLE_HINT
    elif "rank" in text:
        hint = "Start vLLM with a --max-lora-rank of at least ICCM_TRAINING__LORA_R."
    else:
        hint = "The log of the server has the reason."
    return AdapterNotServedError(reason, hint=hint)

"""What every request to a model server has in common: the key, the models it serves, its errors (G7)."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import httpx2

from iccm_assets.gateway.batching import GenerationError
from iccm_assets.gateway.model_server_errors import rejection_error

MAX_ERROR_BYTES = 64 << 10


@dataclass(frozen=True)
class ListedModel:
    """A model or adapter that a server lists, and where it has its files, if it says so."""

    name: str
    root: str = ""


def open_client(timeout: float) -> httpx2.Client:
    """Return a client for model servers, with the API key."""
    return httpx2.Client(timeout=timeout, headers=make_headers(), verify=get_ssl_context())


@lru_cache(maxsize=1)
def get_ssl_context() -> ssl.SSLContext:
    """Return what all connections of this process trust: to read the certificates takes 20 ms of CPU time."""
    return httpx2.create_ssl_context()


def list_models(client: httpx2.Client, url: str) -> list[ListedModel]:
    """Return the models that a server lists; raises ``GenerationError`` if it gives no list."""
    return _parse_models(read_whole(client.get(f"{url}/models")))


def read_whole(response: httpx2.Response) -> bytes:
    """Return the body of a response; raises what its error means."""
    if response.status_code != 200:
        raise classify_rejection(response.status_code, response.headers, response.content)
    return response.content


def classify_rejection(status: int, headers: Mapping[str, str], body: bytes) -> GenerationError:
    """Return the error that a response means; of a compressed body nothing is read."""
    is_plain = headers.get("content-encoding", "identity") == "identity"
    text = body[:MAX_ERROR_BYTES] if is_plain else b""
    return rejection_error(status, headers, text, read_key())


def read_key() -> str:
    """Return the API key, empty without one."""
    return os.environ.get("OPENAI_API_KEY", "").strip()


def make_headers() -> dict[str, str]:
    """Return the headers of every request."""
    key = read_key()
    # A small compressed response could expand without bound while it is read.
    return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}


def _parse_models(body: bytes) -> list[ListedModel]:
    try:
        return [
            ListedModel(model["id"], model["root"] if isinstance(model.get("root"), str) else "")
            for model in json.loads(body)["data"]
            if isinstance(model.get("id"), str)
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise GenerationError("the list of models is not one") from None

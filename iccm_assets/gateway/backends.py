"""Where answers come from (G7): models in this process, or an OpenAI-compatible server per version."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iccm_assets.addresses import EndpointAddress, parse_orchestra
from iccm_assets.errors import DamagedCheckpoint, ModelError
from iccm_assets.gateway.batching import Answer, Backend, Batcher, Busy, Failed
from iccm_assets.gateway.fleet import Load
from iccm_assets.gateway.routing import Version
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    import httpx2

WARM_UP = "def add(a, b):\n    return a + b\n"
LARGEST_REPLY = 4 << 20


def loader_of(settings: Settings) -> Load:
    """How this process makes a version ready; loading raises ``ModelError`` or what the weights throw."""
    if settings.gateway.backend == "openai":
        return lambda version: OpenAiBackend(version, settings)
    return lambda version: transformers_backend(version, settings)


def transformers_backend(version: Version, settings: Settings) -> Backend:
    """A version loaded into this process: its manifest verified, and one answer given to warm it up."""
    from iccm_assets.models import seq  # several seconds of imports, in the loader's thread

    limits = settings.gateway
    seq.set_threads(limits.threads)
    loaded = seq.load_model(version.path, device=limits.device or None)
    if loaded.digest != version.digest:
        raise DamagedCheckpoint(f"{version.path} holds {loaded.digest[:12]}, not {version.digest[:12]}")

    def generate(sources: Sequence[str]) -> list[Answer]:
        written = seq.generate(
            loaded,
            sources,
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=limits.batch_size,
            max_source_tokens=settings.training.max_source_tokens,
        )
        return [Answer(one.text, one.output_tokens) for one in written]

    generate([WARM_UP])
    return Batcher(
        version.version,
        generate,
        batch_size=limits.batch_size,
        wait_seconds=limits.batch_wait_ms / 1000,
        queue_size=limits.queue_size,
        stuck_seconds=limits.timeout_seconds,
    )


class OpenAiBackend:
    """A version behind an OpenAI-compatible server, asked for completions of the prompt it was trained on.

    The server batches; here only the number of requests is limited. Making one asks the server whether it
    has the model, and for one answer. The API key comes from ``OPENAI_API_KEY``.
    """

    def __init__(self, version: Version, settings: Settings) -> None:
        import httpx2

        self._address = address_of(version.version, settings.gateway.openai_urls)
        self._limit = settings.gateway.queue_size
        self._max_tokens = settings.evaluation.max_new_tokens
        self._timeout = settings.gateway.timeout_seconds
        self._under_way = 0
        self._client: httpx2.AsyncClient | None = None
        with httpx2.Client(timeout=self._timeout, headers=_headers()) as client:
            known = client.get(f"{self._address.url}/models").raise_for_status().json()
            names = [one.get("id") for one in known.get("data", [])]
            if self._address.model not in names:
                raise ModelError(f"{self._address.url} has no model {self._address.model}")
            reply = client.post(f"{self._address.url}/completions", json=self._body(WARM_UP))
            _answer_of(reply.raise_for_status().content)

    @property
    def waiting(self) -> int:
        return self._under_way

    async def answer(self, source: str) -> Answer:
        import httpx2

        if self._under_way >= self._limit:
            raise Busy
        self._client = self._client or httpx2.AsyncClient(
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=self._limit),
            headers=_headers(),
        )
        self._under_way += 1
        try:
            return _answer_of(await self._exchange(self._client, source))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Failed(type(error).__name__) from None
        finally:
            self._under_way -= 1

    def close(self) -> None:
        self._client = None  # its idle connections close when it is collected

    async def _exchange(self, client: httpx2.AsyncClient, source: str) -> bytes:
        body = bytearray()
        async with client.stream(
            "POST", f"{self._address.url}/completions", json=self._body(source)
        ) as reply:
            if reply.status_code != 200:
                raise Failed(f"HTTP {reply.status_code}")
            async for chunk in reply.aiter_raw():
                body += chunk
                if len(body) > LARGEST_REPLY:
                    raise Failed(f"a reply longer than {LARGEST_REPLY >> 20} MiB")
        return bytes(body)

    def _body(self, source: str) -> dict[str, Any]:
        from iccm_assets.models.encoding import SEPARATOR

        return {
            "model": self._address.model,
            "prompt": source + SEPARATOR,
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }


def address_of(version: str, urls: dict[str, str]) -> EndpointAddress:
    """Where a version is served; ``ModelError`` when no URL is set for it."""
    url = urls.get(version) or urls.get("*")
    if url is None:
        raise ModelError(f"no URL is set for {version}", hint="Add it to ICCM_GATEWAY__OPENAI_URLS.")
    [address] = parse_orchestra(f"openai:{url.replace('{version}', version)}")
    assert isinstance(address, EndpointAddress)  # it begins with openai:
    return address


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    # Compressed, a small reply could grow without bound while it is read.
    return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}


def _answer_of(body: bytes) -> Answer:
    try:
        reply = json.loads(body)
        text = reply["choices"][0]["text"]
        tokens = (reply.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failed("the reply is no completion") from None
    if not isinstance(text, str):
        raise Failed("the reply holds no text")
    return Answer(text, tokens if isinstance(tokens, int) and tokens >= 0 else None)

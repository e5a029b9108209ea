"""Members of the orchestra behind an OpenAI-compatible chat endpoint (O1).

What an endpoint fails to answer is missing, with its reason, and never a score. A request has one
deadline for everything (connecting, TLS, headers, a body that drips, retries and the waits between them),
which is why it runs on an event loop, where all of it can be cancelled. `Calls` is that loop; the limits of
one URL are kept in its `Line`, whoever of the orchestra uses it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from random import Random
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

from iccm_assets.addresses import EndpointAddress
from iccm_assets.judging.answers import Flaw, code_of, content_of
from iccm_assets.judging.reconstruction import Reconstruction, printable
from iccm_assets.settings import Endpoints

if TYPE_CHECKING:
    import httpx2

# Raise it when the prompt changes: scores under another prompt are another orchestra's.
PROMPT_VERSION = 2
PROMPT = (
    "Implement these software requirements as one self-contained Python 3 module that uses only the "
    "standard library. Answer with a single fenced code block and nothing else.\n\n"
)
DEFAULT_KEY = "OPENAI_API_KEY"
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0
# 408 timeout, 409 lock, 425 too early, 429 rate limit: worth another try, as is everything from 500.
_TRANSIENT = frozenset({408, 409, 425, 429})
# The text was too long or not wanted: says nothing about whether the endpoint works.
_ABOUT_THE_TEXT = frozenset({400, 413, 422})


@dataclass
class Line:
    """One URL's rate: the moment (monotonic seconds) before which nobody asks it again."""

    free_at: float = 0.0

    def next_turn(self, now: float, requests_per_minute: float) -> float:
        """Seconds to wait for a turn; takes it."""
        turn = max(now, self.free_at)
        self.free_at = turn + (60.0 / requests_per_minute if requests_per_minute else 0.0)
        return turn - now


@dataclass
class Health:
    """A member's failures in a row, and how long it is left alone for them."""

    failures: int = 0
    last: str = ""
    paused_until: float = 0.0

    def refusal(self, now: float) -> str:
        """Why it is not asked now; empty when it is."""
        if now >= self.paused_until:
            return ""
        return f"not asked: {self.failures} failures in a row, the last: {self.last}"

    def note(self, flaw: Flaw | None, now: float, limits: Endpoints) -> None:
        """Count a failure, or forget them all once the endpoint has shown to be alive.

        After a pause the first failure pauses again: the count is kept until something succeeds.
        """
        if flaw is None or flaw.alive:
            self.failures, self.paused_until = 0, 0.0
            return
        self.failures, self.last = self.failures + 1, flaw.reason
        if self.failures >= limits.failures_before_pause:
            self.paused_until = now + limits.pause_seconds


@dataclass(frozen=True)
class ChatEndpoint:
    """One model behind an OpenAI-compatible endpoint; `key_variable` names where its API key is."""

    address: EndpointAddress
    limits: Endpoints = field(default_factory=Endpoints)
    key_variable: str | None = None
    line: Line = field(default_factory=Line, compare=False)
    health: Health = field(default_factory=Health, compare=False)

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def identity(self) -> str:
        """Name, prompt and decoding: what its answers depend on. Timeouts, limits and keys are not in it."""
        return f"{self.name} prompt {PROMPT_VERSION} {json.dumps(self.body(''), sort_keys=True)}"

    def body(self, requirements: str) -> dict[str, Any]:
        """The request's JSON."""
        limits = self.limits
        system = [{"role": "system", "content": limits.system_prompt}] if limits.system_prompt else []
        values = {
            "model": self.address.model,
            "messages": [*system, {"role": "user", "content": PROMPT + requirements}],
            "max_tokens": limits.max_tokens,
            "temperature": limits.temperature,
            "seed": limits.seed,
            **limits.request,
        }
        return {name: value for name, value in values.items() if value is not None}

    def key(self) -> str:
        """The API key, read when it is used; empty when there is none."""
        return os.environ.get(self.key_variable or "", "").strip()

    def reconstruct(self, requirements: str) -> Reconstruction:
        with Calls() as calls:
            return calls.place(self, requirements).result()


def own_key_variable(address: EndpointAddress) -> str:
    """The environment variable for one endpoint's key: `OPENAI_API_KEY_` and host and port, in capitals."""
    where = address.host if address.port is None else f"{address.host}_{address.port}"
    return f"{DEFAULT_KEY}_{re.sub(r'[^A-Z0-9]', '_', where.upper())}"


def wait_before_retry(
    flaw: Flaw, attempt: int, left: float, retries: int, jitter: float
) -> tuple[float | None, str]:
    """Seconds before request number `attempt + 1` is sent again, or None, and why.

    An endpoint's own wish (`Retry-After`) is followed when the `left` seconds of the deadline allow it;
    otherwise the wait doubles from half a second to eight, shortened by up to a quarter (`jitter`, 0 to 1).
    """
    allowed = retries if flaw.retries is None else min(retries, flaw.retries)
    if attempt >= allowed:
        return None, f"{flaw.reason} (asked {attempt + 1} times)" if attempt else flaw.reason
    backoff = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS) * (1 - jitter / 4)
    wait = backoff if flaw.wait is None else max(flaw.wait, 0.0)
    if wait >= left:
        return None, f"{flaw.reason} (asks for {wait:.0f} s, {max(left, 0.0):.0f} s of the deadline are left)"
    return wait, flaw.reason


class Calls:
    """Requests to endpoints in the background: one event loop on a thread of its own, ended with the block.

    Leaving the block cancels what is still under way, so nothing waits for a dead endpoint.
    """

    def __enter__(self) -> Calls:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="orchestra", daemon=True)
        self._thread.start()
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._rng = Random(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._hang_up()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def place(self, endpoint: ChatEndpoint, requirements: str) -> Future[Reconstruction]:
        """Ask; the answer comes in time or is missing, whatever the endpoint does."""
        return self._run(self._ask(endpoint, requirements))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _hang_up(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    async def _ask(self, endpoint: ChatEndpoint, requirements: str) -> Reconstruction:
        slots = self._slots.setdefault(endpoint.address.url, asyncio.Semaphore(endpoint.limits.concurrency))
        async with slots:
            health, limits = endpoint.health, endpoint.limits
            if refusal := health.refusal(time.monotonic()):
                return Reconstruction(endpoint.name, "missing", detail=printable(refusal))
            if health.failures >= limits.failures_before_pause:
                # The pause is over: this request tries it, the others stay away until it has come back.
                health.paused_until = time.monotonic() + limits.timeout_seconds
            await asyncio.sleep(endpoint.line.next_turn(time.monotonic(), limits.requests_per_minute))
            try:
                code = await self._until_answered(endpoint, requirements)
            except Flaw as flaw:
                flaw.reason = _told(flaw.reason, endpoint)
                health.note(flaw, time.monotonic(), limits)
                return Reconstruction(endpoint.name, "missing", detail=flaw.reason)
            health.note(None, time.monotonic(), limits)
            return Reconstruction(endpoint.name, "answered", code)

    async def _until_answered(self, endpoint: ChatEndpoint, requirements: str) -> str:
        """The code, within the deadline and the allowed retries; raises the last `Flaw`."""
        limits, line = endpoint.limits, endpoint.line
        deadline = time.monotonic() + limits.timeout_seconds
        attempt, so_far = 0, ""
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                while True:
                    try:
                        return code_of(content_of(await self._exchange(endpoint, requirements)))
                    except Flaw as flaw:
                        left = deadline - time.monotonic()
                        wait, reason = wait_before_retry(
                            flaw, attempt, left, limits.retries, self._rng.random()
                        )
                        if wait is None:
                            raise Flaw(reason, alive=flaw.alive) from None
                        if flaw.wait is not None:
                            line.free_at = max(line.free_at, time.monotonic() + wait)
                        turn = line.next_turn(time.monotonic(), limits.requests_per_minute)
                    attempt, so_far = attempt + 1, f" after {reason}"
                    await asyncio.sleep(max(wait, turn))
        except TimeoutError:
            raise Flaw(f"no answer within {limits.timeout_seconds:g} s{so_far}") from None

    async def _exchange(self, endpoint: ChatEndpoint, requirements: str) -> bytes:
        """One request; the body of a good reply. Redirects are not followed: the address is the address."""
        import httpx2  # 0.13 s: only where an endpoint is used

        client = self._clients.get(endpoint.address.url)
        if client is None:
            client = self._clients[endpoint.address.url] = _client(endpoint.limits)
        key = endpoint.key()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise Flaw(f"{endpoint.key_variable} holds what no API key is", retries=0)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        sent = json.dumps(endpoint.body(requirements)).encode("ascii")
        try:
            async with client.stream(
                "POST", f"{endpoint.address.url}/chat/completions", content=sent, headers=headers
            ) as reply:
                body = await _read(reply, int(endpoint.limits.max_answer_mib * (1 << 20)))
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise Flaw(f"{type(error).__name__}: {error}") from None
        if reply.status_code != 200:
            raise _refusal(reply.status_code, reply.headers, body)
        return body


def _client(limits: Endpoints) -> httpx2.AsyncClient:
    import httpx2

    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(limits.timeout_seconds, connect=limits.connect_seconds),
        limits=httpx2.Limits(max_connections=limits.concurrency),
        # Compressed, a small reply could grow without bound while it is read.
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
    )


async def _read(reply: httpx2.Response, most: int) -> bytes:
    if reply.headers.get("content-encoding", "identity") != "identity":
        raise Flaw("the reply is compressed, which was not asked for", retries=0)
    body = bytearray()
    async for chunk in reply.aiter_raw():
        body += chunk
        if len(body) > most:
            raise Flaw(f"the reply is longer than {most / (1 << 20):g} MiB", retries=0)
    return bytes(body)


def _refusal(status: int, headers: httpx2.Headers, body: bytes) -> Flaw:
    """What a reply other than 200 means."""
    said = body[:200].decode("utf-8", "replace")
    if 300 <= status < 400:
        return Flaw(f"HTTP {status}: redirects to {headers.get('location', 'nowhere')[:100]}", retries=0)
    if status in _TRANSIENT or status >= 500:
        return Flaw(f"HTTP {status}: {said}", wait=retry_after(headers.get("retry-after"), time.time))
    return Flaw(f"HTTP {status}: {said}", alive=status in _ABOUT_THE_TEXT, retries=0)


def retry_after(value: str | None, clock: Callable[[], float]) -> float | None:
    """Seconds of a `Retry-After` header: a number or a date; None when it is absent or neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - clock()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < float("inf") else None


def _told(reason: str, endpoint: ChatEndpoint) -> str:
    """The reason, without the key an endpoint or a library may repeat in its complaint."""
    key = endpoint.key()
    return printable(reason.replace(key, "***") if key else reason)

"""Chat endpoints: reconstructors behind an OpenAI-compatible HTTP API (O1).

A failed request makes the member ``missing``, with its reason, and never scores. One deadline covers
everything (connecting, TLS, headers, a body that arrives slowly, retries and the waits between them). So
requests run on an event loop, where all of it can be canceled: the `RequestLoop`. All members at one URL
share its `RateLimiter`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any

from iccm_assets.endpoint_urls import EndpointAddress
from iccm_assets.scoring.answer_code import extract_code
from iccm_assets.scoring.chat_responses import InvalidResponse, is_out_of_credit, read_answer
from iccm_assets.scoring.endpoint_limits import CircuitBreaker, RateLimiter, parse_retry_after, retry_delay
from iccm_assets.scoring.reconstruction import (
    ANY_PROGRAM,
    ProgramShape,
    Reconstruction,
    to_printable_line,
)
from iccm_assets.settings import EndpointSettings

if TYPE_CHECKING:
    import httpx2

# Part of the orchestra's digest: raise it with every change of the prompt or of the rules which answers are
# valid, so that cached scores expire.
PROMPT_VERSION = 3
PROMPT = (
    "Implement these software requirements as one self-contained Python 3 module that uses only the "
    "standard library. Answer with a single fenced code block and nothing else.\n\n"
)
PROMPT_FILES = (
    "Implement these software requirements as one Python 3 program that uses only the standard library and "
    "has the files {paths}. Answer with one fenced code block for each file, with its path behind the "
    "language (```python {path}), and nothing else.\n\n"
)
STANDARD_LIBRARY = "the standard library"
MAX_NAMES = 100  # of packages and of files in a prompt
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# A longer invalid answer is cut where it is sent back to its model.
MAX_FOLLOW_UP_CHARACTERS = 20_000
FOLLOW_UP = (
    "This answer cannot be used: {reason}. Send the complete module again, in a single fenced Python code "
    "block and nothing else."
)
FOLLOW_UP_FILES = (
    "This answer cannot be used: {reason}. Send all files again, each in a fenced Python code block with its "
    "path behind the language, and nothing else."
)

Message = dict[str, str]


@dataclass(frozen=True)
class ChatEndpoint:
    """One model behind an endpoint; ``key_variable`` is the environment variable with its API key."""

    address: EndpointAddress
    limits: EndpointSettings = field(default_factory=EndpointSettings)
    key_variable: str | None = None
    rate_limiter: RateLimiter = field(default_factory=RateLimiter, compare=False)
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker, compare=False)

    @property
    def name(self) -> str:
        """The member's name: its URL and model."""
        return self.address.name

    @property
    def identity(self) -> str:
        """All that answers depend on: name, prompt and decoding, not timeouts, limits and keys (E1)."""
        return f"{self.name} prompt {PROMPT_VERSION} {json.dumps(self.build_request(''), sort_keys=True)}"

    def build_request(
        self, requirements: str, follow_ups: Sequence[Message] = (), shape: ProgramShape = ANY_PROGRAM
    ) -> dict[str, Any]:
        """Build the JSON body of the request; ``follow_ups`` are the messages after the requirements.

        ``shape`` says what the program may import (J5) and which files it has (J6).
        """
        limits = self.limits
        prompt = write_prompt(limits.prompt, shape)
        system = [{"role": "system", "content": limits.system_prompt}] if limits.system_prompt else []
        values = {
            "model": self.address.model,
            "messages": [*system, {"role": "user", "content": prompt + requirements}, *follow_ups],
            "max_tokens": limits.max_tokens,
            "temperature": limits.temperature,
            "seed": limits.seed,
            **limits.request,
        }
        return {name: value for name, value in values.items() if value is not None}

    def read_api_key(self) -> str:
        """Read the API key from the environment; empty when there is none."""
        return os.environ.get(self.key_variable or "", "").strip()


def write_prompt(prompt: str, shape: ProgramShape) -> str:
    """Write the instruction before the requirements; ``prompt`` is a member's own, empty for the default."""
    packages, paths = (", ".join(names[:MAX_NAMES]) for names in (shape.packages, shape.paths))
    if prompt:
        parts = [
            prompt.rstrip(),
            f"These packages may be imported: {packages}." if packages else "",
            f"The program has the files {paths}, each in a code block with its path." if paths else "",
        ]
        return "".join(f"{part}\n\n" for part in parts if part)
    text = PROMPT_FILES.format(paths=paths, path=shape.paths[-1]) if paths else PROMPT
    libraries = f"{STANDARD_LIBRARY} and these packages: {packages}" if packages else STANDARD_LIBRARY
    return text.replace(STANDARD_LIBRARY, libraries, 1)


def get_key_variable(address: EndpointAddress) -> str:
    """Return the variable of one endpoint's own key: `OPENAI_API_KEY_`, host and port, in upper case."""
    location = address.host if address.port is None else f"{address.host}_{address.port}"
    return f"{DEFAULT_KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]', '_', location.upper())}"


def build_follow_ups(problem: InvalidResponse, shape: ProgramShape = ANY_PROGRAM) -> list[Message]:
    """Return the messages that tell a model what was wrong with its answer; none where it gave none."""
    if not problem.endpoint_works:
        return []
    # Some servers accept neither an empty message nor two of one role in a row.
    answer = problem.answer.strip()[:MAX_FOLLOW_UP_CHARACTERS] or "(no answer)"
    return [
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": (FOLLOW_UP_FILES if shape.paths else FOLLOW_UP).format(reason=problem.reason),
        },
    ]


class RequestLoop(AbstractContextManager["RequestLoop"]):
    """Background requests to endpoints: one event loop on its own thread, for the length of the block.

    Leaving the block cancels the requests in flight, so nothing waits for a dead endpoint.
    """

    def __enter__(self) -> RequestLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="orchestra", daemon=True)
        self._thread.start()
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._rng = Random(0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(self._cancel_all()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(
        self, endpoint: ChatEndpoint, requirements: str, shape: ProgramShape = ANY_PROGRAM
    ) -> Future[Reconstruction]:
        """Send a request; the result is ``answered`` or ``missing``, within the endpoint's deadline."""
        return self._run(self._request(endpoint, requirements, shape))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    async def _request(
        self, endpoint: ChatEndpoint, requirements: str, shape: ProgramShape
    ) -> Reconstruction:
        breaker, limits = endpoint.circuit_breaker, endpoint.limits
        async with self._slots.setdefault(endpoint.address.url, asyncio.Semaphore(limits.concurrency)):
            if reason := breaker.rejection_reason(time.monotonic()):
                return Reconstruction(endpoint.name, "missing", detail=to_printable_line(reason))
            if breaker.failures >= limits.circuit_breaker_failures:
                # The cooldown is over: this request probes the endpoint, the others wait for its result.
                breaker.open_until = time.monotonic() + limits.timeout_seconds
            await asyncio.sleep(
                endpoint.rate_limiter.reserve_slot(time.monotonic(), limits.requests_per_minute)
            )
            try:
                code = await self._request_with_retries(endpoint, requirements, shape)
            except InvalidResponse as problem:
                # An endpoint or a library may repeat the key in its message.
                key = endpoint.read_api_key()
                problem.reason = to_printable_line(
                    problem.reason.replace(key, "***") if key else problem.reason
                )
                breaker.record_result(problem, time.monotonic(), limits)
                return Reconstruction(endpoint.name, "missing", detail=problem.reason)
            breaker.record_result(None, time.monotonic(), limits)
            return Reconstruction(endpoint.name, "answered", code)

    async def _request_with_retries(
        self, endpoint: ChatEndpoint, requirements: str, shape: ProgramShape
    ) -> str:
        """Return the code, within the deadline and the allowed retries; raises the last `InvalidResponse`."""
        limits, limiter = endpoint.limits, endpoint.rate_limiter
        deadline = time.monotonic() + limits.timeout_seconds
        attempt, last_failure, follow_ups = 0, "", list[Message]()
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                while True:
                    try:
                        request = endpoint.build_request(requirements, follow_ups, shape)
                        body = await self._send(endpoint, request)
                        return extract_code(read_answer(body), requirements)
                    except InvalidResponse as problem:
                        now = time.monotonic()
                        wait, reason = retry_delay(
                            problem, attempt, deadline - now, limits.retries, self._rng.random()
                        )
                        if wait is None:
                            raise InvalidResponse(reason, endpoint_works=problem.endpoint_works) from None
                        follow_ups = build_follow_ups(problem, shape) or follow_ups
                        if problem.retry_after_seconds is not None:
                            limiter.next_slot_at = max(limiter.next_slot_at, now + wait)
                        wait = max(wait, limiter.reserve_slot(now, limits.requests_per_minute))
                    attempt, last_failure = attempt + 1, f" after {reason}"
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise InvalidResponse(f"no answer within {limits.timeout_seconds:g} s{last_failure}") from None

    async def _send(self, endpoint: ChatEndpoint, request: Mapping[str, Any]) -> bytes:
        """Send one request and return the body of a 200 response; redirects are not followed."""
        import httpx2  # 0.13 s: only where an endpoint is used

        url, limits, key = endpoint.address.url, endpoint.limits, endpoint.read_api_key()
        if url not in self._clients:
            self._clients[url] = httpx2.AsyncClient(
                limits=httpx2.Limits(max_connections=limits.concurrency),
                # Compressed, a small response could grow without bound while it is read.
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InvalidResponse(f"{endpoint.key_variable} is not a valid API key", max_retries=0)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        content = json.dumps(request).encode("ascii")
        timeout = httpx2.Timeout(limits.timeout_seconds, connect=limits.connect_seconds)
        try:
            async with self._clients[url].stream(
                "POST", f"{url}/chat/completions", content=content, headers=headers, timeout=timeout
            ) as response:
                body = await _read_body(response, int(limits.max_response_mib * (1 << 20)))
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise InvalidResponse(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise _status_error(response.status_code, response.headers, body)
        return body


async def _read_body(response: httpx2.Response, max_bytes: int) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise InvalidResponse(
            "the response is compressed although identity encoding was requested", max_retries=0
        )
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise InvalidResponse(f"the response is longer than {max_bytes / (1 << 20):g} MiB", max_retries=0)
    return bytes(body)


def _status_error(status: int, headers: httpx2.Headers, body: bytes) -> InvalidResponse:
    """Classify a response other than 200: permanent, worth a retry, or a rejection of this text."""
    if 300 <= status < 400:
        return InvalidResponse(
            f"HTTP {status}: redirects to {headers.get('location', 'nowhere')[:100]}", max_retries=0
        )
    reason = f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
    if status in (403, 429) and is_out_of_credit(body):
        return InvalidResponse(reason, max_retries=0)
    # 408 timeout, 409 lock, 425 too early, 429 rate limit
    if status in (408, 409, 425, 429) or status >= 500:
        return InvalidResponse(
            reason, retry_after_seconds=parse_retry_after(headers.get("retry-after"), time.time)
        )
    # The text was too long or rejected, which does not mean that the endpoint is broken.
    return InvalidResponse(reason, endpoint_works=status in (400, 413, 422), max_retries=0)

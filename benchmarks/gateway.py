"""Measure the latency the gateway adds, and its behavior under overload and with a failing canary arm.

    python benchmarks/gateway.py [latency] [first-token] [overload] [faults] [--seconds 20] [--requests 10000]

`latency`: requests at a fixed rate, sent on time whatever the responses do, alternately to both APIs of the
gateway with a stub model, and to a bare Starlette application that reads and writes the same JSON; reports
the differences. `first-token`: the time to the first text of a streamed answer, alternately from the gateway
and from a plain streamer of transformers, for the packaged model and a random one of 60 million weights.
`overload`: three times the capacity of the stub model; how fast the surplus is rejected, and whether memory
and service recover. `faults`: half of the sessions to a canary arm that throws, hangs, or returns nothing or
binary data.
The database is a temporary embedded server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.db.notify import notify_routing
from iccm_assets.models.generation import LoadedModel, load_model
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import PACKAGED_MODEL

SOURCE = "def add(a, b):\n    return a + b\n"
LONG_SOURCE = "class Numbers:\n" + "".join(
    f"    def add_{n}(self, value, limit={n}):\n        if value > limit:\n            return None\n"
    f"        return value + {n}\n\n"
    for n in range(1, 9)
)
CHAT = "/v1/chat/completions"
MAX_NEW_TOKENS = 24
BARE = """
import json, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from iccm_assets.gateway.server import listen, socket_url
from iccm_assets.settings import get_settings

async def respond(request):
    body = json.loads(await request.body())
    text = "The function `add` shall return the sum."
    response = {"session_id": body.get("session_id"), "requirements": text}
    return Response(json.dumps(response), media_type="application/json")

listening = listen("127.0.0.1", 0, get_settings())
print(socket_url(listening), flush=True)
routes = [Route("/v1/requirements", respond, methods=["POST"])]
config = uvicorn.Config(Starlette(routes=routes), access_log=False, log_config=None, lifespan="off")
server = uvicorn.Server(config)
server.run(sockets=[listening])
"""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Responses:
    """Statuses, milliseconds since each request was due, arms, and rejections without Retry-After."""

    statuses: Counter[int] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    without_retry: int = 0


class Client:
    """Keep-alive connections of a minimal client."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(
        self, session: str, responses: Responses, due: float, path: str = "/v1/requirements"
    ) -> None:
        values = {"source_code": SOURCE, "session_id": session}
        if path == CHAT:
            messages = [{"role": "user", "content": SOURCE}]
            values = {"model": "cet-d", "messages": messages, "metadata": {"session_id": session}}
        body = json.dumps(values).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        reader, writer = self._idle.pop() if self._idle else await self._connect()
        writer.write(head.encode() + body)
        status, headers, content = await _reply(reader)
        self._idle.append((reader, writer))
        milliseconds = 1000 * (time.perf_counter() - due)
        responses.statuses[status] += 1
        if status == 200:
            responses.answered.append(milliseconds)
            responses.arms[json.loads(content).get("arm", "")] += 1
        else:
            responses.rejected.append(milliseconds)
            responses.without_retry += b"retry-after" not in headers

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split(b" ")[1]), head, await reader.readexactly(length)


async def at_rate(url: str, rate: float, count: int, name: str, path: str = "/v1/requirements") -> Responses:
    """`count` requests, one every 1/rate seconds, each due at its own time (no coordinated omission)."""
    client, responses, begun = Client(url), Responses(), time.perf_counter()
    tasks = []
    for number in range(count):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.send(f"{name}-{number}", responses, due, path)))
    await asyncio.gather(*tasks)
    return responses


@contextlib.contextmanager
def server(command: list[str], environment: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def gateway(
    url: str,
    home: Path,
    seconds: float = 0.0,
    faults: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
) -> contextlib.AbstractContextManager[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "benchmarks.stub_backend", "--seconds", str(seconds)]
    command += ["--faults", json.dumps(faults or {})]
    return server(command, {"ICCM_DATABASE_URL": url, "ICCM_HOME": str(home), **(settings or {})})


async def ready(url: str, expected: str = "200") -> None:
    """Wait until the gateway responds, and if requested until the ``expected`` arm does."""
    client = Client(url)
    for number in range(600):
        responses = Responses()
        with contextlib.suppress(OSError):
            await client.send(f"ready-{number}", responses, time.perf_counter())
        if responses.statuses[200] and (expected == "200" or responses.arms[expected]):
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not become ready")


def quantiles(values: list[float]) -> str:
    if not values:
        return "-"
    values = sorted(values)
    quantile_values = [values[min(len(values) - 1, int(share * len(values)))] for share in (0.5, 0.95, 0.99)]
    return f"p50 {quantile_values[0]:7.2f}  p95 {quantile_values[1]:7.2f}  p99 {quantile_values[2]:7.2f} ms"


def latency(url: str, home: Path, seconds: float, rate: float = 100.0, rounds: int = 4) -> None:
    """Alternate the rounds, and report the difference of their quantiles."""
    count = int(rate * seconds / rounds)
    with (
        gateway(url, home) as (served, _),
        server([sys.executable, "-c", BARE], {"ICCM_HOME": str(home)}) as (bare, _),
    ):
        asyncio.run(ready(served))
        durations: dict[str, list[list[float]]] = {"gateway": [], "OpenAI": [], "bare": []}
        native = "/v1/requirements"
        for number in range(rounds):
            for name, address, path in (
                ("gateway", served, native), ("OpenAI", served, CHAT), ("bare", bare, native),
            ):  # fmt: skip
                responses = asyncio.run(at_rate(address, rate, count, f"{name}-{number}", path))
                assert set(responses.statuses) == {200}, responses.statuses
                durations[name].append(sorted(responses.answered))
    for name, values in durations.items():
        say(f"{name:8} {quantiles([milliseconds for part in values for milliseconds in part])}")
    for name in ("gateway", "OpenAI"):
        for share in (0.5, 0.99):
            each = [
                gateway_ms[int(share * len(gateway_ms))] - bare_ms[int(share * len(bare_ms))]
                for gateway_ms, bare_ms in zip(durations[name], durations["bare"], strict=True)
            ]
            median = statistics.median(each)
            say(f"{name} added at p{100 * share:.0f}: median of {rounds} rounds {median:.2f} ms")


def first_token(url: str, engine: sa.Engine, home: Path, rounds: int = 20) -> None:
    """Alternate the two, and report the medians: the gateway reads the same model from its store."""
    for name, directory in (("packaged", PACKAGED_MODEL), ("random", _random_model(home / "random"))):
        stored = ModelStore(home).import_model(str(directory))
        with engine.begin() as conn:
            values = {"digest": stored.digest, "path": f"models/{stored.digest}"}
            conn.execute(t.model_versions.update().values(**values))
        loaded = load_model(stored.path)
        weights = sum(weight.numel() for weight in loaded.model.parameters())
        with _real_gateway(url, home) as address:
            for source in (SOURCE, LONG_SOURCE):
                served, plain = [], []
                for number in range(rounds + 2):
                    served.append(_first_served(address, source, number))
                    plain.append(_first_streamed(loaded, source))
                gateway_ms, plain_ms = statistics.median(served[2:]), statistics.median(plain[2:])
                tokens = len(loaded.encoder.encode_source(source, 1000).token_ids)
                say(
                    f"first text, {name} model of {weights / 1e6:.0f} M weights, {tokens} tokens of source:"
                    f" gateway {gateway_ms:.1f} ms, plain streamer {plain_ms:.1f} ms;"
                    f" {gateway_ms / plain_ms:.2f} x, {gateway_ms - plain_ms:+.1f} ms"
                )


def _random_model(directory: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED_MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=704, intermediate_size=2112, num_hidden_layers=9,
        num_attention_heads=11, max_position_embeddings=1024, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@contextlib.contextmanager
def _real_gateway(url: str, home: Path) -> Iterator[str]:
    environment = {
        "ICCM_DATABASE_URL": url, "ICCM_HOME": str(home),
        "ICCM_EVALUATION__MAX_NEW_TOKENS": str(MAX_NEW_TOKENS),
        # As by default and in this process: the local profile has one, for its tiny model.
        "ICCM_GATEWAY__THREADS": str(os.cpu_count()),
    }  # fmt: skip
    program = "from iccm_assets.cli.main import main; main()"
    port = str(20_000 + os.getpid() % 20_000)
    command = [sys.executable, "-c", program, "serve", "--port", port]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{address}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def _first_served(address: str, source: str, number: int) -> float:
    """Return the milliseconds to the first text of a streamed answer of the gateway; reads it to its end.

    Through a plain connection that is open: a client library's own time is not the gateway's.
    """
    messages = [{"role": "user", "content": source}]
    body = json.dumps(
        {"model": "cet-d", "messages": messages, "stream": True, "user": f"u{number}-{len(source)}"}
    )
    with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)) as connection:
        connection.connect()
        begun, first = time.perf_counter(), 0.0
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        for line in response:
            if not first and b'"content": ' in line and b'"content": ""' not in line:
                first = time.perf_counter() - begun
    return 1000 * first


def _first_streamed(loaded: LoadedModel, source: str) -> float:
    """Return the milliseconds to the first whole character of a streamer of transformers, in this process."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    class FirstText(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds, self.tokens, self.is_prompt = 0.0, list[int](), True

        def put(self, value: torch.Tensor) -> None:
            if not (self.is_prompt or self.seconds):
                self.tokens += value.tolist()
                text = loaded.tokenizer.decode(self.tokens, skip_special_tokens=True)
                if text and not text.endswith("\ufffd"):
                    self.seconds = time.perf_counter()
            self.is_prompt = False

        def end(self) -> None:
            pass

    begun, streamer = time.perf_counter(), FirstText()
    ids = torch.tensor([loaded.encoder.encode_source(source, 1000).token_ids])
    with torch.inference_mode():
        loaded.model.generate(input_ids=ids, max_new_tokens=MAX_NEW_TOKENS, streamer=streamer)
    return 1000 * (streamer.seconds - begun)


def overload(url: str, home: Path, seconds: float) -> None:
    """Send 120 requests a second to a model that serves 40."""
    limits = {"ICCM_GATEWAY__BATCH_SIZE": "4", "ICCM_GATEWAY__QUEUE_SIZE": "16"}
    with gateway(url, home, 0.1, settings=limits) as (served, process):
        asyncio.run(ready(served))
        before = process.memory_info().rss
        responses = asyncio.run(at_rate(served, 120.0, int(120 * seconds), "overload"))
        during = process.memory_info().rss
        after = asyncio.run(at_rate(served, 20.0, 100, "after"))
    say(f"3 x capacity: {dict(responses.statuses)}, without Retry-After {responses.without_retry}")
    say(f"  answered {quantiles(responses.answered)}")
    say(f"  rejected {quantiles(responses.rejected)}")
    say(f"  memory {before >> 20} MiB before, {during >> 20} MiB at the end")
    say(f"  afterwards {dict(after.statuses)}")


def faults(url: str, engine: sa.Engine, home: Path, requests: int) -> None:
    """Send equally many requests to each kind of failing canary arm, with half of the traffic."""
    kinds = {"error": "throws", "hang": "hangs", "empty": "returns nothing", "binary": "returns binary data"}
    names = {f"v2-{kind}": kind for kind in kinds}
    each = requests // len(kinds)
    with gateway(url, home, faults=names) as (served, _):
        asyncio.run(ready(served))
        for candidate, kind in names.items():
            with engine.begin() as conn:
                _version(conn, candidate, "canary")
                lease = sa.text("iccm.now() + interval '1 hour'")
                conn.execute(
                    t.rollouts.insert().values(
                        candidate=candidate, production="v1", weight=0.5, lease_until=lease
                    )
                )
                notify_routing(conn)
            time.sleep(3.0)
            responses = asyncio.run(at_rate(served, 150.0, each, kind))
            time.sleep(1.5)
            with engine.begin() as conn:
                stored = conn.execute(
                    sa.text(
                        "select assigned_arm, status, count(*) from iccm.requests"
                        " where session_id like :like group by 1, 2 order by 1, 2"
                    ),
                    {"like": f"{kind}-%"},
                ).all()
                conn.execute(t.rollouts.update().values(state="rolled_back", weight=0.0))
                notify_routing(conn)
            say(
                f"canary arm that {kinds[kind]:16} {dict(responses.statuses)} {quantiles(responses.answered)}"
            )
            say(f"  stored: {', '.join(f'{arm} {status} {count}' for arm, status, count in stored)}")


def _version(conn: sa.Connection, name: str, status: str) -> None:
    conn.execute(t.model_versions.insert().values(version=name, status=status, digest=f"d-{name}", path="/m"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", choices=["latency", "first-token", "overload", "faults", []], default=[]
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iccm-bench-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        home.chmod(0o755)
        embedded = EmbeddedServer(home, durable=False)
        url = embedded.ensure_running()
        engine = create_engine_for(url)
        try:
            upgrade(engine)
            with engine.begin() as conn:
                _version(conn, "v1", "production")
            what = options.what or ["latency", "first-token", "overload", "faults"]
            say(f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            if "latency" in what:
                latency(url, home, options.seconds)
            if "first-token" in what:
                first_token(url, engine, home)
            if "overload" in what:
                overload(url, home, options.seconds)
            if "faults" in what:
                faults(url, engine, home, options.requests)
            say(f"load after {os.getloadavg()[0]:.1f}")
        finally:
            engine.dispose()
            embedded.stop()


if __name__ == "__main__":
    main()

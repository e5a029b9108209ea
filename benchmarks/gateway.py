"""Measure the latency the gateway adds, and its behavior under overload and with a failing canary arm.

    python benchmarks/gateway.py [latency] [overload] [faults] [--seconds 20] [--requests 10000]

`latency`: requests at a fixed rate, sent on time whatever the responses do, alternately to the gateway with a
stub model and to a bare Starlette application that reads and writes the same JSON; reports the difference.
`overload`: three times the capacity of the stub model; how fast the surplus is rejected, and whether memory
and service recover. `faults`: half of the sessions to a canary arm that throws, hangs, or returns nothing or
binary data.
The database is a temporary embedded server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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

import psutil
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.db.notify import notify_routing

SOURCE = "def add(a, b):\n    return a + b\n"
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

    async def send(self, session: str, responses: Responses, due: float) -> None:
        body = json.dumps({"source_code": SOURCE, "session_id": session}).encode()
        head = "POST /v1/requirements HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
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


async def at_rate(url: str, rate: float, count: int, name: str) -> Responses:
    """`count` requests, one every 1/rate seconds, each due at its own time (no coordinated omission)."""
    client, responses, begun = Client(url), Responses(), time.perf_counter()
    tasks = []
    for number in range(count):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.send(f"{name}-{number}", responses, due)))
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
        durations: dict[str, list[list[float]]] = {"gateway": [], "bare": []}
        for number in range(rounds):
            for name, address in (("gateway", served), ("bare", bare)):
                responses = asyncio.run(at_rate(address, rate, count, f"{name}-{number}"))
                assert set(responses.statuses) == {200}, responses.statuses
                durations[name].append(sorted(responses.answered))
    for name, values in durations.items():
        say(f"{name:8} {quantiles([milliseconds for part in values for milliseconds in part])}")
    for share in (0.5, 0.99):
        each = [
            gateway_ms[int(share * len(gateway_ms))] - bare_ms[int(share * len(bare_ms))]
            for gateway_ms, bare_ms in zip(durations["gateway"], durations["bare"], strict=True)
        ]
        say(f"added at p{100 * share:.0f}: median of {rounds} rounds {statistics.median(each):.2f} ms")


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
    parser.add_argument("what", nargs="*", choices=["latency", "overload", "faults", []], default=[])
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
            what = options.what or ["latency", "overload", "faults"]
            say(f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            if "latency" in what:
                latency(url, home, options.seconds)
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

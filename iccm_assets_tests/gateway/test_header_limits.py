"""Headers and connections without them are limited, before any token is looked at (G6)."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from iccm_assets.gateway.http_protocol import HEADER_TIMEOUT_SECONDS, MAX_HEADERS
from iccm_assets_tests.factories.gateways import SOURCE, RunningGateway, eventually, gateway

TOKEN = "token-of-16-characters"
REQUEST = b"GET /v1/routing HTTP/1.1\r\nHost: localhost\r\n"
SLOW_CONNECTIONS = 1500
MAX_GROWTH_BYTES = 64 << 20


@pytest.fixture(scope="module")
def guarded(url: str, home: Path) -> Iterator[RunningGateway]:
    """A gateway that requires a token, which no request of these tests has."""
    with gateway(url, home / "headers", ICCM_GATEWAY__TOKENS=TOKEN) as running:
        yield running


def connect(running: RunningGateway) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def send(running: RunningGateway, *parts: bytes) -> bytes:
    """Send all of it, as far as the gateway lets us, and return the response."""
    with connect(running) as raw:
        try:
            for part in parts:
                raw.sendall(part)
        except OSError:
            return b""
        return receive(raw)


def receive(raw: socket.socket) -> bytes:
    received = b""
    try:
        while part := raw.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


def problem(response: bytes) -> tuple[int, str]:
    """The status in the first line, and the detail of the problem document."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower(), response[:500]
    document = json.loads(body)
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["detail"]


def memory(running: RunningGateway) -> int:
    return psutil.Process(running.process.pid).memory_info().rss


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"X" * 20_000 + b": a\r\n\r\n", 431),
        (b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n", 431),
        (b"X: y\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"".join(b"X-%d: %s\r\n" % (n, b"y" * 5000) for n in range(8)) + b"\r\n", 431),
        (b"X: " + b"a" * 15_000 + b"\r\n\r\n", 401),
        (b"X: y\r\n" * (MAX_HEADERS - 2) + b"\r\n", 401),
        (b"no header\r\n\r\n", 400),
    ],
)
def test_headers_are_limited_in_size_and_number(guarded, headers, status):
    closing = REQUEST + (b"Connection: close\r\n" if status == 401 else b"")
    assert problem(send(guarded, closing, headers))[0] == status


@pytest.mark.parametrize("chunk", [1 << 20, 1000, 1])
def test_a_header_is_limited_however_it_is_cut(guarded, chunk):
    sent = b"X: " + b"a" * 40_000 + b"\r\n\r\n"
    parts = [sent[start : start + chunk] for start in range(0, len(sent), chunk)]
    with connect(guarded) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(REQUEST)
        for part in parts:
            raw.sendall(part)
        assert problem(receive(raw))[0] == 431


def test_a_long_path_is_refused(guarded):
    path = b"a" * 20_000
    assert problem(send(guarded, b"GET /" + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0] == 414


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
)
def test_what_is_no_http_gets_a_problem_document(guarded, sent):
    status, detail = problem(send(guarded, sent))
    assert status == 400 and "not an HTTP request" in detail


def test_an_upgrade_is_an_ordinary_request(guarded):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"
    with connect(guarded) as raw:
        raw.sendall(REQUEST + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 401")


def test_trailers_count_as_headers(guarded):
    head = b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode()
    head += b"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    before = memory(guarded)
    send(guarded, head, *([b"X: " + b"a" * 10_000 + b"\r\n"] * 5000))
    assert memory(guarded) - before < MAX_GROWTH_BYTES
    assert guarded.client.get("/healthz").status_code == 200


def test_headers_without_end_are_cut_early(guarded):
    before, sent = memory(guarded), 0
    with connect(guarded) as raw:
        raw.sendall(REQUEST)
        try:
            while sent < 600 << 20:
                raw.sendall(b"X-Filler: " + b"a" * (64 << 10) + b"\r\n")
                sent += 64 << 10
        except OSError:
            pass
    assert sent < 16 << 20
    assert memory(guarded) - before < MAX_GROWTH_BYTES
    assert guarded.client.get("/healthz").status_code == 200


def trickle(running: RunningGateway, start: bytes, answer_end: bytes, piece: bytes) -> tuple[bytes, float]:
    """Read the answer to `start`, then send a piece a second; return what ended that, and when."""
    with connect(running) as raw:
        raw.sendall(start)
        answered = b""
        while not answered.endswith(answer_end):
            answered += raw.recv(4096)
        raw.settimeout(1.0)
        started, received = time.monotonic(), None
        while received is None and time.monotonic() - started < 2 * HEADER_TIMEOUT_SECONDS:
            try:
                raw.sendall(piece)
                received = raw.recv(4096)
            except TimeoutError:
                pass
            except OSError:
                received = b""
        assert received is not None
        return received, time.monotonic() - started


@pytest.mark.slow
def test_what_arrives_slowly_ends_by_its_limit(guarded):
    """Headers, blank lines after a request, which are no request yet, and a body after its response."""
    tries = [
        (REQUEST, b"", b"X"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"}", b"\r\n"),
        (b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n", b"}", b"a"),
    ]
    with ThreadPoolExecutor(len(tries)) as pool:
        endings = list(pool.map(lambda values: trickle(guarded, *values), tries))
    assert [ending[:12] for ending, _ in endings] == [b"HTTP/1.1 408", b"", b""]
    for _, seconds in endings:
        assert HEADER_TIMEOUT_SECONDS - 2 < seconds < 1.5 * HEADER_TIMEOUT_SECONDS


def test_slow_connections_hurt_nobody(served):
    """They are more than are kept waiting: the oldest make room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * SLOW_CONNECTIONS:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * SLOW_CONNECTIONS), hard))
    served.request()
    before, statuses = memory(served), []
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(served)) for _ in range(SLOW_CONNECTIONS)]
        for _ in range(4):
            for raw in slow:
                with suppress(OSError):
                    raw.sendall(b"G")
            for number in range(5):
                with httpx2.Client(base_url=served.url, timeout=30, verify=False) as client:
                    body = {"source_code": SOURCE, "session_id": f"slow-{number}"}
                    statuses.append(client.post("/v1/requirements", json=body).status_code)
            time.sleep(0.5)
        assert memory(served) - before < MAX_GROWTH_BYTES
    assert statuses == [200] * 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert eventually(lambda: len(psutil.Process(served.process.pid).net_connections()) < 50)

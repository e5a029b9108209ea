"""Members behind chat endpoints: a faulty member is missing, never a wrong score (O1).

The tests run against the project's own endpoint, over real HTTP.
"""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from iccm_assets.scoring.orchestra import Orchestra, ReconstructionRequest, load_orchestra
from iccm_assets.scoring.scoring import ScoringTask, score_texts
from iccm_assets.settings import EndpointSettings, Settings
from iccm_assets.simulation.reconstructors import RECONSTRUCTORS
from iccm_assets.simulation.reconstructors.fault_injection import FAULTS, parse_faults
from iccm_assets.simulation.reconstructors.mock_endpoint import FaultConfig, MockEndpoint
from iccm_assets.suites.test_suites import parse_suite

TEXT = (
    "The function `rate` shall take `weight`. When `weight` is less than 3, it shall return 5. "
    "Otherwise it shall return 9."
)
SUITE = parse_suite({"kind": "cases", "cases": [{"call": "rate", "args": [n], "expect": 9} for n in (3, 4)]})
QUICK = EndpointSettings(timeout_seconds=5, connect_seconds=2, retries=0)
Members = tuple[MockEndpoint, str]


class ScriptedFaults(FaultConfig):
    """Faults in the order in which requests arrive; counts how many run concurrently."""

    def __init__(self, *faults: str, dwell: float = 0.0) -> None:
        super().__init__(retry_after_seconds=0.01)
        self.script, self.dwell = list(faults), dwell
        self.active = self.max_concurrent = 0

    def draw_fault(self, model: str, text: str) -> str:
        self.active += 1
        self.max_concurrent = max(self.max_concurrent, self.active)
        time.sleep(self.dwell)
        self.active -= 1
        super().draw_fault(model, text)
        return self.script.pop(0) if self.script else ""


def load_one_member(endpoint: MockEndpoint, **limits: Any) -> Orchestra:
    first = endpoint.members.split(",")[0]
    return load_orchestra(first, 1, QUICK.model_copy(update=limits))


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "slow"])
def test_every_fault_makes_the_member_missing_and_says_why(fault: str) -> None:
    timeout = 0.4 if fault in {"hang", "drip"} else 5
    with MockEndpoint(FaultConfig({fault: 1.0})) as endpoint:
        [answer] = load_one_member(endpoint, timeout_seconds=timeout).reconstruct(TEXT)
    assert (answer.status, answer.implementation) == ("missing", "")
    assert answer.detail and "Traceback" not in answer.detail


def test_a_slow_answer_is_an_answer() -> None:
    with MockEndpoint(FaultConfig({"slow": 1.0}, slow_seconds=0.1)) as endpoint:
        [answer] = load_one_member(endpoint).reconstruct(TEXT)
    assert (answer.status, answer.implementation.rstrip()) == (
        "answered",
        RECONSTRUCTORS["strict"](TEXT).rstrip(),
    )


@pytest.mark.parametrize(
    ("faults", "retries", "status", "requests"),
    [
        (["429", "500"], 2, "answered", 3),
        (["garbage", "half"], 2, "answered", 3),
        (["drop"], 1, "answered", 2),
        (["500", "500"], 1, "missing", 2),
        (["open"], 2, "answered", 2),
        (["prose", "several"], 5, "missing", 2),
        (["length"], 5, "missing", 1),
        (["filter"], 5, "missing", 1),
        (["redirect"], 5, "missing", 1),
        (["huge"], 5, "missing", 1),
    ],
)
def test_a_request_is_retried_where_that_can_help(
    faults: list[str], retries: int, status: str, requests: int
) -> None:
    faults = ScriptedFaults(*faults)
    with MockEndpoint(faults) as endpoint:
        [answer] = load_one_member(endpoint, retries=retries).reconstruct(TEXT)
    assert (answer.status, faults.request_counts["strict"]) == (status, requests), answer.detail


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    with MockEndpoint(FaultConfig({"429": 1.0}, retry_after_seconds=3600)) as endpoint:
        [answer] = load_one_member(endpoint, retries=5).reconstruct(TEXT)
    assert "retry after 3600 s" in answer.detail
    assert endpoint.config.request_counts["strict"] == 1


def test_one_url_never_has_more_concurrent_requests_than_the_limit() -> None:
    faults = ScriptedFaults(dwell=0.05)
    with MockEndpoint(faults) as endpoint:
        limits = QUICK.model_copy(update={"concurrency": 3})
        orchestra = load_orchestra(endpoint.members, 1, limits)
        answers = list(
            orchestra.reconstruct_many([ReconstructionRequest(TEXT.replace("3", str(n))) for n in range(6)])
        )
    assert {answer.status for group in answers for answer in group} == {"answered"}
    assert faults.max_concurrent == 3


def test_a_dead_endpoint_costs_a_few_timeouts_and_not_one_for_each_text() -> None:
    with MockEndpoint(FaultConfig({"hang": 1.0})) as endpoint:
        orchestra = load_one_member(endpoint, timeout_seconds=0.3, concurrency=4, circuit_breaker_failures=4)
        answers = [
            group[0]
            for group in orchestra.reconstruct_many([ReconstructionRequest(f"{TEXT} {n}") for n in range(60)])
        ]
        assert {answer.status for answer in answers} == {"missing"}
        assert endpoint.config.request_counts["strict"] <= 8
        assert answers[-1].detail.startswith("skipped after ")
        assert "no answer within 0.3 s" in answers[-1].detail


def test_after_the_cooldown_one_request_probes_a_dead_endpoint_and_restores_it() -> None:
    faults = ScriptedFaults("500", "500")
    with MockEndpoint(faults) as endpoint:
        orchestra = load_one_member(
            endpoint, circuit_breaker_failures=2, circuit_breaker_cooldown_seconds=1.5
        )
        assert [orchestra.reconstruct(TEXT)[0].status for _ in range(3)] == ["missing"] * 3
        assert faults.request_counts["strict"] == 2
        time.sleep(1.5)
        assert [orchestra.reconstruct(TEXT)[0].status for _ in range(2)] == ["answered"] * 2


@contextmanager
def raw_server(reply: Callable[[str], bytes]) -> Iterator[str]:
    """Run a server that answers ``reply(Authorization header)``; yields its address as a member."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            for byte in reply(self.headers.get("Authorization", "")).split(b"|"):
                self.wfile.write(byte)
                self.wfile.flush()
                time.sleep(0.02)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"openai:http://127.0.0.1:{server.server_address[1]}/v1#m"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("key", ["sk-0123456789", "sk-0123456789\n"])
def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    headers: list[str] = []

    def echo(authorization: str) -> bytes:
        headers.append(authorization)
        return b"HTTP/1.1 401 No\r\n\r\nIncorrect API key: " + authorization.encode()

    with raw_server(echo) as address:
        orchestra = load_orchestra(address, 1, QUICK)
        [answer] = orchestra.reconstruct(TEXT)
    assert headers == ["Bearer sk-0123456789"]
    assert "HTTP 401: Incorrect API key: Bearer ***" in answer.detail
    assert "sk-" not in f"{answer}{orchestra}{orchestra.digest}"


def test_an_invalid_key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-01\r\nX-Evil: 1")
    [answer] = load_orchestra("openai:http://127.0.0.1:9/v1#m", 1, QUICK).reconstruct(TEXT)
    assert answer.detail == "OPENAI_API_KEY is not a valid API key"


OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (OK_HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}", mtime=0), "compressed"),
        (OK_HEAD + b"X-Drip: " + b"|x" * 500, "no answer within"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 418 Teapot\r\n\r\n\x00\xff short and stout", "HTTP 418"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
def test_malformed_http_is_missing(reply: bytes, words: str) -> None:
    with raw_server(lambda _: reply) as address:
        limits = QUICK.model_copy(update={"timeout_seconds": 1.0})
        [answer] = load_orchestra(address, 1, limits).reconstruct(TEXT)
    assert answer.status == "missing" and words in answer.detail
    assert "\x00" not in answer.detail and "\n" not in answer.detail


def test_an_unreachable_address_is_missing() -> None:
    with socket.socket() as free, MockEndpoint() as plain:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        spec = (
            f"openai:http://127.0.0.1:{port}/v1#refused,openai:http://no-such-host.invalid/v1#unknown,"
            f"openai:{plain.url.replace('http:', 'https:')}#no-tls,openai:{plain.url}/nowhere#no-page,"
            f"openai:{plain.url}#no-model"
        )
        answers = load_orchestra(spec, 1, QUICK).reconstruct(TEXT)
    assert [answer.status for answer in answers] == ["missing"] * 5
    assert [answer.detail.split(":")[0] for answer in answers] == ["ConnectError"] * 3 + ["HTTP 404"] * 2


@pytest.mark.parametrize(("quorum", "conclusive"), [(2, True), (3, False)])
def test_with_one_of_two_endpoints_dead_the_quorum_decides(
    settings: Settings, quorum: int, conclusive: bool
) -> None:
    with MockEndpoint() as alive, MockEndpoint(FaultConfig({"500": 1.0})) as dead:
        spec = f"openai:{alive.url}#strict,openai:{dead.url}#strict,openai:{alive.url}#literal"
        orchestra = load_orchestra(spec, quorum, QUICK)
        [score] = score_texts([ScoringTask(TEXT, SUITE)], orchestra, settings)
    assert [member.status for member in score.members] == ["scored", "missing", "scored"]
    assert (score.test_pass_rate == 1.0) is conclusive
    assert (score.test_pass_rate is None) is not conclusive
    assert conclusive or "2 of 3 members gave a score, the quorum is 3" in score.reason


def test_endpoints_and_local_reconstructors_answer_in_the_orchestras_order() -> None:
    with MockEndpoint() as endpoint:
        spec = f"openai:{endpoint.url}#literal,builtin,openai:{endpoint.url}#strict"
        groups = list(
            load_orchestra(spec, 1, QUICK).reconstruct_many(
                [ReconstructionRequest(TEXT), ReconstructionRequest("no function")]
            )
        )
    expected = [RECONSTRUCTORS[name](TEXT).rstrip() for name in ("literal", *RECONSTRUCTORS, "strict")]
    assert [answer.implementation.rstrip() for answer in groups[0]] == expected
    # A text that a reconstructor cannot parse is at fault itself; an endpoint may lack code for any reason.
    assert [answer.status for answer in groups[1]] == ["missing", *["unreadable"] * 3, "missing"]


def test_faults_depend_on_the_request_and_not_on_the_order_in_which_requests_come() -> None:
    shares = parse_faults(",".join(f"{name}=0.04" for name in FAULTS))
    texts = [f"text {n}" for n in range(200)]

    def draw(order: list[str]) -> dict[str, str]:
        faults = FaultConfig(shares, seed=3)
        return {text: faults.draw_fault("strict", text) for text in order}

    assert draw(texts) == draw(texts[::-1])
    assert set(draw(texts).values()) == {"", *FAULTS}

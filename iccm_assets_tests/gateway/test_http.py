"""Hostile bodies, wrong paths, missing tokens: always a clear 4xx (G1, G6)."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from types import SimpleNamespace

import httpx2
import pytest
import uvicorn

from iccm_assets.errors import SettingsError
from iccm_assets.gateway.app import create_app
from iccm_assets.gateway.auth import Authenticator, require_tokens_off_loopback
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.request_body import MAX_DEPTH
from iccm_assets.gateway.service import Service
from iccm_assets.gateway.tokens import TokenStore
from iccm_assets_tests.factories.gateways import SOURCE, eventually, gateway

ASK = {"source_code": SOURCE}
CASES = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 1}]}


def body(**more: object) -> bytes:
    return json.dumps({**ASK, **more}).encode()


def nested(depth: int) -> bytes:
    return b'{"source_code": "x", "metadata": {"a": ' + b"[" * depth + b"]" * depth + b"}}"


HOSTILE = {
    "nothing": (b"", 400, "not JSON"),
    "no JSON": (b"source_code=x", 400, "line 1, column 1"),
    "cut short": (b'{"source_code": "x', 400, "not JSON"),
    "a list": (b"[]", 422, "valid dictionary"),
    "null": (b"null", 422, "valid dictionary"),
    "a field missing": (b"{}", 422, "source_code: Field required"),
    "an unknown field": (body(sourcecode="x"), 422, "sourcecode: Extra inputs"),
    "a number for a text": (body(source_code=1), 422, "source_code: Input should be a valid string"),
    "an empty source": (body(source_code=""), 422, "at least 1 character"),
    "an empty name": (body(session_id=""), 422, "session_id"),
    "a name of blanks": (body(session_id="  "), 422, "session_id"),
    "a name with a line break": (body(request_id="a\r\nX-Evil: 1"), 422, "request_id"),
    "a long name": (body(user_id="x" * 513), 422, "user_id"),
    "the name of an erased session": (body(session_id="erased:1"), 422, "may not begin"),
    "NaN": (b'{"source_code": "x", "metadata": {"a": NaN}}', 400, "NaN is not a finite number"),
    "minus infinity": (b'{"metadata": {"a": -Infinity}}', 400, "-Infinity is not a finite number"),
    "a number without end": (b'{"metadata": {"a": 1e999}}', 400, "1e999 is not a finite number"),
    "an integer of 5 000 digits": (b'{"metadata":{"a":' + b"9" * 5000 + b"}}", 400, "too long"),
    "a key twice": (b'{"source_code": "a", "source_code": "b"}', 400, "'source_code' appears twice"),
    "no UTF-8": (b'{"source_code": "\xff\xfe"}', 400, "not UTF-8"),
    "UTF-16": ('{"source_code": "x"}'.encode("utf-16"), 400, "not UTF-8"),
    "half a surrogate pair": (b'{"source_code": "\\ud800"}', 400, "surrogate"),
    "half a pair in a key": (b'{"source_code": "x", "metadata": {"\\udfff": 1}}', 400, "surrogate"),
    "NUL": (b'{"source_code": "a\\u0000b"}', 400, "NUL"),
    "NUL deep inside": (b'{"source_code": "x", "metadata": {"a": [{"\\u0000": 1}]}}', 400, "NUL"),
    "nested a little": (nested(MAX_DEPTH + 1), 400, "nested deeper"),
    "nested a lot": (nested(100_000), 400, "nested deeper"),
    "tests of no kind": (body(tests={"kind": "guess"}), 422, "tests: Value error, kind is 'guess'"),
    "tests without a case": (body(tests={"kind": "cases", "cases": []}), 422, "tests"),
    "metadata that is a list": (body(metadata=[1]), 422, "metadata"),
    "a mebibyte and one byte": (body(source_code="x" * (1 << 20)), 413, "larger than 1048576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_rejected_with_one_clear_reason(served, name):
    sent, status, detail = HOSTILE[name]
    response = served.client.post(
        "/v1/requirements", content=sent, headers={"Content-Type": "application/json"}
    )
    assert_problem(response, status)
    assert detail in response.json()["detail"]


def assert_problem(response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and problem["detail"] and "Traceback" not in response.text


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("\ufeff", {}),
        ("\\u0000", {}),  # six characters, and no NUL
        ("𝒳 = '\u2028'", {"metadata": {"é": {"a": [1, 2.5, True, None]}}}),
        ("x", {"tests": CASES}),
        ("x" * 200_000, {}),
        ("x", {"metadata": {"deep": json.loads("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))}}),
    ],
)
def test_unusual_but_valid_bodies_are_served(served, source, more):
    assert served.request(source_code=source, **more).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_only_plain_json_is_accepted(served, headers, status):
    bomb = gzip.compress(b" " * (50 << 20)) if "Content-Encoding" in headers else json.dumps(ASK).encode()
    assert served.client.post("/v1/requirements", content=bomb, headers=headers).status_code == status


def test_a_body_without_a_length_is_counted_while_it_is_read(served):
    def endless():
        for _ in range(200):
            yield b" " * (1 << 14)

    response = served.client.post(
        "/v1/requirements", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert_problem(response, 413)


def test_broken_connections_do_not_affect_other_requests(served):
    host, port = served.url.removeprefix("http://").split(":")
    for sent in (
        b"POST /v1/requirements HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(sent)
    assert served.request().status_code == 200


@pytest.mark.parametrize("unit", ["eyJ", "token=", "md5" + "1" * 400 + "% "])
def test_a_source_that_is_slow_to_redact_delays_nobody_else(served, unit):
    seconds = []

    def ask_meanwhile() -> None:
        with httpx2.Client(base_url=served.url, timeout=30, verify=False) as client:
            while hostile.is_alive() or not seconds:
                started = time.monotonic()
                assert client.get("/healthz").status_code == 200
                seconds.append(time.monotonic() - started)
                time.sleep(0.02)

    source = unit * (150_000 // len(unit))
    hostile = threading.Thread(target=served.request, kwargs={"source_code": source})
    hostile.start()
    ask_meanwhile()
    assert max(seconds) < 2.0  # 0.2 s on an idle machine; it was as long as the redaction: 10 s and more


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v1/requirements/", 404), ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/requirements", 405), ("PUT", "/v1/feedback", 405), ("DELETE", "/healthz", 405),
    ],
)  # fmt: skip
def test_wrong_paths_and_methods_get_problem_documents(served, method, path, status):
    response = served.client.request(method, path)
    assert_problem(response, status)
    assert status != 405 or response.headers["allow"]


def test_the_documentation_needs_nothing_from_the_network(served):
    page = served.client.get("/docs")
    assert page.status_code == 200 and "src=" not in page.text and "http-equiv" not in page.text
    document = served.client.get("/openapi.json").json()
    assert set(document["paths"]["/v1/requirements"]["post"]["responses"]) >= {
        "200",
        "400",
        "401",
        "413",
        "503",
    }


def test_routing_and_metrics_name_the_serving_version(served):
    served.request()
    shown = served.routing()
    assert shown["weights"] == {"v1": 1.0} and shown["rollout"] is None and shown["database"]
    text = served.client.get("/metrics").text
    assert (
        'iccm_gateway_requests_total{arm="production",assigned_arm="production",status="ok",version="v1"}'
        in text
    )
    # The gauges are updated when the routing is read again.
    ready = 'iccm_gateway_model_ready{version="v1"} 1.0'
    text = eventually(lambda: ready in (metrics := served.client.get("/metrics").text) and metrics)
    assert "iccm_gateway_database_up 1.0" in text


def test_every_endpoint_requires_a_token_if_tokens_are_configured(url, tmp_path):
    good, other = "a-token-of-enough-length", "another-token-of-enough"
    pages = {
        ("GET", "/healthz"): 200, ("GET", "/readyz"): 200, ("GET", "/metrics"): 401, ("GET", "/docs"): 401,
        ("GET", "/openapi.json"): 401, ("GET", "/v1/routing"): 401, ("POST", "/v1/requirements"): 401,
        ("POST", "/v1/conversations"): 401, ("POST", "/v1/feedback"): 401, ("GET", "/nowhere"): 401,
    }  # fmt: skip
    bodies = {
        "/v1/requirements": ASK,
        # A user may have several tokens: the session is the user's under both.
        "/v1/conversations": {"session_id": "tokens", "user_id": "u", "messages": []},
        "/v1/feedback": {"session_id": "tokens", "user_id": "u", "rating": 1},
    }
    with gateway(url, tmp_path, ICCM_GATEWAY__TOKENS=f"{good}, {other}") as running:
        for (method, path), without in pages.items():
            wrong = ("", "Bearer", f"Bearer {good}x", f"Bearer {good[:-1]}", f"Basic {good}", "Bearer ÿ")
            for header in (None, *wrong):
                headers = {} if header is None else {"Authorization": header.encode("latin-1")}
                response = running.client.request(method, path, headers=headers, json=bodies.get(path))
                assert response.status_code == without, (path, header)
                if without == 401:
                    assert_problem(response, 401)
                    assert response.headers["www-authenticate"] == "Bearer"
            for token in (good, other):
                headers = {"Authorization": f"Bearer {token}"}
                response = running.client.request(method, path, headers=headers, json=bodies.get(path))
                assert response.status_code == (404 if path == "/nowhere" else 200), response.text
        assert good not in running.log.read_text()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "127.0.0.9"}, 200),
        ({"Host": "[::1]:8321"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example.com"}, 403),
        ({"Host": "localhost.example.com"}, 403),
        ({"Host": "127.0.0.1.example.com:8321"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost@evil.example.com"}, 403),
    ],
)
def test_without_a_token_only_this_machines_own_names_and_pages_are_answered(served, headers, status):
    assert served.client.get("/v1/routing", headers=headers).status_code == status
    assert served.client.post("/v1/requirements", json=ASK, headers=headers).status_code == status
    answer = served.client.post("/v1/chat/completions", json={}, headers=headers)
    assert answer.status_code == (403 if status == 403 else 400) and "message" in answer.json()["error"]
    assert served.client.get("/healthz", headers=headers).status_code == 200


def test_an_address_reachable_from_other_hosts_requires_tokens():
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(SettingsError, match="ICCM_GATEWAY__TOKENS"):
            require_tokens_off_loopback(host, ())
        require_tokens_off_loopback(host, (b"x",))
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        require_tokens_off_loopback(host, ())


def test_an_unexpected_error_is_a_problem_without_details_and_keeps_the_connection(settings):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("a secret")

    local = Authenticator((), TokenStore(), "127.0.0.1", lambda: None)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(SimpleNamespace(service=Broken()), settings, local), log_config=None, lifespan="off"
        )
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    with httpx2.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
        for _ in range(3):
            response = client.get("/v1/routing")
            assert_problem(response, 500)
            assert "secret" not in response.text
            response = client.get("/v1/models")
            assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
            assert "secret" not in response.text
    server.should_exit = True
    thread.join(10)


@pytest.mark.parametrize(("failed", "words"), [({}, "still loading"), ({"v1": "broken"}, "gateway's log")])
def test_a_version_that_is_not_loaded_says_whether_it_may_be_soon(settings, failed, words):
    models = SimpleNamespace(ready={}, failed=failed)
    service = Service(settings, None, models, None, None, None)
    with pytest.raises(ProblemDetail, match=words) as caught:
        asyncio.run(service.generate_pinned("v1", "x = 1"))
    assert caught.value.status == 503

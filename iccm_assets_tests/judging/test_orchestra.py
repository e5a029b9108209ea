"""The orchestra: who is in it, and what counts as an answer (O1)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from iccm_assets.errors import OrchestraError
from iccm_assets.judging.orchestra import Reader, load_orchestra


def test_the_builtin_orchestra_has_at_least_three_members_with_names_of_their_own() -> None:
    orchestra = load_orchestra("builtin", quorum=2)
    assert len(orchestra.members) >= 3
    assert len({member.name for member in orchestra.members}) == len(orchestra.members)


@pytest.mark.parametrize(
    ("spec", "quorum", "words"),
    [
        ("nobody", 1, "unknown member 'nobody'"),
        ("builtin,builtin", 2, "named twice"),
        ("builtin", 9, "the quorum is 9"),
        ("", 1, "0 members"),
        ("openai:localhost#m", 1, "openai:http://host:port/v1#model"),
        ("openai:http://localhost/v1", 1, "openai:http://host:port/v1#model"),
    ],
)
def test_an_impossible_orchestra_is_refused_with_what_is_wrong(spec: str, quorum: int, words: str) -> None:
    with pytest.raises(OrchestraError, match=words):
        load_orchestra(spec, quorum)


def test_a_reader_that_cannot_read_blames_the_text_not_itself() -> None:
    def refuse(text: str) -> str:
        raise ValueError("no statement")

    answer = Reader("strict", refuse).reconstruct("blah")
    assert (answer.status, answer.detail) == ("unreadable", "no statement")


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers as `reply` says."""

    reply: Any = None
    seen: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        status, answer = self.reply
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        pass


def completion(text: str, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"openai:http://127.0.0.1:{server.server_address[1]}/v1#coder"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_given_the_requirements_and_its_code_block_is_taken(endpoint: str) -> None:
    Endpoint.reply = completion("Sure:\n```python\ndef f():\n    return 1\n```\n")
    [answer] = load_orchestra(endpoint, 1).reconstruct("f shall return 1.")
    assert (answer.status, answer.implementation) == ("answered", "def f():\n    return 1\n")
    assert Endpoint.seen[0]["model"] == "coder"
    assert Endpoint.seen[0]["messages"][0]["content"].endswith("f shall return 1.")


@pytest.mark.parametrize(
    "reply",
    [
        (400, {"error": {"message": "no"}}),
        completion("no code here"),
        completion("```python\ndef f(", finish="length"),
        (200, {"choices": []}),
    ],
)
def test_an_endpoint_that_fails_is_missing_and_never_a_score(endpoint: str, reply: Any) -> None:
    Endpoint.reply = reply
    [answer] = load_orchestra(endpoint, 1).reconstruct("f shall return 1.")
    assert (answer.status, answer.implementation) == ("missing", "")


def test_an_endpoint_nobody_serves_is_missing() -> None:
    [answer] = load_orchestra("openai:http://127.0.0.1:9/v1#m", 1).reconstruct("f shall return 1.")
    assert answer.status == "missing"

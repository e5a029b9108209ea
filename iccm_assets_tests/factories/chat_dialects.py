"""A chat endpoint whose models answer in the dialects of real servers (O3).

All models of `RIGHT` write the same right code; those of `MISSING` give no usable answer, each in its way.
"""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CODE = "def rate(weight):\n    return 5 if weight < 3 else 9\n"
OTHER_CODE = "def rate(weight):\n    return 7\n"
BLOCK = f"```python\n{CODE}```"
DRAFT = f"I try this:\n```python\n{OTHER_CODE}```\nNo.\n"
HELPER = "LIMIT = 3\n\n\ndef is_light(weight):\n    return weight < LIMIT\n"
MAIN = "def rate(weight):\n    return 5 if is_light(weight) else 9\n"
TESTS = "def test_rate():\n    assert rate(1) == 5\n"
CHANNELS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"


@dataclass(frozen=True)
class Reply:
    """An HTTP response; a body other than bytes is sent as JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


# What a model answers to a request, given the number of its earlier requests.
Dialect = Callable[[dict[str, Any], int], Reply]


def completion(content: Any, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return {"object": "chat.completion", "choices": [{**choice, "finish_reason": finish}]}


def says(content: Any, finish: Any = "stop", **message: Any) -> Dialect:
    return lambda request, earlier: Reply(completion(content, finish, **message))


def sends(body: Any, status: int = 200, **headers: str) -> Dialect:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, earlier: Reply(body, status, names)


def first(dialect: Dialect, then: Dialect) -> Dialect:
    return lambda request, earlier: (dialect if earlier == 0 else then)(request, earlier)


def fenced(*blocks: str) -> str:
    return "\n".join(f"Part:\n```python\n{block}```" for block in blocks)


def accepts(*, without: tuple[str, ...] = (), **fields: Any) -> Dialect:
    """Answer only requests that have these fields and not those; refuse others as the servers do."""

    def answer(request: dict[str, Any], earlier: int) -> Reply:
        wrong = [name for name in without if name in request]
        wrong += [name for name, value in fields.items() if request.get(name) != value]
        if wrong:
            return Reply({"error": {"message": f"unsupported parameter: {wrong[0]}"}}, 400)
        return Reply(completion(BLOCK))

    return answer


def asks_what_was_wrong(content: str, word: str) -> Dialect:
    """Answer rightly only once a follow-up names the problem of the first answer."""

    def answer(request: dict[str, Any], earlier: int) -> Reply:
        *_, last = messages = request["messages"]
        roles = [message["role"] for message in messages]
        names_problem = roles == ["user", "assistant", "user"] and word in last["content"]
        return Reply(completion(BLOCK if names_problem else content))

    return answer


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


def choice_error() -> Dialect:
    choice = {"finish_reason": "error", "error": {"code": 502, "message": "upstream died"}}
    return sends({"choices": [{**choice, "message": {"content": BLOCK[:30]}}]})


RIGHT: dict[str, Dialect] = {
    "plain": says(BLOCK),
    **{f"finish-{word}": says(BLOCK, word) for word in (
        "eos", "eos_token", "STOP", "COMPLETE", "", "end_turn", "stop_sequence", "no-such-word",
    )},
    "finish-null": says(BLOCK, None),
    "finish-absent": sends({"choices": [{"message": {"content": BLOCK}}]}),
    "parts": says([part(BLOCK)]),
    "parts-output-text": says([part("Here:", "output_text"), part(BLOCK, "output_text")]),
    "parts-thinking": says([{"type": "thinking", "thinking": [part(DRAFT)]}, part(BLOCK)]),
    "parts-reasoning": says([part(DRAFT, "reasoning"), part(BLOCK)]),
    "legacy-text": sends({"choices": [{"text": BLOCK, "finish_reason": "stop"}]}),
    "byte-order-mark": sends(b"\xef\xbb\xbf" + json.dumps(completion(BLOCK)).encode()),
    "reasoning-content": says(BLOCK, reasoning_content=DRAFT),
    "refusal-null": says(BLOCK, refusal=None, tool_calls=None),
    "think": says(f"<think>{DRAFT}</think>\n{BLOCK}"),
    "think-no-open": says(f"{DRAFT}</think>\n{BLOCK}"),
    "think-open-draft": says(f"<think>```python\n{OTHER_CODE[:20]}</think>\n{BLOCK}"),
    "think-brackets": says(f"[THINK]{DRAFT}[/THINK]{BLOCK}"),
    "thinking": says(f"<thinking>{DRAFT}</thinking>\n{BLOCK}"),
    "reasoning": says(f"<reasoning>\n{DRAFT}</reasoning>\n{BLOCK}"),
    "reflection": says(f"{BLOCK}\n<reflection>{DRAFT}</reflection>"),
    "channels": says(CHANNELS.replace("{}", DRAFT) + BLOCK + "<|return|>"),
    "think-in-code": says(f"```python\n# not </think>\nMARK = '<think>'\n{CODE}```"),
    "code-plus-tests": says(fenced(CODE, TESTS)),
    "tests-first": says(fenced(TESTS, CODE)),
    "split-in-two": says(fenced(HELPER, MAIN)),
    "split-in-files": says(fenced(HELPER, f"from helper import is_light\n\n{MAIN}")),
    "same-twice": says(fenced(CODE, CODE)),
    "with-usage": says(f"```bash\npip install it\n```\n{fenced(CODE, 'print(rate(2))' + chr(10))}"),
    "with-json": says(f'{BLOCK}\n```json\n{{"weight": 2}}\n```'),
    "list-item": says("1. The code:\n\n   " + BLOCK.replace("\n", "\n   ") + "\n2. Done."),
    **{f"tag-{number}": says(BLOCK.replace("python", tag)) for number, tag in enumerate((
        "{python}", "python:rate.py", "python3.11", "ipython", "py", "Python", "python title=rate.py", "",
        "title=rate.py", "rate.py",
    ))},
    "unfenced": says(CODE),
    "crlf": says(BLOCK.replace("\n", "\r\n")),
    "stop-token": says(f"{BLOCK}<|im_end|>"),
    "rate-limited-once": first(sends({"error": {}}, 429, Retry_After="0"), says(BLOCK)),
    "loading-once": first(sends({"error": {"message": "Loading model"}}, 503), says(BLOCK)),
    "choice-error-once": first(choice_error(), says(BLOCK)),
    "prose-once": asks_what_was_wrong("I would return 5.", "no code block"),
    "several-once": asks_what_was_wrong(fenced(CODE, OTHER_CODE), "2 different implementations of 'rate'"),
    "empty-once": asks_what_was_wrong("", "the answer is empty"),
    "gpt-5": accepts(without=("temperature", "max_tokens"), max_completion_tokens=8000),
    "mistral-large": accepts(without=("seed",), random_seed=17, temperature=0.0),
    "vllm-qwen": accepts(seed=17, max_tokens=2048, chat_template_kwargs={"enable_thinking": False}),
    "claude": accepts(without=("seed",), temperature=1.0),
}  # fmt: skip

# Overrides of the members above that need them.
MEMBER_SETTINGS: dict[str, Any] = {
    "gpt-5": {"temperature": None, "max_tokens": None, "request": {"max_completion_tokens": 8000}},
    "mistral-large": {"seed": None, "request": {"random_seed": 17}},
    "vllm-qwen": {"max_tokens": 2048, "request": {"chat_template_kwargs": {"enable_thinking": False}}},
    "claude": {"seed": None, "temperature": 1.0},
}

QUOTA = {"error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "pay"}}
EVENTS = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'

# Model, what it answers, a part of the reason, and the requests it gets with two retries.
MISSING: dict[str, tuple[Dialect, str, int]] = {
    "length": (says(BLOCK, "length"), "not finished: cut, finish_reason 'length'", 1),
    "max-tokens": (says(BLOCK, "MAX_TOKENS"), "not finished: cut", 1),
    "content-filter": (says(BLOCK, "content_filter"), "not finished: filtered", 1),
    "safety": (says(None, "SAFETY"), "not finished: filtered", 1),
    "tool-calls": (says(None, "tool_calls", tool_calls=[{}]), "not finished: tool calls", 1),
    "refusal": (says(None, refusal="I will not"), "refused: I will not", 1),
    "refusal-part": (says([{"type": "refusal", "refusal": "No"}]), "refused: No", 1),
    "empty": (says(None), "the answer is empty", 2),
    "only-reasoning": (says(None, reasoning_content=DRAFT), "there is only reasoning", 2),
    "parts-of-thinking": (says([{"type": "thinking", "thinking": []}]), "the answer is empty", 2),
    "several": (says(fenced(CODE, OTHER_CODE)), "2 different implementations of 'rate'", 2),
    "tests-alone": (says(fenced(TESTS)), "tests alone", 2),
    "prose": (says("I would return 5."), "no code block", 2),
    "rust": (says("```rust\nfn rate() {}\n```"), "no code block is Python", 2),
    "open-block": (says(BLOCK[:-3]), "stops inside a code block", 2),
    "open-thinking": (says(f"<think>{BLOCK}"), "stops inside the model's reasoning", 2),
    "cut-unfenced": (says(CODE, None), "no code block", 2),
    "insufficient-quota": (sends(QUOTA, 429), "HTTP 429", 1),
    "quota-in-200": (sends(QUOTA), "not a chat completion", 1),
    "choice-error": (choice_error(), "the model failed: 502: upstream died", 3),
    "finish-error": (says(BLOCK, "error"), "the model failed: finish_reason 'error'", 3),
    "error-in-200": (sends({"error": {"message": "overloaded"}, "choices": None}), "overloaded", 3),
    "html": (sends(b"<!doctype html>"), "not JSON", 3),
    "events": (sends(EVENTS), "not JSON", 3),
    "compressed": (sends(gzip.compress(b"{}", mtime=0), Content_Encoding="gzip"), "compressed", 1),
    "refuses-seed": (accepts(without=("seed",)), "unsupported parameter: seed", 1),
}


class DialectStub:
    """The running server; counts the requests of each model, and keeps their bodies."""

    def __init__(self, dialects: Mapping[str, Dialect], url: str) -> None:
        self.dialects, self.url = dialects, url
        self.requests: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    @property
    def members(self) -> str:
        return ",".join(f"openai:{self.url}#{model}" for model in self.dialects)

    @property
    def counts(self) -> Counter[str]:
        return Counter({model: len(requests) for model, requests in self.requests.items()})

    def cards(self) -> list[dict[str, Any]]:
        """The models of `GET /models`."""
        return [{"id": model} for model in self.dialects]

    def post(self, path: str, request: dict[str, Any]) -> Reply:
        return self.answer(request)

    def answer(self, request: dict[str, Any]) -> Reply:
        model = request["model"]
        with self._lock:
            earlier = len(self.requests[model])
            self.requests[model].append(request)
        return self.dialects[model](request, earlier)


@contextmanager
def run_stub(
    dialects: Mapping[str, Dialect], make: Callable[[Mapping[str, Dialect], str], Any] = DialectStub
) -> Iterator[Any]:
    """Serve these models on a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(Reply({"object": "list", "data": stub.cards()}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send(stub.post(self.path, json.loads(body)))

        def send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    stub = make(dialects, f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()

"""The OpenAI-compatible API: chat completions, streamed or not, and models (G8)."""

from __future__ import annotations

import ast
import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from iccm_assets.capture.extraction import extract_source
from iccm_assets.gateway import chat_schemas as chat
from iccm_assets.gateway.guard import get_caller
from iccm_assets.gateway.openai_errors import UnsupportedRequestError, error_document
from iccm_assets.gateway.openapi import operation_id
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.request_body import explain_invalid
from iccm_assets.gateway.response_stream import ResponseListener
from iccm_assets.gateway.schemas import RequirementsRequest
from iccm_assets.gateway.service import Service

STARTED = int(time.time())
MAX_INLINE_CHARACTERS = 2000  # longer messages are searched for code on a thread
SESSION_HEADER = "x-session-id"
_EVENT_STREAM = "text/event-stream"
_EVENT_SCHEMA = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, or [DONE]."}},
    "required": ["data"],
}

router = APIRouter(generate_unique_id_function=operation_id)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors in OpenAI's shape."""
    return {status: {"model": chat.OpenAiErrorDocument} for status in sorted(statuses)}


@router.get(
    "/v1/models",
    summary="List the models: the routed one, and each version that is loaded.",
    response_model=chat.ModelListResponse,
    responses=error_responses(401, 403),
)
async def list_models(request: Request) -> Response:
    """List the models."""
    return _json(chat.ModelListResponse(data=list(map(_describe_model, _model_names(_service(request))))))


@router.get(
    "/v1/models/{model:path}",
    summary="Show one model.",
    response_model=chat.ServedModel,
    responses=error_responses(401, 403, 404),
)
async def get_model(model: str, request: Request) -> Response:
    """Show one model."""
    _require_model(_service(request), model)
    return _json(_describe_model(model))


@router.post(
    "/v1/chat/completions",
    summary="Write requirements, for clients of the OpenAI API; streamed if asked for.",
    response_model=chat.ChatCompletionResponse,
    responses={
        200: {"content": {_EVENT_STREAM: {"schema": _EVENT_SCHEMA}}},
        **error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 503, 504),
    },
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "example": {
                        "model": chat.MODEL,
                        "messages": [{"role": "user", "content": "def add(a, b):\n    return a + b\n"}],
                        "metadata": {"session_id": "session-1"},
                    }
                }
            }
        }
    },
)
async def complete_chat(body: chat.ChatCompletionRequest, request: Request) -> Response:
    """Answer with the requirements of the code in the last user message."""
    chat.check_supported(body)
    service = _service(request)
    _require_model(service, body.model)
    source = await _find_source(body)
    answer = _Answer(f"chatcmpl-{secrets.token_hex(16)}", body)
    version = body.model.partition("@")[2]
    if version:
        task = asyncio.ensure_future(_answer_pinned(service, version, source, answer))
    else:
        inner = _make_request(body, request, source, answer.id)
        token = await service.act_as(inner.session_id, get_caller(request))
        answer.headers[SESSION_HEADER] = _to_header(inner.session_id or "")
        task = asyncio.ensure_future(_answer_routed(service, inner, token, answer))
    # It goes on when the client is gone: the model's work is recorded in any case.
    task.add_done_callback(answer.end)
    if not body.stream:
        await asyncio.shield(task)
        return _json(answer.document(), answer.headers)
    first = await answer.pieces.get()
    if first is None:
        await task  # an error before anything was sent is an ordinary one
    return StreamingResponse(
        _send_events(answer, first, task), media_type=_EVENT_STREAM, headers=answer.headers
    )


# ---- the request ---------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model_names(service: Service) -> list[str]:
    return [chat.MODEL, *(f"{chat.MODEL}@{version}" for version in sorted(service.models.ready))]


def _describe_model(name: str) -> chat.ServedModel:
    return chat.ServedModel(id=name, created=STARTED)


def _require_model(service: Service, name: str) -> None:
    names = _model_names(service)
    if name not in names:
        known = ", ".join(names[:20])
        raise UnsupportedRequestError(
            f"The model {name[:200]!r} does not exist or is not loaded here; there are {known}",
            "model",
            status=404,
            code="model_not_found",
        )


async def _find_source(body: chat.ChatCompletionRequest) -> str:
    """Find the code in the last user message."""
    texts = [chat.read_text(message) for message in body.messages if message.role == "user"]
    if not texts:
        raise UnsupportedRequestError("messages has none of a user", "messages")
    if len(texts[-1]) <= MAX_INLINE_CHARACTERS:
        source = find_source(texts[-1])
    else:
        source = await run_in_threadpool(find_source, texts[-1])
    if source is None:
        raise UnsupportedRequestError(
            "the last user message has no code: send the source whose requirements are to be written",
            "messages",
            code="no_source",
        )
    return source


def find_source(text: str) -> str | None:
    """Find the code in a message: all of it if it is a program, else its best block."""
    return text if _is_program(text) else extract_source([{"role": "user", "content": text}], None)


def _is_program(text: str) -> bool:
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    simple = (ast.Name, ast.Constant, ast.Attribute, ast.Tuple, ast.Compare, ast.BinOp, ast.UnaryOp)
    return any(not isinstance(item, ast.Expr) or not isinstance(item.value, simple) for item in statements)


def _make_request(
    body: chat.ChatCompletionRequest, request: Request, source: str, request_id: str
) -> RequirementsRequest:
    """Make the request of the native API that asks the same."""
    metadata = dict(body.metadata or {})
    user = body.user or body.safety_identifier or None
    session = metadata.pop("session_id", None) or request.headers.get(SESSION_HEADER)
    try:
        return RequirementsRequest(
            source_code=source,
            session_id=session or _derive_session(body, user or get_caller(request).token_name),
            user_id=user,
            request_id=request_id,
            metadata=metadata,
        )
    except ValidationError as error:
        names = {"session_id": "metadata.session_id", "user_id": "user"}
        [location, *_] = [item["loc"][0] if item["loc"] else "" for item in error.errors()]
        problem = explain_invalid(error.errors(include_url=False, include_context=False, include_input=False))
        raise UnsupportedRequestError(problem.detail, names.get(str(location), "messages")) from None


def _derive_session(body: chat.ChatCompletionRequest, user: str | None) -> str:
    """Derive a session from the user and the first message, which a client sends each time."""
    first = next(chat.read_text(message) for message in body.messages if message.role == "user")
    return "chat-" + sha256(json.dumps([user, first]).encode()).hexdigest()[:32]


def _to_header(text: str) -> str:
    """Write a text as a header may be: in ASCII."""
    return text.encode("ascii", "backslashreplace").decode()


# ---- the answer ----------------------------------------------------------------------------------


@dataclass
class _Answer:
    """An answer: what is known of it, more as it comes, cut at the limit of the request."""

    id: str
    body: chat.ChatCompletionRequest
    text: str = ""
    model: str = ""
    source_tokens: int = 0
    output_tokens: int = 0
    is_complete: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)  # None: there are no more
    kept: list[str] = field(default_factory=list)
    is_cut: bool = False

    def begin(self, version: str) -> None:
        """Note which version answers."""
        self.model = f"{chat.MODEL}@{version}"

    def add(self, text: str, tokens: int) -> None:
        """Take a piece, if it is within the limit."""
        self.is_cut = self.body.limit is not None and tokens > self.body.limit
        if not self.is_cut:
            self.kept.append(text)
            self.pieces.put_nowait(text)

    def complete(self, text: str, *, is_complete: bool, source: int | None, output: int | None) -> None:
        """Take the whole response; what of it was no piece, such as a blank one, is a piece now."""
        self.text, self.is_complete = text, is_complete
        self.source_tokens, self.output_tokens = source or 0, output or 0
        if self.listener is not None and text and not self.kept and not self.is_cut:
            self.kept.append(text)
            self.pieces.put_nowait(text)

    def end(self, task: asyncio.Future[None]) -> None:
        """Note that there will be no more pieces."""
        self.pieces.put_nowait(None)
        if not task.cancelled():
            task.exception()  # whoever waits for it raises it

    def finish_reason(self) -> Literal["stop", "length"]:
        """Return whether the answer is whole."""
        return "stop" if self.is_complete and not self.is_cut else "length"

    def usage(self) -> chat.Usage:
        """Count the tokens."""
        output = min(self.output_tokens, self.body.limit or 0) if self.is_cut else self.output_tokens
        total = self.source_tokens + output
        return chat.Usage(prompt_tokens=self.source_tokens, completion_tokens=output, total_tokens=total)

    def document(self) -> chat.ChatCompletionResponse:
        """Build the response that is not streamed."""
        message = chat.CompletionMessage(content="".join(self.kept) if self.is_cut else self.text)
        choice = chat.CompletionChoice(message=message, finish_reason=self.finish_reason())
        return chat.ChatCompletionResponse(
            id=self.id, created=self.created, model=self.model, choices=[choice], usage=self.usage()
        )

    @property
    def listener(self) -> ResponseListener | None:
        """What takes the pieces, where they matter."""
        return self if self.body.stream or self.body.limit is not None else None


async def _answer_routed(
    service: Service, request: RequirementsRequest, token: str | None, answer: _Answer
) -> None:
    served = await service.respond(request, token, answer.listener)
    answer.begin(served.answer.model_version)
    answer.complete(
        served.answer.requirements,
        is_complete=served.is_complete,
        source=served.source_tokens,
        output=served.output_tokens,
    )


async def _answer_pinned(service: Service, version: str, source: str, answer: _Answer) -> None:
    response = await service.generate_pinned(version, source, answer.listener)
    answer.begin(version)
    answer.complete(
        response.text,
        is_complete=response.is_complete,
        source=response.source_tokens,
        output=response.output_tokens,
    )


async def _send_events(
    answer: _Answer, piece: str | None, task: asyncio.Future[None]
) -> AsyncIterator[bytes]:
    """Send pieces as they come; what ends the stream is sent once the answer is recorded."""
    begin = _event(answer, {"role": "assistant", "content": ""})  # sent with the first piece
    while piece is not None:
        yield begin + _event(answer, {"content": piece})
        begin, piece = b"", await answer.pieces.get()
    if begin:
        yield begin
    try:
        await _finish(task)
    except ProblemDetail as problem:
        yield f"data: {json.dumps(error_document(problem))}\n\n".encode()
        return
    yield _event(answer, {}, answer.finish_reason())
    if answer.body.stream_options and answer.body.stream_options.include_usage:
        yield _event(answer, None, usage=answer.usage().model_dump())
    yield b"data: [DONE]\n\n"


async def _finish(task: Awaitable[None]) -> None:
    try:
        await task
    except ProblemDetail:
        raise
    except Exception as error:
        raise ProblemDetail(500, "the gateway failed on this request; see its log") from error


def _event(answer: _Answer, delta: dict[str, str] | None, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    document = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model or answer.body.model,
        "choices": [] if delta is None else [choice],
        **more,
    }
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _json(model: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), media_type="application/json", headers=headers)

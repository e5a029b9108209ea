"""Requests and responses of the OpenAI-compatible API, as far as it is one (G8)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from iccm_assets.gateway.openai_errors import UnsupportedRequestError

MODEL = "cet-d"
# What has one legal value here, since answers are greedy and complete; None, 0, empty and False are neutral.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop": ([], ""),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
# Hints about sampling, cost and caching: an answer is the same without them.
_IGNORED_TEXT = """
    temperature top_p top_k min_p repetition_penalty seed store service_tier parallel_tool_calls
    reasoning_effort verbosity prompt_cache_key prompt_cache_retention
    """
_IGNORED = frozenset(_IGNORED_TEXT.split())


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = Field(None, description="Also send the numbers of tokens, at the end.")


class ChatMessageParam(BaseModel):
    """One message of the conversation so far; additional keys are allowed."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = Field(
        None, description="A text, or parts of type text; other parts are refused."
    )


class ChatCompletionRequest(BaseModel):
    """A request for requirements: the code in the last user message is the source.

    Decoding is greedy, so `temperature`, `top_p` and `seed` change nothing.
    """

    model_config = ConfigDict(extra="allow")

    model: str = Field(
        min_length=1,
        max_length=300,
        description="`cet-d` is routed like any request; `cet-d@VERSION` is one version, and not recorded.",
    )
    messages: list[ChatMessageParam] = Field(min_length=1, description="The last one of a user counts.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events, as it is written.")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="Cut the answer here; what is recorded is whole.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by its newer name.")
    user: str | None = Field(None, description="The user id of the session.")
    safety_identifier: str | None = Field(None, description="The same, by its newer name.")
    metadata: dict[str, Any] | None = Field(
        None, description="`session_id` keeps a session in one arm; the rest is stored with the conversation."
    )

    @property
    def limit(self) -> int | None:
        """The largest number of tokens to answer, None without one."""
        return self.max_completion_tokens or self.max_tokens


class Usage(BaseModel):
    """Numbers of tokens; 0 where a server does not state them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class CompletionChoice(BaseModel):
    """The one choice there is; ``finish_reason`` is `length` where the answer was cut."""

    index: int = 0
    message: CompletionMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletionResponse(BaseModel):
    """An answer; its id is the `request_id` to rate it by, its model the version that wrote it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ServedModel(BaseModel):
    """A name that `model` of a request may be."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "iccm"


class ModelListResponse(BaseModel):
    """The routed model, and each version that is loaded now."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class OpenAiError(BaseModel):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiErrorDocument(BaseModel):
    """An error in the shape of the OpenAI API."""

    error: OpenAiError


def check_supported(request: ChatCompletionRequest) -> None:
    """Raise ``UnsupportedRequestError`` for what would change the answer and cannot be done here."""
    for name, value in (request.model_extra or {}).items():
        if name in _IGNORED or value is None:
            continue
        if name not in _NEUTRAL:
            raise UnsupportedRequestError(
                f"Unrecognized request argument supplied: {name[:80]}", name[:80], code="unknown_parameter"
            )
        if value not in _NEUTRAL[name]:
            raise UnsupportedRequestError(
                f"{name} is not supported: {MODEL} writes one complete text and calls no tools",
                name,
                code="unsupported_parameter",
            )
    for index, message in enumerate(request.messages):
        for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.get("type") not in ("text", "input_text", "output_text", "refusal"):
                raise UnsupportedRequestError(
                    f"only parts of type text are supported, not {str(part.get('type'))[:60]!r}",
                    f"messages.[{index}].content.[{number}].type",
                    code="unsupported_value",
                )


def read_text(message: ChatMessageParam) -> str:
    """Return the words of a message."""
    if isinstance(message.content, list):
        return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in message.content)
    return message.content or ""

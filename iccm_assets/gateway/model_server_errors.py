"""Name why a model server gave no usable answer, and whose fault that is (G7).

Whatever both arms meet alike, such as a rate limit, says nothing about a version and is not booked to its
arm. Pure functions, no I/O.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from iccm_assets.capture.redaction.redact import redact
from iccm_assets.errors import first_line
from iccm_assets.gateway.batching import GenerationError
from iccm_assets.gateway.problem_details import RETRY_SECONDS
from iccm_assets.scoring.chat_responses import describe_error_body, is_out_of_credit
from iccm_assets.scoring.endpoint_limits import parse_retry_after
from iccm_assets.scoring.reconstruction import to_printable_line

MAX_WORDS_CHARACTERS = 200
MAX_CLASSIFIED_CHARACTERS = 4096
# A server may ask for any wait; clients get at most this one.
MAX_RETRY_AFTER_SECONDS = 60.0
# How servers say that a prompt does not fit: OpenAI, vLLM, SGLang, TGI, llama.cpp.
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|max_model_len|maximum (?:model|allowed|input|prompt) length"
    r"|string_above_max_length|longer than the max|must have less than \d{1,9} tokens"
    r"|(?:prompt|input) is too long|too many (?:input |prompt )?tokens",
    re.IGNORECASE,
)
_CONTEXT_TOKENS = re.compile(
    r"(?:context length|model length|context size|max_model_len)\D{0,20}?(\d{1,9})\b", re.IGNORECASE
)
_FILTERED = re.compile(
    r"content[ _](?:filter|policy|management)|responsible_?ai|moderation|flagged", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"model_not_found|model[^\n]{0,200}(?:does not exist|not found)|invalid model name", re.IGNORECASE
)
# 413 is a limit of the body, mostly of a proxy: the source is too long for it.
_REJECTED_TEXT = (200, 400, 403, 413, 422)


class RateLimitedError(GenerationError):
    """The model server limits the gateway's requests; a later one can succeed."""

    status, code, openai_status = "rejected", "rate_limit_exceeded", 429
    detail = "the model server limits the number of requests; try again later"

    retry_after_seconds: float

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.retry_after_seconds = min(wait_seconds or RETRY_SECONDS, MAX_RETRY_AFTER_SECONDS)


class PromptTooLongError(GenerationError):
    """The source does not fit into the model's context; no later request can succeed."""

    status, code, http_status, retry_after_seconds = "rejected", "context_length_exceeded", 422, None

    def __init__(self, reason: str, context_tokens: int | None = None) -> None:
        super().__init__(reason)
        limit = f", which reads {context_tokens} tokens at most" if context_tokens else ""
        self.detail = f"the source is too long for the model{limit}; send less code"


class ServerAccessError(GenerationError):
    """The model server does not accept the gateway's API key, or its account is used up."""

    status, code = "rejected", "model_server_access"
    detail = "the model server refuses the gateway; its operator has to check OPENAI_API_KEY and the account"


class NotLoadedError(GenerationError):
    """The version is not loaded in this process, or not yet."""

    status, code = "rejected", "model_not_loaded"

    def __init__(self, version: str, *, has_failed: bool) -> None:
        super().__init__(f"{version} is not loaded")
        self.detail = (
            "the model could not be loaded; the gateway's log has the reason"
            if has_failed
            else "the model is still loading; try again later"
        )


class ModelNotServedError(GenerationError):
    """The model server does not have the version any more."""

    code = "model_not_served"
    detail = "the model server does not have this version of the model"


class FilteredResponseError(GenerationError):
    """The model server withheld the answer for its content; a second request gets the same."""

    code, http_status, retry_after_seconds = "content_filter", 422, None
    detail = "the content filter of the model server withheld the answer"


class EmptyResponseError(GenerationError):
    """The answer has no visible text."""

    code = "empty_answer"
    detail = "the model gave an empty answer"


def rejection_error(
    status: int, headers: Mapping[str, str], body: bytes, secret: str = ""
) -> GenerationError:
    """Classify an error response of a model server; ``secret``, the API key, is never repeated.

    ``status`` 200: the body of a response that is an error nevertheless.
    """
    text = describe_error_body(body)[:MAX_CLASSIFIED_CHARACTERS]
    words = server_words(text, secret)
    reason = f"HTTP {status}" + (f": {words}" if words else "")
    if status in _REJECTED_TEXT and _FILTERED.search(text):
        return FilteredResponseError(f"content filter: {reason}")
    if status == 413 or (status in _REJECTED_TEXT and _TOO_LONG.search(text)):
        limit = _CONTEXT_TOKENS.search(text)
        return PromptTooLongError(f"prompt too long: {reason}", int(limit[1]) if limit else None)
    if status in (401, 402, 403) or (status in (200, 429) and is_out_of_credit(body)):
        return ServerAccessError(f"access denied, check OPENAI_API_KEY: {reason}")
    wait = parse_retry_after(headers.get("retry-after"), time.time)
    if status == 429 or (status == 503 and "retry-after" in headers):
        return RateLimitedError(f"rate limit: {reason}", wait)
    if status == 404 or (status in (200, 400) and _NO_MODEL.search(text)):
        return ModelNotServedError(f"model not found: {reason}")
    if status == 200:
        return GenerationError(f"the server reported an error: {words}")
    return GenerationError(reason)


def server_words(text: str, secret: str = "") -> str:
    """Return the first line of what a server wrote, short and without secrets."""
    line = first_line(text[: 4 * MAX_WORDS_CHARACTERS]) if text.strip() else ""
    line = line.replace(secret, "***") if secret else line
    return to_printable_line(redact(line))[:MAX_WORDS_CHARACTERS]

"""Errors in the shape of the OpenAI API, which its clients raise as their own types (G8)."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from iccm_assets.gateway.problem_details import ProblemDetail

PATHS = ("/v1/chat/completions", "/v1/models")
_TYPES = {429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 413: "request_too_large"}


class UnsupportedRequestError(ProblemDetail):
    """Reject a request of the OpenAI API: what is wrong with which parameter."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str = "") -> None:
        super().__init__(status, message)
        self.param, self.code = param, code or None


def error_document(problem: ProblemDetail) -> dict[str, Any]:
    """Build the document of an error."""
    status = openai_status(problem)
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    param, code = getattr(problem, "param", None), getattr(problem, "code", _CODES.get(problem.status))
    return {"error": {"message": problem.detail, "type": kind, "param": param, "code": code}}


def make_response(path: str, problem: ProblemDetail) -> Response:
    """Build the response to a request of this path: a problem document, or in OpenAI's shape."""
    if not is_openai_path(path):
        return problem.response()
    content = json.dumps(error_document(problem))
    return Response(content, openai_status(problem), problem.headers, "application/json")


def openai_status(problem: ProblemDetail) -> int:
    """Return the status that the OpenAI API has for a problem: one for all bodies that are not right."""
    default = 400 if problem.status == 422 else problem.status
    return problem.openai_status or default


def is_openai_path(path: str) -> bool:
    """Whether a path belongs to the OpenAI-compatible API."""
    return path in PATHS or path.startswith("/v1/models/")

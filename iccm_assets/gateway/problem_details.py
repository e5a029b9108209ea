"""Error responses as problem documents (RFC 9457): what is wrong and what to do, never a traceback."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1.0


class ProblemDetail(Exception):
    """Reject a request with this status; ``retry_after`` in seconds, ``extensions`` go into the document.

    ``openai_status`` is the status in the OpenAI API, where that is another one.
    """

    openai_status: int | None = None

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after: float | None = None,
        allow: str | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        headers = {
            "Retry-After": None if retry_after is None else str(max(1, round(retry_after))),
            "WWW-Authenticate": "Bearer" if status == 401 else None,
            # The rest of a body that was not read completely is not awaited.
            "Connection": "close" if status in (408, 413) else None,
            "Allow": allow,
        }
        self.headers = {name: value for name, value in headers.items() if value is not None}
        self.status, self.detail = status, detail
        self._document = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            **extensions,
        }

    def response(self) -> Response:
        """Build the HTTP response."""
        return Response(json.dumps(self._document), self.status, self.headers, MEDIA_TYPE)

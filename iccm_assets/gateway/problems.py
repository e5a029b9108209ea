"""Every refusal is a problem document (RFC 9457): what is wrong, and what to do; never a traceback."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is refused with this status; ``retry_after`` in seconds."""

    def __init__(self, status: int, detail: str, *, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after, self.more = status, detail, retry_after, more

    def response(self) -> Response:
        """The answer to send; the body of a request that was not read to its end is not waited for."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["Connection"] = "close"
        if allowed := self.more.pop("allow", None):
            headers["Allow"] = allowed
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(
            json.dumps(body, ensure_ascii=True), self.status, headers=headers, media_type=MEDIA_TYPE
        )

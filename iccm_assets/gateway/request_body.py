"""Read request bodies within limits, and parse JSON strictly (G6)."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from iccm_assets.gateway.problem_details import ProblemDetail

BODY_TIMEOUT_SECONDS = 20.0
MAX_DEPTH = 64
_MAX_REPORTED_ERRORS = 20
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body that says it is JSON, of at most ``max_bytes``, in time; a `ProblemDetail` otherwise."""
    content_type = request.headers.get("content-type", "")
    if not _JSON.fullmatch(content_type.strip()):
        raise ProblemDetail(
            415, f"the body must be JSON in UTF-8: Content-Type: application/json, not {content_type[:80]!r}"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        # A small compressed body could expand to any size.
        raise ProblemDetail(415, "compressed bodies are not supported: send it without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise ProblemDetail(408, f"the body did not arrive within {BODY_TIMEOUT_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ProblemDetail(400, "the connection closed before the end of the body") from None


def explain_invalid(errors: Sequence[Mapping[str, Any]]) -> ProblemDetail:
    """Turn the errors of a body that its schema rejects into a 422 `ProblemDetail`."""
    named = [
        {"field": ".".join(str(part) for part in item["loc"] if part != "body")[:120], "message": item["msg"]}
        for item in errors
    ]
    detail = ": ".join(filter(None, named[0].values()))
    return ProblemDetail(422, detail, errors=named[:_MAX_REPORTED_ERRORS])


async def _read(request: Request, max_bytes: int) -> bytes:
    # Content-Length may be absent or wrong, so the bytes are counted, too.
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not (announced.isdecimal() and len(announced) < 20 and int(announced) > max_bytes):
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise ProblemDetail(413, f"the body is larger than {max_bytes} bytes")


def parse_json(body: bytes) -> Any:
    """Parse JSON that PostgreSQL can store completely; raise a 400 `ProblemDetail` otherwise."""
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_finite_float,
            parse_float=_finite_float,
        )
        # Only escapes can produce NUL and lone surrogates; encoding the value again reveals them.
        if "\\u" in text and _NUL.search(json.dumps(value, ensure_ascii=False).encode("utf-8").decode()):
            raise ProblemDetail(400, "a text contains the character NUL, which cannot be stored")
    except UnicodeDecodeError as error:
        raise ProblemDetail(400, f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise ProblemDetail(400, f"nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeEncodeError:
        raise ProblemDetail(400, "a text contains a lone surrogate, which is not a character") from None
    except json.JSONDecodeError as error:
        raise ProblemDetail(
            400, f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:  # an integer of more than 4,300 digits
        raise ProblemDetail(400, "a number is too long") from None
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ProblemDetail(400, f"the key {key[:80]!r} appears twice")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ProblemDetail(400, f"{text[:40]} is not a finite number")
    return value


def _check_depth(value: Any) -> None:
    # Level by level instead of by recursion, whose limit depends on the caller's stack.
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    raise ProblemDetail(400, f"nested deeper than {MAX_DEPTH} levels")

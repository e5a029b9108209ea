"""Reading a request's body under limits, and JSON without what JSON is not (G6)."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from iccm_assets.gateway.problems import Problem

BODY_SECONDS = 20.0
DEPTH = 64
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model], most: int) -> Model:
    """The body as a ``model``; a `Problem` says what is wrong with it."""
    kind = request.headers.get("content-type", "")
    if not _JSON.fullmatch(kind.strip()):
        raise Problem(415, f"the body is JSON in UTF-8: Content-Type: application/json, not {kind[:80]!r}")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        # Unpacked, a small body could be of any size.
        raise Problem(415, "compressed bodies are not taken: send it without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(request, most)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "the body ended early") from None
    try:
        return model.model_validate(parse(body))
    except ValidationError as error:
        raise Problem(422, _first(error), errors=_errors(error)) from None


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > most:
        raise Problem(413, f"the body is larger than {most} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:  # whatever its length was said to be
            raise Problem(413, f"the body is larger than {most} bytes")
    return bytes(body)


def parse(body: bytes) -> Any:
    """A JSON value every part of which can be stored; `Problem` 400 says what is none."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8: byte {error.start}") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_each_key_once, parse_constant=_no_constant, parse_float=_finite
        )
        # Only escapes can smuggle these in, and written again they show.
        if "\\u" in text and _NUL.search(json.dumps(value, ensure_ascii=False).encode("utf-8").decode()):
            raise Problem(400, "a text holds the character NUL, which cannot be stored")
    except RecursionError:
        raise Problem(400, f"nested deeper than {DEPTH} levels") from None
    except UnicodeEncodeError:
        raise Problem(400, "a text holds half a surrogate pair, which is no character") from None
    except json.JSONDecodeError as error:
        raise Problem(400, f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # integers of more than 4 300 digits
        raise Problem(400, "a number is too long") from None
    if text.count("{") + text.count("[") > DEPTH:
        _check_depth(value)
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Problem(400, f"the key {twice[:80]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise Problem(400, f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Problem(400, f"the number {text[:40]} is out of range")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise Problem(400, f"nested deeper than {DEPTH} levels")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:120]
    return f"{where}: {first['msg']}" if where else first["msg"]


def _errors(error: ValidationError) -> list[dict[str, str]]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"field": ".".join(str(part) for part in one["loc"])[:120], "message": one["msg"]}
        for one in found[:20]
    ]

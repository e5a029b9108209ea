"""The interface described: an OpenAPI document, and a page of it that needs nothing from the network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from iccm_assets.gateway import schemas
from iccm_assets.gateway.auth import OPEN
from iccm_assets.gateway.problems import MEDIA_TYPE


@dataclass(frozen=True)
class Endpoint:
    """One operation; ``refusals`` are the statuses it may refuse with, besides 405."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    refusals: Sequence[int] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


_BODY = (400, 408, 413, 415, 422, 503)
ENDPOINTS = (
    Endpoint(
        "post",
        "/v1/requirements",
        "Write the requirements of a piece of source code.",
        schemas.Answered,
        schemas.Ask,
        (*_BODY, 409, 504),
        {"source_code": "def add(a, b):\n    return a + b\n", "session_id": "session-1"},
    ),
    Endpoint(
        "post",
        "/v1/conversations",
        "Complete a session: what was said, what was accepted, its tests. Again replaces.",
        schemas.Completed,
        schemas.Completion,
        (*_BODY, 410),
        {"session_id": "session-1", "messages": [{"role": "user", "content": "Thanks."}], "rating": 1},
    ),
    Endpoint(
        "post",
        "/v1/feedback",
        "Rate a session, or one of its answers. The latest rating counts.",
        schemas.Thanks,
        schemas.Thumb,
        (*_BODY, 404),
        {"session_id": "session-1", "rating": 1},
    ),
    Endpoint(
        "post",
        "/v1/probe",
        "Production's answer, for measuring it: not a request of anybody, and not recorded.",
        schemas.Probed,
        schemas.Probe,
        (*_BODY, 504),
        {"source_code": "def add(a, b):\n    return a + b\n"},
    ),
    Endpoint("get", "/v1/routing", "Who answers at this moment.", schemas.RoutingShown, refusals=(503,)),
    Endpoint("get", "/healthz", "Whether the process lives.", schemas.Status),
    Endpoint("get", "/readyz", "Whether production is loaded and warm.", schemas.Status, refusals=(503,)),
    Endpoint("get", "/metrics", "For Prometheus.", "text/plain"),
)


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models: list[type[BaseModel]] = [schemas.Problem]
    for one in ENDPOINTS:
        models += [model for model in (one.body, one.answer) if isinstance(model, type)]
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for one in ENDPOINTS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "CET-D gateway", "version": "1", "description": "Requirements for source code."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(one: Endpoint) -> dict[str, Any]:
    secured = one.path not in OPEN
    refusals = sorted({*one.refusals, *((401,) if secured else ())})
    if isinstance(one.answer, str):
        content: dict[str, Any] = {one.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": _ref(one.answer)}}
    operation: dict[str, Any] = {
        "summary": one.summary,
        "operationId": f"{one.method}{one.path.replace('/', '_')}",
        "responses": {
            "200": {"description": "OK", "content": content},
            **{str(status): _refusal(status) for status in refusals},
        },
    }
    if secured:
        operation["security"] = [{}, {"token": []}]
    if one.body is not None:
        schema = {"schema": _ref(one.body), "example": dict(one.example)}
        operation["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return operation


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _refusal(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": _ref(schemas.Problem)}},
    }


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>CET-D gateway</title>
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
pre{{background:#8881;padding:.8rem;overflow:auto}}code{{font-size:.9em}}
table{{border-collapse:collapse}}
td,th{{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}}</style>
<h1>CET-D gateway</h1><p>The same for programs: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).
Refusals are problem documents (RFC 9457).</p>{sections}</html>"""


@lru_cache(maxsize=1)
def page() -> str:
    """The document for people: plain HTML, no scripts."""
    return _PAGE.format(sections="".join(_section(one) for one in ENDPOINTS))


def _section(one: Endpoint) -> str:
    refusals = ", ".join(_operation(one)["responses"])
    parts = [
        f"<h2><code>{one.method.upper()} {one.path}</code></h2><p>{html.escape(one.summary)}",
        f" Statuses: {refusals}.</p>",
    ]
    if one.body is not None:
        data = json.dumps(one.example)
        call = f"curl -H 'Content-Type: application/json' -d '{data}' http://127.0.0.1:8321{one.path}"
        parts += [f"<pre>{html.escape(call)}</pre>", _fields("Takes", one.body)]
    if isinstance(one.answer, type):
        parts.append(_fields("Answers", one.answer))
    return "".join(parts)


def _fields(title: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    required = set(schema.get("required", []))
    rows = "".join(
        f"<tr><td><code>{name}</code>{'' if name in required else ' (optional)'}</td>"
        f"<td>{html.escape(_type(one))}</td><td>{html.escape(one.get('description', ''))}</td></tr>"
        for name, one in schema["properties"].items()
    )
    return f"<h3>{title}</h3><table>{rows}</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return str(schema.get("format") or schema.get("type") or schema.get("$ref", "").rsplit("/", 1)[-1])

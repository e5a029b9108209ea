"""Describe the API: as an OpenAPI document, and as an HTML page that loads nothing from the network."""

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
from iccm_assets.gateway.auth import PUBLIC_PATHS
from iccm_assets.gateway.problem_details import MEDIA_TYPE


@dataclass(frozen=True)
class Endpoint:
    """One operation; ``error_statuses`` are its error statuses besides 401 and 405."""

    method: str
    path: str
    summary: str
    response: type[BaseModel] | str
    body: type[BaseModel] | None = None
    error_statuses: Sequence[int] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


_BODY_ERRORS = (400, 408, 413, 415, 422, 503)
ENDPOINTS = (
    Endpoint(
        "post",
        "/v1/requirements",
        "Write the requirements of a piece of source code.",
        schemas.RequirementsResponse,
        schemas.RequirementsRequest,
        (*_BODY_ERRORS, 409, 504),
        {"source_code": "def add(a, b):\n    return a + b\n", "session_id": "session-1"},
    ),
    Endpoint(
        "post",
        "/v1/conversations",
        "Complete a session: messages, accepted requirements, tests. Posting it again replaces it.",
        schemas.CompleteSessionResponse,
        schemas.CompleteSessionRequest,
        (*_BODY_ERRORS, 409, 410),
        {"session_id": "session-1", "messages": [{"role": "user", "content": "Thanks."}], "rating": 1},
    ),
    Endpoint(
        "post",
        "/v1/feedback",
        "Rate a session, or one of its responses. The latest rating counts.",
        schemas.FeedbackResponse,
        schemas.FeedbackRequest,
        (*_BODY_ERRORS, 404, 409),
        {"session_id": "session-1", "rating": 1},
    ),
    Endpoint(
        "post",
        "/v1/probe",
        "Get production's response, to measure it. It is not recorded and counts as no user's request.",
        schemas.ProbeResponse,
        schemas.ProbeRequest,
        (*_BODY_ERRORS, 504),
        {"source_code": "def add(a, b):\n    return a + b\n"},
    ),
    Endpoint(
        "get",
        "/v1/routing",
        "Show which model versions serve traffic now.",
        schemas.RoutingResponse,
        error_statuses=(503,),
    ),
    Endpoint("get", "/healthz", "Check whether the process is alive.", schemas.HealthStatus),
    Endpoint(
        "get",
        "/readyz",
        "Check whether the production model is loaded and warm; says how the database is.",
        schemas.ReadyStatus,
        error_statuses=(503,),
    ),
    Endpoint("get", "/metrics", "Get the metrics in Prometheus format.", "text/plain"),
)


@lru_cache(maxsize=1)
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    models = [schemas.ProblemDocument, *(model for item in ENDPOINTS for model in (item.body, item.response))]
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models) if isinstance(model, type)],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "CET-D gateway", "version": "1", "description": "Requirements for source code."},
        "paths": {endpoint.path: {endpoint.method: _operation(endpoint)} for endpoint in ENDPOINTS},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    secured = endpoint.path not in PUBLIC_PATHS
    responses = {"200": {"description": "OK", "content": _content(endpoint.response)}}
    for status in sorted({*endpoint.error_statuses, *((401,) if secured else ())}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": _ref(schemas.ProblemDocument)}},
        }
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method}{endpoint.path.replace('/', '_')}",
        "responses": responses,
    }
    if secured:
        operation["security"] = [{}, {"token": []}]
    if endpoint.body is not None:
        content = _content(endpoint.body)
        content["application/json"]["example"] = dict(endpoint.example)
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _content(model: type[BaseModel] | str) -> dict[str, dict[str, Any]]:
    if isinstance(model, str):
        return {model: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>CET-D gateway</title>
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
pre{{background:#8881;padding:.8rem;overflow:auto}}code{{font-size:.9em}}
table{{border-collapse:collapse}}
td,th{{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}}</style>
<h1>CET-D gateway</h1><p>Machine-readable: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).
Errors are problem documents (RFC 9457).</p>{sections}</html>"""


@lru_cache(maxsize=1)
def docs_page() -> str:
    """Return the documentation as plain HTML without scripts."""
    return _PAGE.format(sections="".join(map(_section, ENDPOINTS)))


def _section(endpoint: Endpoint) -> str:
    statuses, path = ", ".join(_operation(endpoint)["responses"]), endpoint.path
    html_parts = [
        f"<h2><code>{endpoint.method.upper()} {path}</code></h2><p>{html.escape(endpoint.summary)}",
        f" Statuses: {statuses}.</p>",
    ]
    if endpoint.body is not None:
        data = json.dumps(endpoint.example)
        call = f"curl -H 'Content-Type: application/json' -d '{data}' http://127.0.0.1:8321{path}"
        html_parts += [f"<pre>{html.escape(call)}</pre>", _fields("Request", endpoint.body)]
    if isinstance(endpoint.response, type):
        html_parts.append(_fields("Response", endpoint.response))
    return "".join(html_parts)


def _fields(title: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    required = set(schema.get("required", []))
    rows = "".join(
        f"<tr><td><code>{name}</code>{'' if name in required else ' (optional)'}</td>"
        f"<td>{html.escape(_type(value))}</td><td>{html.escape(value.get('description', ''))}</td></tr>"
        for name, value in schema["properties"].items()
    )
    return f"<h3>{title}</h3><table>{rows}</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return str(schema.get("format") or schema.get("type") or schema.get("$ref", "").rsplit("/", 1)[-1])

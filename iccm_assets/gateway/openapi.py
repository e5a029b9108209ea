"""Describe the API: as an OpenAPI document, and as an HTML page that loads nothing from the network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from iccm_assets.gateway import schemas
from iccm_assets.gateway.auth import PUBLIC_PATHS
from iccm_assets.gateway.problem_details import MEDIA_TYPE


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors as problem documents, for a route's ``responses``."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)
    }


def request_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body by an example, for a route's ``openapi_extra``."""
    return {"requestBody": {"content": {"application/json": {"example": dict(example)}}}}


@lru_cache(maxsize=1)
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    from iccm_assets.gateway.app import list_routes

    routes = list_routes()
    document = get_openapi(
        title="CET-D gateway",
        version="1",
        description="Requirements for source code.",
        routes=routes,
        separate_input_output_schemas=False,
    )
    components = document["components"]
    components["schemas"] |= {"ProblemDocument": schemas.ProblemDocument.model_json_schema()}
    components["schemas"] = {
        name: schema
        for name, schema in sorted(components["schemas"].items())
        if name not in ("HTTPValidationError", "ValidationError")
    }
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _complete(path, operation)
    return document


def operation_id(route: APIRoute) -> str:
    """Return the id of an operation, such as ``post_v1_requirements``."""
    (method,) = route.methods or {"GET"}
    return method.lower() + route.path_format.replace("/", "_").replace("{", "").replace("}", "")


def _complete(path: str, operation: dict[str, Any]) -> None:
    operation.pop("description", None)  # the summary says it
    operation["responses"]["200"]["description"] = "OK"
    for status, response in operation["responses"].items():
        response["description"] = HTTPStatus(int(status)).phrase
        if "text/plain" in response.get("content", {}):
            response["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if path not in PUBLIC_PATHS:
        operation["security"] = [{}, {"token": []}]


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>CET-D gateway</title>
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
pre{{background:#8881;padding:.8rem;overflow:auto}}code{{font-size:.9em}}
table{{border-collapse:collapse}}
td,th{{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}}</style>
<h1>CET-D gateway</h1><p>Machine-readable: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).
Errors are problem documents (RFC 9457); below <code>/v1/chat</code> and <code>/v1/models</code> they have the
shape of the OpenAI API.</p>{sections}</html>"""


@lru_cache(maxsize=1)
def docs_page() -> str:
    """Return the documentation as plain HTML without scripts."""
    sections = [
        _section(path, method, operation)
        for path, methods in openapi_document()["paths"].items()
        for method, operation in methods.items()
    ]
    return _PAGE.format(sections="".join(sections))


def _section(path: str, method: str, operation: Mapping[str, Any]) -> str:
    html_parts = [
        f"<h2><code>{method.upper()} {path}</code></h2><p>{html.escape(operation['summary'])}",
        f" Statuses: {', '.join(operation['responses'])}.</p>",
    ]
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        data = json.dumps(content["example"])
        call = f"curl -H 'Content-Type: application/json' -d '{data}' http://127.0.0.1:8321{path}"
        html_parts += [f"<pre>{html.escape(call)}</pre>", _fields("Request", content["schema"])]
    for content in operation["responses"]["200"]["content"].values():
        html_parts.append(_fields("Response", content["schema"]))
    return "".join(html_parts)


def _fields(title: str, reference: Mapping[str, Any]) -> str:
    name = str(reference.get("$ref", "")).rsplit("/", 1)[-1]
    schema = openapi_document()["components"]["schemas"].get(name)
    if schema is None:
        return ""
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

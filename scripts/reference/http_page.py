"""The HTTP API of the gateway, from its OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from iccm_assets.gateway.openapi import openapi_document
from scripts.reference.markdown import code, page, prose, section, table

INTRODUCTION = """
The gateway (`iccm serve`) listens on `http://127.0.0.1:8321` by default. `/openapi.json` returns the
document that this page is made from. Bodies are JSON; errors are problem documents (RFC 9457) of the schema
[ProblemDocument](#problemdocument). Where an operation names a bearer token, a gateway with tokens
(`ICCM_GATEWAY__TOKENS`) requires one.
"""


def render() -> str:
    """Return the page."""
    document = openapi_document()
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return page("HTTP API", INTRODUCTION, *operations, section("Schemas", *schemas))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [prose(operation["summary"])]
    if "security" in operation:
        parts.append("Authorization: bearer token.")
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        example = json.dumps(content["example"])
        parts += [f"Body: {_link(content['schema'])}.", f"```json\n{example}\n```"]
    responses = dict(operation["responses"])
    success = ", ".join(_link(value["schema"]) for value in responses.pop("200")["content"].values())
    errors = ", ".join(f"{code(status)} {response['description']}" for status, response in responses.items())
    parts += [f"Response: {success}.", errors and f"Errors: {errors}."]
    return section(f"{method.upper()} {path}", *parts)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (code(field), _type(value), "yes" if field in required else "", prose(value.get("description")))
        for field, value in schema.get("properties", {}).items()
    ]
    text = " ".join(prose(schema.get("description")).split())
    return section(name, text, table(("field", "type", "required", "meaning"), rows), level=3)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema)
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or "any")


def _link(schema: Mapping[str, Any]) -> str:
    name = str(schema["$ref"]).rsplit("/", 1)[-1] if "$ref" in schema else ""
    return f"[{name}](#{name.lower()})" if name else str(schema.get("type", "any"))

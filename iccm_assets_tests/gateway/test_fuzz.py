"""Requests drawn from the OpenAPI document: none may cause a server error or an undocumented response.

``FUZZ_CASES=5000`` draws that many per operation (three of them take bodies).
"""

from __future__ import annotations

import os

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from iccm_assets.gateway.openapi import openapi_document

load_all_checks()
EXAMPLES = int(os.environ.get("FUZZ_CASES", "40"))
SCHEMA = schemathesis.openapi.from_dict(openapi_document())
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_causes_a_server_error_or_an_undocumented_response(case, served):
    response = case.call(base_url=served.url)
    assert "Traceback" not in response.text
    if response.status_code == 503:  # the deliberate one
        assert "Retry-After" in response.headers or "retry-after" in response.headers
        return
    case.validate_response(response, checks=CHECKS)

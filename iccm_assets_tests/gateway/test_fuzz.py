"""Requests drawn from the OpenAPI document: none may cause a server error or an undocumented response.

Half of the bodies are drawn from what the gateway can answer, so that the search goes past the validation.
``FUZZ_CASES=4000`` draws that many for each of the five operations that take a body, and one that takes a
parameter; ``-s`` prints how many had which status.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from iccm_assets.gateway.openapi import openapi_document
from iccm_assets_tests.factories.request_bodies import BODIES_BY_OPERATION, model_names

load_all_checks()
EXAMPLES = int(os.environ.get("FUZZ_CASES", "40"))
SCHEMA = schemathesis.openapi.from_dict(openapi_document())
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MIN_ANSWERED_FRACTION = 0.15  # of the requests of an operation, the invalid ones included


@SCHEMA.hook
def before_generate_body(context: schemathesis.HookContext, strategy: SearchStrategy) -> SearchStrategy:
    return strategy | BODIES_BY_OPERATION[context.operation.label]


@SCHEMA.hook
def before_generate_path_parameters(
    context: schemathesis.HookContext, strategy: SearchStrategy
) -> SearchStrategy:
    return strategy | model_names.map(lambda name: {"model": name})


@pytest.fixture(scope="module")
def answers() -> Iterator[Counter[tuple[str, int | str]]]:
    """Count the answers by operation and status, and require that enough requests are answered."""
    counts: Counter[tuple[str, int | str]] = Counter()
    yield counts
    for (label, status), count in sorted(counts.items(), key=str):
        print(f"{label} {status}: {count}")  # noqa: T201
    print(f"{sum(count for (_, status), count in counts.items() if status != 'streamed')} requests")  # noqa: T201
    for label in {label for label, _ in counts} & set(BODIES_BY_OPERATION):
        total = sum(counts[key] for key in counts if key[0] == label and key[1] != "streamed")
        assert counts[label, 200] >= MIN_ANSWERED_FRACTION * total, label
        if "chat" in label:
            assert counts[label, "streamed"] > 0


@pytest.mark.timeout(300 + 5 * EXAMPLES)
@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_causes_a_server_error_or_an_undocumented_response(case, served, answers):
    response = case.call(base_url=served.url)
    label = case.operation.label
    answers[label, response.status_code] += 1
    assert "Traceback" not in response.text
    if response.status_code == 503:  # the deliberate one
        assert "Retry-After" in response.headers or "retry-after" in response.headers
        return
    case.validate_response(response, checks=CHECKS)
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        answers[label, "streamed"] += 1
        assert response.text.endswith("data: [DONE]\n\n")


def test_every_operation_with_a_body_has_requests_that_can_be_answered() -> None:
    operations = {
        f"{method.upper()} {path}"
        for path, methods in openapi_document()["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }
    assert operations == set(BODIES_BY_OPERATION)

"""The tools for coding agents: over stdio and HTTP, each call is a request to the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iccm_assets.gateway.mcp_server import create_mcp_server
from iccm_assets_tests.factories.gateways import SOURCE, SUITE, eventually, gateway, rows
from iccm_assets_tests.factories.mcp_clients import (
    AgentTools,
    ToolResult,
    http_response,
    run_over_http,
    run_over_stdio,
    serve_responses,
)
from iccm_assets_tests.factories.processes import free_port

REQUIREMENTS = "The function `add` shall take `a` and `b`. It shall return the sum of `a` and `b`."
TEST_FILE = "from shop.sums import add\n\n\ndef test_sum():\n    assert add(2, 3) == 5\n"
TOKEN = "token-of-sixteen-characters"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "sums.py").write_text(SOURCE, encoding="utf-8")
    return folder


def call(url: str, project: Path, name: str, **arguments: Any) -> ToolResult:
    return run_over_stdio(url, project, lambda tools: tools.call(name, **arguments))


def test_an_agent_writes_accepts_and_rates_in_one_session(served, engine, project) -> None:
    async def talk(tools: AgentTools) -> tuple[ToolResult, ...]:
        written = await tools.call("write_requirements", path="sums.py")
        session = written.values["session_id"]
        accepted = await tools.call(
            "accept_requirements",
            session_id=session,
            requirements=REQUIREMENTS,
            tests={"tests/test_sums.py": TEST_FILE},
        )
        rated = await tools.call("rate_requirements", session_id=session, rating=1, comment="right")
        again = await tools.call("write_requirements", source_code=SOURCE, session_id=session)
        return written, accepted, rated, again

    written, accepted, rated, again = run_over_stdio(served.url, project, talk)
    session = written.values["session_id"]
    assert set(written.values) == {"requirements", "request_id", "session_id", "model_version"}
    assert written.values["model_version"] == "v1"
    assert (accepted.values["accepted"], accepted.values["reason"]) == (True, "")
    assert accepted.values["tests"] == "attached, not measured yet"
    assert rated.values == {"session_id": session, "request_id": None}
    assert again.values["session_id"] == session
    requests = eventually(
        lambda: rows(engine, "select * from iccm.requests where session_id = :s", s=session)
    )
    assert {request.status for request in requests} == {"ok"}
    [stored] = rows(
        engine, "select * from iccm.requirements where session_id = :s and kind = 'accepted'", s=session
    )
    assert (stored.text, stored.test_suite_origin) == (REQUIREMENTS, "attached")
    ratings = eventually(
        lambda: rows(engine, "select rating, comment from iccm.feedback where session_id = :s", s=session)
    )
    assert [tuple(row) for row in ratings] == [(1, "right")]


def test_requirements_are_accepted_by_another_process_than_wrote_them(served, engine, project) -> None:
    written = call(served.url, project, "write_requirements", source_code=SOURCE).values
    query = "select from iccm.requests where request_id = :r"
    eventually(lambda: rows(engine, query, r=written["request_id"]))
    accepted = call(
        served.url,
        project,
        "accept_requirements",
        session_id=written["session_id"],
        requirements=REQUIREMENTS,
        tests=SUITE,
    )
    assert (accepted.values["accepted"], accepted.values["tests"]) == (True, "attached, not measured yet")


def test_acceptance_without_a_known_source_says_what_is_missing(served, project) -> None:
    accepted = call(
        served.url, project, "accept_requirements", session_id="unknown-here", requirements=REQUIREMENTS
    )
    assert accepted.values["accepted"] is False
    assert accepted.values["reason"] == "no source code: call it with source_code"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give either source_code or path."),
        ({"source_code": SOURCE, "path": "sums.py"}, "Give either source_code or path."),
        ({"source_code": " \n"}, "source_code is empty."),
        ({"path": "missing.py"}, "No such file or directory"),
        ({"path": "../outside.py"}, "is outside of the project"),
        ({"path": "/etc/hostname"}, "is outside of the project"),
        ({"path": "link.py"}, "is outside of the project"),
        ({"path": "."}, "is not a file"),
        ({"path": "pipe.py"}, "is not a file"),
        ({"path": "loop.py"}, "loop.py"),
        ({"path": "binary.py"}, "is not a text file in UTF-8"),
        ({"path": "nul.py"}, "is not a text file in UTF-8"),
        ({"path": "empty.py"}, "is empty"),
        ({"path": "huge.py"}, "has 1048577 bytes, more than 1048576"),
        ({"path": "x" * 5000}, "File name too long"),
        ({"path": "a\x00b"}, "null"),
        ({"source_code": SOURCE, "session_id": "erased:1"}, "session_id"),
        ({"source_code": 7}, "source_code"),
    ],
)
def test_wrong_arguments_are_one_clear_sentence(tmp_path, project, arguments, message) -> None:
    import asyncio
    import os

    (tmp_path / "outside.py").write_text(SOURCE, encoding="utf-8")
    (project / "link.py").symlink_to(tmp_path / "outside.py")
    (project / "loop.py").symlink_to(project / "loop.py")
    os.mkfifo(project / "pipe.py")
    (project / "binary.py").write_bytes(b"\xff\xfe\x00\x80")
    (project / "nul.py").write_bytes(b"a\x00b")
    (project / "empty.py").write_bytes(b"\n")
    (project / "huge.py").write_bytes(b"#" * ((1 << 20) + 1))
    problem = {"detail": "session_id: an id may not begin with erased:"}
    with serve_responses(http_response("422 Unprocessable", problem)) as url:
        result = asyncio.run(_call_in_process(url, project, arguments))
    assert result.is_error
    assert message in result.text
    assert "Traceback" not in result.text


async def _call_in_process(url: str, project: Path, arguments: dict[str, Any]) -> ToolResult:
    from mcp.client.client import Client

    async with Client(create_mcp_server(url, project=project)) as client:
        return await AgentTools(client).call("write_requirements", **arguments)


BUSY = http_response("503 Busy", {"detail": "the queue is full"}, retry_after="7")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (BUSY, "answers 503: the queue is full. Try again in 7 s."),
        (http_response("401 Unauthorized", {"detail": "a token is required"}), "Set ICCM_CLIENT__TOKEN"),
        (http_response("413 Too Large", {"detail": "over 1 MiB"}), "Send a smaller part of the code."),
        (http_response("500 Broken", [1]), "answers 500: Broken"),
        (http_response("200 OK", "hello"), "is it a gateway?"),
        (http_response("200 OK", {"hello": 1}), "is its version another one?"),
        (b"SSH-2.0-OpenSSH\r\n", "failed:"),
        (b"", "failed:"),
    ],
)
def test_what_a_gateway_answers_becomes_a_tool_error(project, response: bytes, message: str) -> None:
    import asyncio

    with serve_responses(response) as url:
        result = asyncio.run(_call_in_process(url, project, {"source_code": SOURCE}))
    assert result.is_error
    assert message in result.text


def test_without_a_gateway_the_tools_say_how_to_start_it(project) -> None:
    result = call(f"http://127.0.0.1:{free_port()}", project, "write_requirements", source_code=SOURCE)
    assert result.is_error
    assert "Start it with `iccm serve` or `iccm dev`." in result.text


def test_the_descriptions_say_when_to_call(project) -> None:
    async def talk(tools: AgentTools) -> Any:
        return tools.client.instructions, (await tools.client.list_tools()).tools

    instructions, tools = run_over_stdio("http://127.0.0.1:9", project, talk)
    assert "once the developer agrees" in instructions
    assert [tool.name for tool in tools] == ["write_requirements", "accept_requirements", "rate_requirements"]
    assert "whole source" in tools[0].description
    assert "only after the developer has agreed" in tools[1].description


def test_over_http_the_token_of_the_caller_owns_the_session(url, engine, tmp_path) -> None:
    async def talk(tools: AgentTools) -> ToolResult:
        return await tools.call("write_requirements", source_code=SOURCE)

    async def name_a_path(tools: AgentTools) -> ToolResult:
        return await tools.call("write_requirements", path="sums.py")

    with gateway(url, tmp_path / "home", ICCM_GATEWAY__TOKENS=TOKEN) as running:
        address = f"{running.url}/mcp"
        written = run_over_http(address, talk, TOKEN)
        assert not written.is_error, written.text
        assert "send the text as source_code" in run_over_http(address, name_a_path, TOKEN).text
        assert running.client.post("/mcp", json={}).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        for body, status in ((b"{", 400), (b'"' + b"x" * (1 << 20) + b'"', 413)):
            assert running.client.post("/mcp", content=body, headers=headers).status_code == status
        assert running.client.get("/mcp", headers=headers).status_code == 405
        query = "select token_name from iccm.conversations where session_id = :s"
        [stored] = eventually(lambda: rows(engine, query, s=written.values["session_id"]))
        assert stored.token_name.startswith("token-")

"""The pages on clients of the gateway, followed to the letter: each block runs and prints what is shown."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from iccm_assets_tests.factories.gateways import SOURCE, RunningGateway, eventually, rows
from iccm_assets_tests.factories.how_to_pages import HOW_TO, PageReader, is_shown
from iccm_assets_tests.factories.messages_api import MessagesApi, serve_messages_api
from iccm_assets_tests.factories.session_hooks import run_hook, session_end, spooled, write_session

pytestmark = pytest.mark.timeout(600)  # long for its few tests: it starts early
ANSWER = "The function `add` shall return the sum. (v1)"
CLAUDE = shutil.which("claude")
TOOL = "mcp__plugin_cet-d_cet-d__write_requirements"


@pytest.fixture
def reader(served: RunningGateway, url: str, tmp_path: Path) -> PageReader:
    """A reader whose gateway has another port and whose home has another name than those of the pages."""
    variables = {
        "ICCM_HOME": str(tmp_path / ".iccm"),
        "ICCM_DATABASE_URL": url,
        "ICCM_CLIENT__GATEWAY_URL": served.url,  # `iccm` reads it instead of an address of the page
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ANTHROPIC_API_KEY": "sk-test",
    }
    (tmp_path / "src" / "shop" / "src" / "shop").mkdir(parents=True)
    (tmp_path / "src" / "shop" / "src" / "shop" / "cart.py").write_text(SOURCE, encoding="utf-8")
    replacements = {"http://127.0.0.1:8321": served.url, "/home/ada": str(tmp_path)}
    return PageReader(tmp_path, replacements, variables)


@pytest.mark.slow
def test_openai_clients(reader: PageReader) -> None:
    reader.follow("openai-clients.md", skipped={})
    assert len(reader.outputs) == 3
    assert {output.strip().splitlines()[-1] for output in reader.outputs.values()} == {ANSWER}


@pytest.mark.slow
def test_tokens(reader: PageReader, served: RunningGateway, engine) -> None:
    def get_status(path: str) -> int:
        token = reader.read_variable("ICCM_CLIENT__TOKEN")
        return served.client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code

    reader.follow(
        "tokens.md",
        skipped={},
        after={  # a gateway learns of a change within seconds
            "Create 2": lambda: eventually(lambda: get_status("/metrics") == 403),
            "List, rotate, revoke 1": lambda: eventually(lambda: get_status("/v1/routing") == 401),
        },
    )
    assert ANSWER in reader.outputs["Create 3"]
    query = "select name, use_count > 0, revoked_at is null, previous_hash is null from iccm.gateway_tokens"
    assert eventually(
        lambda: stored if (stored := rows(engine, f"{query} order by name")) and stored[-1][1] else None
    ) == [("ci", False, True, False), ("laptop", True, False, True)]


def test_claude_code(reader: PageReader) -> None:
    """A session ends while the plug-in is connected; it is still imported after the disconnection."""
    plugins = [
        folder / ".claude" / "skills" / "cet-d" for folder in (reader.home, reader.home / "src" / "shop")
    ]

    def end_session() -> None:
        assert all((plugin / ".claude-plugin" / "plugin.json").is_file() for plugin in plugins)
        write_session(reader.home)
        run_hook(Path(reader.variables["ICCM_HOME"]), session_end(reader.home / "s.jsonl"))

    reader.follow("claude-code.md", skipped={}, after={"Connect 2": end_session})
    assert not any(plugin.exists() for plugin in plugins)
    assert not (reader.home / ".claude").exists() and not (reader.home / "src" / "shop" / ".claude").exists()


@pytest.mark.slow
@pytest.mark.skipif(CLAUDE is None, reason="needs Claude Code: npm install -g @anthropic-ai/claude-code")
def test_claude_code_with_the_real_program(reader: PageReader) -> None:
    """The plug-in and its server have the names of the page, and its words lead to the tool and a capture."""
    home, page = reader.home, (HOW_TO / "claude-code.md").read_text(encoding="utf-8")
    project = home / "src" / "shop"
    [prompt] = re.findall(r"^> (.+)$", page, re.MULTILINE)
    [path] = re.findall(r"requirements of (\S+) with CET-D", prompt)
    [least] = re.findall(r"needs Claude Code ([\d.]+) or\s+newer", page)
    assert "`cet-d@skills-dir`" in page and "`/mcp` the server `cet-d`" in page

    def run_claude(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [str(CLAUDE), *arguments],
            cwd=project,
            env=reader.environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def work() -> None:
        assert [plugin["id"] for plugin in json.loads(run_claude("plugin", "list", "--json"))] == [
            "cet-d@skills-dir"
        ]
        api = MessagesApi("__write_requirements", {"path": path})
        options = ("--output-format", "stream-json", "--verbose", "--allowedTools", TOOL)
        with serve_messages_api(api) as address:
            output = run_claude("-p", prompt, *options, ANTHROPIC_BASE_URL=address)
        start = json.loads(output.splitlines()[0])
        assert [server["name"].split(":")[-1] for server in start["mcp_servers"]] == ["cet-d"]
        [result] = api.results
        assert json.loads(result)["requirements"] == ANSWER
        assert len(spooled(Path(reader.variables["ICCM_HOME"]))) == 1

    version = run_claude("--version").split()[0]
    assert [int(part) for part in version.split(".")] >= [int(part) for part in least.split(".")]
    # In the project the program would ask whether the person trusts the folder.
    reader.follow("claude-code.md", skipped={"Connect 2": "asks the person"}, after={"Connect 1": work})


def test_a_page_that_does_not_fit_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="has no blocks"):
        PageReader(tmp_path, {}).follow("tokens.md", skipped={"Create 9": "there is none"})
    with pytest.raises(AssertionError, match=r"nobody can run .+ 'json'"):
        PageReader(tmp_path, {}).follow("import.md", skipped={"Import conversations 1": "needs files"})
    assert is_shown("a: 1\n", "a: …") and not is_shown("a: 1\nb\n", "a: 1")

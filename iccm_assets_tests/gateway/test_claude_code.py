"""The real Claude Code, connected by `iccm connect`: it calls a tool, ends, and its session is captured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from iccm_assets.capture.claude_code.session_spool import deliver_sessions
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.gateways import SOURCE, eventually, rows
from iccm_assets_tests.factories.messages_api import MessagesApi, serve_messages_api
from iccm_assets_tests.factories.processes import ROOT, bare_environment
from iccm_assets_tests.factories.session_hooks import spooled
from iccm_assets_tests.factories.training_pools import HashEmbedder

CLAUDE = shutil.which("claude")
TOOL = "mcp__plugin_cet-d_cet-d__write_requirements"
SCORED = """
select c.id, (c."timestamp" at time zone 'UTC')::date as day, r.text, r.test_suite_origin
from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id
where c.session_id = :s and r.scored_at is not null
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CLAUDE is None, reason="needs Claude Code: npm install -g @anthropic-ai/claude-code"),
]


def environment(home: Path, **more: str) -> dict[str, str]:
    return bare_environment() | {
        "HOME": str(home),
        "ICCM_HOME": str(home / "iccm"),
        "PYTHONPATH": str(ROOT),
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ANTHROPIC_API_KEY": "sk-test",
        **more,
    }


def claude(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CLAUDE), *arguments],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "sums.py").write_text(SOURCE, encoding="utf-8")
    return folder


def test_the_packaged_plug_in_is_valid(tmp_path: Path) -> None:
    validated = claude(
        "plugin", "validate", str(ROOT / "deploy" / "claude-code"), cwd=tmp_path, **environment(tmp_path)
    )
    assert validated.returncode == 0, validated.stdout + validated.stderr


def test_a_session_asks_cet_d_and_is_captured_when_it_ends(served, engine, url, project, tmp_path) -> None:
    home = tmp_path / "user"
    home.mkdir()
    variables = environment(home)
    connected = iccm("connect", "claude-code", "--gateway", served.url, **variables)
    assert connected.returncode == 0, connected.stderr
    assert "is ready" in connected.stdout
    listed = claude("plugin", "list", "--json", cwd=project, **variables)
    assert [plugin["id"] for plugin in json.loads(listed.stdout)] == ["cet-d@skills-dir"]

    api = MessagesApi("__write_requirements", {"path": "sums.py"})
    prompt = f"Write requirements for\n```python\n{SOURCE}```"
    with serve_messages_api(api) as address:
        ended = claude(
            *("-p", prompt, "--allowedTools", TOOL, "--output-format", "json"),
            cwd=project,
            **variables,
            ANTHROPIC_BASE_URL=address,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(api.results) == 1, ended.stdout
    written = json.loads(api.results[0])
    assert written["model_version"] == "v1"
    query = "select status from iccm.requests where request_id = :r"
    assert eventually(lambda: rows(engine, query, r=written["request_id"]))[0].status == "ok"

    assert len(spooled(home / "iccm")) == 1
    settings = load_settings(home=home / "iccm", database_url=url, curation={"holdout_fraction": 0.0})
    assert deliver_sessions(engine, settings).sessions == {"new": 1}
    session = json.loads(ended.stdout)["session_id"]
    [stored] = rows(engine, "select origin, content from iccm.conversations where session_id = :s", s=session)
    assert stored.origin == "claude-code" and "def add" in str(stored.content)

    # The day's run: a suite is recorded from the source, two members rebuild it, and the pool has it.
    assert record_missing_suites(engine, settings).sources["usable"] >= 1
    orchestra = Orchestra(tuple(LocalReconstructor(name, lambda text: SOURCE) for name in "ab"), quorum=2)
    score_unscored(engine, orchestra, settings)
    [scored] = rows(engine, SCORED, s=session)
    assert scored.test_suite_origin == "recorded"
    filter_day(engine, scored.day, settings, HashEmbedder())
    rebuild_pool(engine, [scored.day], settings, HashEmbedder())
    pooled = "select source_code, requirements from iccm.phase4_training_data where conversation_id = :c"
    [example] = rows(engine, pooled, c=scored.id)
    assert (example.source_code.strip(), example.requirements) == (SOURCE.strip(), scored.text)

    removed = iccm("disconnect", "claude-code", **variables)
    assert removed.returncode == 0 and not (home / ".claude" / "skills").exists()
    listed = claude("plugin", "list", "--json", cwd=project, **variables)
    assert json.loads(listed.stdout) == []
    assert os.listdir(project) == ["sums.py"]


def test_a_trusted_project_captures_its_own_sessions_beside_a_hook_of_the_user(project, tmp_path) -> None:
    home = tmp_path / "user"
    (home / ".claude").mkdir(parents=True)
    trust = {"projects": {str(project): {"hasTrustDialogAccepted": True}}}
    (home / ".claude.json").write_text(json.dumps(trust), encoding="utf-8")
    own = {"type": "command", "command": f"touch '{home}/own-hook'"}
    settings = json.dumps({"hooks": {"SessionEnd": [{"hooks": [own]}]}})
    (home / ".claude" / "settings.json").write_text(settings, encoding="utf-8")
    variables = environment(home)
    connected = iccm("connect", "claude-code", "--project", str(project), **variables)
    assert connected.returncode == 0, connected.stderr
    with serve_messages_api(MessagesApi("no such tool", {})) as address:
        ended = claude("-p", "Hello", cwd=project, **variables, ANTHROPIC_BASE_URL=address)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(spooled(home / "iccm")) == 1
    assert (home / "own-hook").exists()
    assert iccm("disconnect", "claude-code", "--project", str(project), **variables).returncode == 0
    assert os.listdir(project) == ["sums.py"]
    assert (home / ".claude" / "settings.json").read_text(encoding="utf-8") == settings

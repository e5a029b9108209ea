"""`iccm connect`, `iccm disconnect` and `iccm capture` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.processes import ROOT, free_port
from iccm_assets_tests.factories.session_hooks import run_hook, session_end, write_session


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "ICCM_HOME": str(tmp_path / "iccm"),
        "PYTHONPATH": str(ROOT),
        "ICCM_CLIENT__GATEWAY_URL": f"http://127.0.0.1:{free_port()}",
    }


def test_the_user_and_a_project_are_connected_and_disconnected(tmp_path, environment) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for options, folder in (
        ((), tmp_path / ".claude"),
        (("--project", str(project)), project / ".claude"),
    ):
        connected = iccm("connect", "claude-code", "--json", *options, **environment)
        assert connected.returncode == 0, connected.stderr
        report = json.loads(connected.stdout)
        assert (report["state"], report["folder"]) == ("installed", str(folder / "skills" / "cet-d"))
        assert report["gateway"]["ready"] is False
        again = iccm("connect", "claude-code", *options, **environment)
        assert "cet-d@skills-dir unchanged" in again.stdout
        assert "start it with `iccm dev` or `iccm serve`" in again.stdout
        removed = iccm("disconnect", "claude-code", "--json", *options, **environment)
        assert json.loads(removed.stdout)["state"] == "removed"
        assert not folder.exists()


def test_wrong_options_and_settings_are_one_line(tmp_path, environment) -> None:
    both = iccm("connect", "claude-code", "--user", "--project", str(tmp_path), **environment)
    assert both.returncode == 2 and "exclude each other" in both.stderr
    url = iccm("connect", "claude-code", "--gateway", "ftp://x", **environment)
    assert url.returncode == 2 and "must be http://HOST:PORT" in url.stderr
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text("{broken")
    broken = iccm("connect", "claude-code", **environment)
    assert broken.returncode == 1 and "is not valid JSON" in broken.stderr
    assert broken.stderr.count("\n") == 1
    assert not (tmp_path / ".claude" / "skills").exists()


def test_captured_sessions_are_listed_and_imported(settings, tmp_path, environment) -> None:
    environment |= {"ICCM_HOME": str(settings.home), "ICCM_DATABASE_URL": settings.database_url}
    write_session(tmp_path)
    run_hook(settings.home, session_end(tmp_path / "s.jsonl"))
    (tmp_path / "bad.jsonl").write_text("no transcript\n")
    run_hook(settings.home, session_end(tmp_path / "bad.jsonl", "bad"))
    assert "waiting: 2; not imported: 0" in iccm("capture", "list", **environment).stdout
    delivered = iccm("capture", "deliver", "--json", **environment)
    assert delivered.returncode == 1
    report = json.loads(delivered.stdout)
    assert (report["sessions"], len(report["dead_letters"]), report["waiting"]) == ({"new": 1}, 1, 0)
    listed = json.loads(iccm("capture", "list", "--json", **environment).stdout)
    assert (listed["waiting"], len(listed["dead_letters"])) == ([], 1)
    again = iccm("capture", "deliver", "--retry", **environment)
    assert again.returncode == 1 and "1 kept aside" in again.stdout

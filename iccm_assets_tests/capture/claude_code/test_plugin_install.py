"""Connecting installs a folder of its own, and disconnecting restores every file byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.capture.claude_code.plugin_install import (
    PLUGIN,
    RECORD,
    PluginSettings,
    check_settings_files,
    get_config_folder,
    install_plugin,
    make_plugin_settings,
    remove_plugin,
    render_plugin,
)
from iccm_assets.errors import InputError
from iccm_assets_tests.factories.processes import ROOT
from iccm_assets_tests.factories.session_hooks import session_end, spooled, write_session

PLUGIN_SETTINGS = PluginSettings(("/venv/bin/iccm",), "/venv/bin/python", Path("/home/of iccm"))
OTHER_HOOK = {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "echo bye"}]}]}}


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder, with its content: None for a folder, a text for a link."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


NAMES = st.sampled_from(
    ["settings.json", "CLAUDE.md", "skills/other/SKILL.md", "skills/notes.txt", "agents/a"]
)
SETTINGS = st.builds(
    lambda values, indent: (json.dumps(values, indent=indent) + "\r\n").encode(),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3).map(
        OTHER_HOOK.__or__
    ),
    st.sampled_from([None, 1, 4, "\t"]),
)


@given(
    before=st.dictionaries(NAMES, SETTINGS, max_size=4),
    between=st.dictionaries(
        NAMES | st.sampled_from(["plugins/p/x", "skills/cet-d2/y"]), SETTINGS, max_size=4
    ),
    rounds=st.integers(1, 3),
    has_config=st.booleans(),
)
def test_disconnecting_restores_every_file_beside_those_of_others(
    before, between, rounds, has_config
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        config, twin = root / "home" / ".claude", root / "twin" / ".claude"
        for folder in (config, twin):
            folder.parent.mkdir()
            if has_config:
                folder.mkdir()
            write(folder, before)
        for _ in range(rounds):
            install_plugin(config, PLUGIN_SETTINGS)
        assert snapshot(config)["skills/cet-d/.claude-plugin/plugin.json"]
        for folder in (config, twin):
            write(folder, between)
        assert remove_plugin(config).state == "removed"
        assert snapshot(config.parent) == snapshot(twin.parent)
        assert remove_plugin(config).state == "absent"
    finally:
        shutil.rmtree(root)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_connecting_twice_is_connecting_once_and_a_change_updates(tmp_path) -> None:
    config = tmp_path / ".claude"
    assert install_plugin(config, PLUGIN_SETTINGS, dry_run=True).state == "installed"
    assert not config.exists()
    assert install_plugin(config, PLUGIN_SETTINGS).state == "installed"
    installed = snapshot(tmp_path)
    assert install_plugin(config, PLUGIN_SETTINGS).state == "unchanged"
    assert snapshot(tmp_path) == installed
    moved = PluginSettings(("/other/iccm",), "/other/python", Path("/h"), "http://127.0.0.1:1")
    assert install_plugin(config, moved).state == "updated"
    server = json.loads((config / "skills/cet-d/.mcp.json").read_text())["mcpServers"]["cet-d"]
    assert server["command"] == "/other/iccm"
    assert server["args"] == ["mcp", "--gateway", "http://127.0.0.1:1"]
    assert remove_plugin(config, dry_run=True).state == "removed"
    assert remove_plugin(config).state == "removed"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_user_adds_to_the_folder_stays(tmp_path) -> None:
    config = tmp_path / ".claude"
    install_plugin(config, PLUGIN_SETTINGS)
    own = config / "skills/cet-d/skills/own/SKILL.md"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    install_plugin(config, PluginSettings(("/other",), "/p", Path("/h")))
    result = remove_plugin(config)
    assert result.kept == ("skills/own/SKILL.md",)
    assert [path for path in config.rglob("*") if path.is_file()] == [own]


def test_a_changed_file_is_removed_only_by_force(tmp_path) -> None:
    config = tmp_path / ".claude"
    install_plugin(config, PLUGIN_SETTINGS)
    (config / "skills/cet-d/.mcp.json").write_text("{}")
    before = snapshot(tmp_path)
    other = PluginSettings(("/other",), "/p", Path("/h"))
    for action in (lambda: remove_plugin(config), lambda: install_plugin(config, other)):
        with pytest.raises(InputError, match="was changed since it was installed"):
            action()
    assert snapshot(tmp_path) == before
    remove_plugin(config, force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff", b"[" * 200_000, b"null"])
def test_settings_that_claude_code_cannot_read_are_an_error_and_nothing_changes(tmp_path, content) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(InputError, match=r"settings\.json"):
        install_plugin(tmp_path, PLUGIN_SETTINGS)
    assert snapshot(tmp_path) == {"settings.json": content}


def test_settings_that_keep_the_plug_in_from_working_are_named(tmp_path) -> None:
    settings = {"enabledPlugins": {"cet-d@skills-dir": False}, "disableAllHooks": True}
    (tmp_path / "settings.local.json").write_text(json.dumps(settings))
    assert len(check_settings_files(tmp_path)) == 2


def test_a_folder_of_somebody_else_is_not_touched(tmp_path) -> None:
    folder = tmp_path / "skills" / "cet-d"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("another skill")
    with pytest.raises(InputError, match="was not installed by this command"):
        install_plugin(tmp_path, PLUGIN_SETTINGS)
    assert remove_plugin(tmp_path).state == "absent"
    assert (folder / "SKILL.md").read_text() == "another skill"
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="was not installed by this command"):
        install_plugin(tmp_path, PLUGIN_SETTINGS)


def test_a_record_that_names_files_elsewhere_removes_none(tmp_path) -> None:
    config = tmp_path / ".claude"
    install_plugin(config, PLUGIN_SETTINGS)
    (tmp_path / "precious").write_text("x")
    record = config / "skills/cet-d" / RECORD
    for files in ({"../../../precious": ""}, {str(tmp_path / "precious"): ""}):
        record.write_text(json.dumps({"files": files, "folders": [str(tmp_path)]}))
        with pytest.raises(InputError, match="outside of its folder"):
            remove_plugin(config, force=True)
    record.write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        remove_plugin(config, force=True)
    assert (tmp_path / "precious").exists()


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path) -> None:
    (tmp_path / "skills").write_text("a file")
    with pytest.raises(InputError):
        install_plugin(tmp_path, PLUGIN_SETTINGS)
    assert snapshot(tmp_path) == {"skills": b"a file"}
    with pytest.raises(InputError, match="is not a folder"):
        get_config_folder(tmp_path / "missing")


def test_the_plug_in_is_the_one_of_deploy_and_runs_this_installation(tmp_path) -> None:
    assert (ROOT / "deploy" / "claude-code").resolve() == PLUGIN.resolve()
    files = render_plugin(PLUGIN_SETTINGS)
    assert set(files) == {
        ".claude-plugin/plugin.json",
        ".mcp.json",
        "hooks/capture_session.py",
        "hooks/hooks.json",
        "skills/requirements/SKILL.md",
    }
    [hook] = json.loads(files["hooks/hooks.json"])["hooks"]["SessionEnd"][0]["hooks"]
    script = '"${CLAUDE_PLUGIN_ROOT}/hooks/capture_session.py"'
    assert hook["command"] == f"/venv/bin/python -I {script} --home '/home/of iccm'"
    own = make_plugin_settings(tmp_path, None)
    assert Path(own.command[0]).exists() and Path(own.python).exists()


def test_the_installed_hook_runs_under_paths_with_blanks_and_quotes(tmp_path) -> None:
    config, home = tmp_path / "it's a $home" / ".claude", tmp_path / 'iccm "home" $x'
    installed = install_plugin(config, make_plugin_settings(home, None))
    hooks = json.loads((installed.folder / "hooks" / "hooks.json").read_text())
    [hook] = hooks["hooks"]["SessionEnd"][0]["hooks"]
    write_session(tmp_path)
    subprocess.run(
        ["/bin/sh", "-c", hook["command"]],
        input=session_end(tmp_path / "s.jsonl"),
        env={"CLAUDE_PLUGIN_ROOT": str(installed.folder)},
        check=True,
    )
    assert len(spooled(home)) == 1

"""Install the plug-in for Claude Code, and remove exactly what was installed. (C5)

Claude Code loads a plug-in from each folder of `skills` that holds a plug-in manifest: no settings file has
to change. The folder is written beside its place and renamed; a record of the files lets the removal spare
whatever else lies there.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from iccm_assets.atomic_directories import fsync, fsync_tree
from iccm_assets.errors import InputError

PLUGIN = Path(__file__).parent / "plugin"
PLUGIN_NAME = "cet-d"
PLUGIN_ID = f"{PLUGIN_NAME}@skills-dir"
RECORD = ".iccm-installed.json"
_IGNORED = "__pycache__"


@dataclass(frozen=True)
class PluginSettings:
    """What the installed plug-in runs: the command line, the hook's Python, the home and the gateway."""

    command: tuple[str, ...]
    python: str
    home: Path
    gateway_url: str | None = None


@dataclass(frozen=True)
class InstallResult:
    """``state``: `installed`, `updated`, `unchanged`, `removed` or `absent`. ``kept``: files of others."""

    folder: Path
    state: str
    files: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def get_config_folder(project: Path | None) -> Path:
    """Return the folder of Claude Code's configuration: the user's, or that of a project.

    Raises ``InputError`` if the project is not a folder.
    """
    if project is None:
        return Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude").absolute()
    if not project.is_dir():
        raise InputError(f"{project} is not a folder")
    return project.absolute() / ".claude"


def make_plugin_settings(home: Path, gateway_url: str | None) -> PluginSettings:
    """Use this installation's own `iccm` and Python."""
    program = Path(sys.executable).with_name("iccm")
    inline = (sys.executable, "-c", "from iccm_assets.cli.main import main; main()")
    command = (str(program),) if os.access(program, os.X_OK) else inline
    return PluginSettings(command, sys.executable, home, gateway_url)


def install_plugin(config: Path, settings: PluginSettings, *, dry_run: bool = False) -> InstallResult:
    """Install or update the plug-in below a configuration folder.

    Raises ``InputError``, with nothing changed, if another plug-in has its place, if its files were changed,
    or if a settings file of Claude Code cannot be read: Claude Code ignores such a file.
    """
    check_settings_files(config)
    folder = config / "skills" / PLUGIN_NAME
    record = _load_record(folder)
    if record is None and os.path.lexists(folder):
        raise InputError(f"{folder} exists and was not installed by this command", hint="Move it away.")
    files = render_plugin(settings)
    digests = {name: sha256(content).hexdigest() for name, content in files.items()}
    if record is not None:
        _require_unchanged(folder, record)
        if record["files"] == digests:
            return InstallResult(folder, "unchanged", tuple(files))
    state = "installed" if record is None else "updated"
    if dry_run:
        return InstallResult(folder, state, tuple(files))
    created = _missing_folders(folder.parent) if record is None else record["folders"]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _publish(folder, files, {"files": digests, "folders": created}, record)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror}") from None
    return InstallResult(folder, state, tuple(files))


def remove_plugin(config: Path, *, force: bool = False, dry_run: bool = False) -> InstallResult:
    """Remove the files that were installed, and the folders made for them that are empty then.

    Raises ``InputError``, with nothing changed, if an installed file was changed, unless ``force``.
    """
    folder = config / "skills" / PLUGIN_NAME
    record = _load_record(folder)
    if record is None:
        return InstallResult(folder, "absent")
    if not force:
        _require_unchanged(folder, record)
    names = (*record["files"], RECORD)
    kept = tuple(sorted(set(_list_files(folder)) - set(names)))
    if not dry_run:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        inner = {
            parent for name in names for parent in (folder / name).parents if parent.is_relative_to(folder)
        }
        for empty in sorted(inner, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it holds a file of somebody else
                empty.rmdir()
        for created in record["folders"]:
            with suppress(OSError):
                Path(created).rmdir()
    return InstallResult(folder, "removed", tuple(record["files"]), kept)


def check_settings_files(config: Path) -> list[str]:
    """Read the settings files of a configuration folder; return what in them keeps the plug-in from working.

    Raises ``InputError`` for a file that Claude Code cannot read.
    """
    problems = []
    for name in ("settings.json", "settings.local.json"):
        settings = _load_json(config / name)
        enabled = settings.get("enabledPlugins")
        if isinstance(enabled, dict) and enabled.get(PLUGIN_ID) is False:
            problems.append(
                f"{config / name} disables {PLUGIN_ID}; `claude plugin enable {PLUGIN_ID}` enables it"
            )
        if settings.get("disableAllHooks") is True:
            problems.append(f"{config / name} disables all hooks: no session is captured")
    return problems


def render_plugin(settings: PluginSettings) -> dict[str, bytes]:
    """Return the files of the plug-in by their path, with the commands of this installation."""
    files = {name: (PLUGIN / name).read_bytes() for name in sorted(_list_files(PLUGIN))}
    program, *arguments = settings.command
    options = ["--gateway", settings.gateway_url] if settings.gateway_url else []
    server = {
        "command": program,
        "args": [*arguments, "mcp", *options],
        "env": {"ICCM_HOME": str(settings.home)},
    }
    files[".mcp.json"] = _to_json({"mcpServers": {PLUGIN_NAME: server}})
    hooks = json.loads(files["hooks/hooks.json"])
    [hook] = hooks["hooks"]["SessionEnd"][0]["hooks"]
    script = hook["command"].partition(" -I ")[2]
    home = shlex.quote(str(settings.home))
    hook["command"] = f"{shlex.quote(settings.python)} -I {script} --home {home}"
    files["hooks/hooks.json"] = _to_json(hooks)
    return files


def _publish(
    folder: Path, files: Mapping[str, bytes], record: dict[str, Any], earlier: Mapping[str, Any] | None
) -> None:
    """Write the folder beside its place and rename it; files of others in an earlier one move along."""
    staging = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        for name, content in {**files, RECORD: _to_json(record)}.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if earlier is None:
            fsync_tree(staging)
            staging.rename(folder)
        else:
            _replace(folder, staging, earlier)
        fsync(folder.parent)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _replace(folder: Path, staging: Path, earlier: Mapping[str, Any]) -> None:
    """Exchange an installed folder for another one."""
    ours = {*earlier["files"], RECORD}
    for name in set(_list_files(folder)) - ours:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, staging / name, follow_symlinks=False)
    fsync_tree(staging)
    aside = staging.with_name(f"{staging.name}-earlier")
    folder.rename(aside)
    staging.rename(folder)
    shutil.rmtree(aside)


def _load_record(folder: Path) -> dict[str, Any] | None:
    """Load what was installed in a folder; None if nothing was."""
    if folder.is_symlink() or not (folder / RECORD).is_file():
        return None
    record = _load_json(folder / RECORD)
    files, folders = record.get("files"), record.get("folders")
    if not isinstance(files, dict) or not isinstance(folders, list):
        raise InputError(f"{folder / RECORD} is damaged", hint=f"Remove {folder} yourself.")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder / RECORD} names a file outside of its folder: {name}")
    parents = {str(parent) for parent in folder.parents}
    return {"files": files, "folders": [path for path in folders if path in parents]}


def _require_unchanged(folder: Path, record: Mapping[str, Any]) -> None:
    for name, digest in record["files"].items():
        path = folder / name
        if path.is_symlink() or (path.exists() and sha256(path.read_bytes()).hexdigest() != digest):
            raise InputError(
                f"{path} was changed since it was installed",
                hint="Keep a copy; `iccm disconnect claude-code --force` removes it.",
            )


def _missing_folders(folder: Path) -> list[str]:
    """List the folders that have to be made, innermost first."""
    return [str(path) for path in (folder, *folder.parents) if not path.exists()]


def _list_files(folder: Path) -> Iterator[str]:
    for inner, folders, names in os.walk(folder):
        links = [name for name in folders if Path(inner, name).is_symlink()]
        folders[:] = [name for name in folders if name != _IGNORED]
        for name in (*names, *links):
            yield Path(inner, name).relative_to(folder).as_posix()


def _load_json(path: Path) -> dict[str, Any]:
    """Load a JSON object; empty if there is no file. Raises ``InputError``."""
    try:
        if not path.exists():
            return {}
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error})", hint="Repair it first.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a JSON object", hint="Repair it first.")
    return document


def _to_json(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")

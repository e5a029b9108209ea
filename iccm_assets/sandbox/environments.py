"""Judge environments: packages that code in the sandbox may import besides the standard library. (J5)

An environment is a virtual environment in the home's folder ``environments``, called by the digest of what
is installed in it. It is built once, never changed, and mounted read-only; code chooses one by what it
imports, unless its suite names one. With ``ICCM_STORAGE`` homes share them, and download the chosen ones.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

from iccm_assets.errors import InputError, MissingPackageError
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.sandbox.python_source import parse_python
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import StorageCache, open_storage

FOLDER, MANIFEST = "environments", "environment.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MIN_DIGEST_CHARACTERS = 8
SHARED_LIST_SECONDS = 60.0
# What differs between two installations of the same packages.
_INSTALLER_FILES = frozenset(("INSTALLER", "REQUESTED", "direct_url.json", "RECORD"))
_MODULE = re.compile(r"([A-Za-z_]\w*)(?:\.(?:py|so)|\.[\w-]+\.so)?")


@dataclass(frozen=True)
class Environment:
    """A built environment. ``packages`` are like ``numpy==2.4.1``; ``modules`` are what can be imported.

    ``site_packages`` is the folder on this machine.
    """

    digest: str
    name: str
    packages: tuple[str, ...]
    modules: frozenset[str]
    site_packages: str
    created_at: str


def list_environments(home: Path, storage: StorageCache | None = None) -> list[Environment]:
    """List the environments of a home and of the storage; of those with one name, the newest comes first.

    What only the storage has is known at most a minute later, and is downloaded when it is chosen.
    """
    manifests = sorted((home / FOLDER).glob(f"[0-9a-f]*/{MANIFEST}"))
    environments = [_read(str(path), path.stat().st_mtime_ns) for path in manifests]
    if storage is not None:
        present = {item.digest for item in environments}
        minute = int(time.monotonic() // SHARED_LIST_SECONDS)
        shared = _list_shared(storage.storage.url, str(home), minute)
        environments += [item for item in shared if item.digest not in present]
    newest_first = sorted(environments, key=lambda item: item.created_at, reverse=True)
    return sorted(newest_first, key=lambda item: item.name)


@lru_cache(64)
def _read(path: str, mtime_ns: int) -> Environment:
    return _parse(Path(path).read_text(encoding="utf-8"), Path(path).parent)


@lru_cache(4)
def _list_shared(url: str, home: str, minute: int) -> tuple[Environment, ...]:
    storage = ObjectStorage(url)
    environments = []
    for artifact in storage.list_artifacts(FOLDER):
        text = storage.read_file(storage.read_manifest(FOLDER, artifact.name), MANIFEST)
        environments.append(_parse(text, Path(home) / FOLDER / artifact.name))
    return tuple(environments)


def _parse(text: str | bytes, folder: Path) -> Environment:
    values = json.loads(text)
    return Environment(
        values["digest"],
        values["name"],
        tuple(values["packages"]),
        frozenset(values["modules"]),
        str(folder / values["site_packages"]),
        values["created_at"],
    )


def find_environment(home: Path, name: str, storage: StorageCache | None = None) -> Environment:
    """Find an environment by name, digest or the first characters of its digest.

    Raises ``MissingPackageError`` if there is none.
    """
    environments = list_environments(home, storage)
    for environment in environments:
        starts = len(name) >= MIN_DIGEST_CHARACTERS and environment.digest.startswith(name)
        if environment.name == name or starts:
            return environment
    known = ", ".join(dict.fromkeys(item.name for item in environments)) or "none"
    raise MissingPackageError(
        f"there is no environment {name[:80]!r} on this machine (known: {known})",
        hint="`iccm environment create NAME --requirements FILE` builds one.",
    )


def choose_environment(sources: Iterable[str], named: str | None, settings: Settings) -> Environment | None:
    """Choose where code runs: as ``named``, by default, or by what ``sources`` import; None: no packages.

    Of several environments that have what is imported, the one with the fewest packages is chosen.
    ``named`` "" stands for the standard library alone. Raises ``MissingPackageError`` for a name or default
    that does not exist, ``StorageError`` if the chosen one cannot be downloaded.
    """
    storage = open_storage(settings)
    chosen = _choose(sources, named, settings, storage)
    if chosen is not None and storage is not None:
        digest = chosen.digest
        storage.fetch(FOLDER, digest, lambda folder: _verify_download(folder, digest))
    return chosen


def _choose(
    sources: Iterable[str], named: str | None, settings: Settings, storage: StorageCache | None
) -> Environment | None:
    if named is not None:
        return find_environment(settings.home, named, storage) if named else None
    default = settings.judge.environment
    chosen = find_environment(settings.home, default, storage) if default else None
    environments = list_environments(settings.home, storage)
    if not environments:
        return None
    newest = {item.name: item for item in reversed(environments)}.values()
    available = frozenset[str]().union(*(item.modules for item in newest))
    needed = frozenset[str]().union(*map(find_imports, sources)) & available
    if not needed or (chosen and needed <= chosen.modules):
        return chosen
    # Where none has all of it, the one that has the most: the verdict then names what is missing.
    return min(newest, key=lambda item: (-len(needed & item.modules), len(item.packages), item.name))


def find_imports(source: str) -> frozenset[str]:
    """Find the top-level modules that a source imports; none in what is not Python."""
    try:
        nodes = list(ast.walk(parse_python(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    names = [item.name for node in nodes if isinstance(node, ast.Import) for item in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return frozenset(name.partition(".")[0] for name in names)


# ---- building ------------------------------------------------------------------------------------


def create_environment(
    home: Path,
    name: str,
    requirements: Path,
    on_line: Callable[[str], None] = lambda line: None,
    storage: StorageCache | None = None,
) -> tuple[Environment, bool]:
    """Build an environment from a requirements file of pip; return it, and whether it is new.

    ``on_line`` gets what pip prints. The same packages are the same environment, whatever it is called;
    a name that exists stands for the new one from then on. Raises ``InputError``.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name[:80]!r} is no name: lower-case letters, digits, '.', '_' and '-'")
    if not requirements.is_file():
        raise InputError(f"{requirements}: no such file")
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(building)], on_line)
        pip = [sys.executable, "-m", "pip", "--python", str(building / "bin" / "python"), "install"]
        options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        _run([*pip, *options, "--requirement", str(requirements)], on_line)
        environment = _describe(building, name)
        target = folder / environment.digest
        existing = next((item for item in list_environments(home) if item.digest == environment.digest), None)
        if existing is not None and existing.name == name:
            share_environment(target, storage)
            return existing, False
        _make_readable(building)
        if existing is None:
            building.rename(target)
        _write_manifest(target, environment)
        share_environment(target, storage)
        return find_environment(home, environment.digest), existing is None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def delete_environment(home: Path, name: str, storage: StorageCache | None = None) -> Environment:
    """Delete an environment from the home and the storage; what was judged in it keeps its digest."""
    environment = find_environment(home, name, storage)
    if storage is not None:
        storage.storage.delete(FOLDER, environment.digest)
        _list_shared.cache_clear()
    if (folder := home / FOLDER / environment.digest).is_dir():
        shutil.rmtree(folder)
    return environment


def share_environment(folder: Path, storage: StorageCache | None) -> bool:
    """Publish an environment in the storage; one that has another name there gets this one.

    Returns whether the storage did not have it.
    """
    if storage is None:
        return False
    is_new = storage.publish(FOLDER, folder.name, folder, list_portable_files(folder))
    stored = storage.storage.read_manifest(FOLDER, folder.name)
    if storage.storage.read_file(stored, MANIFEST) != (folder / MANIFEST).read_bytes():
        storage.replace(FOLDER, folder.name, folder, list_portable_files(folder))
    _list_shared.cache_clear()
    return is_new


def list_portable_files(folder: Path) -> list[Path]:
    """List what code can import of an environment, and its manifest, but not its interpreter."""
    manifest = folder / MANIFEST
    root = folder / json.loads(manifest.read_text(encoding="utf-8"))["site_packages"]
    return [path for path in sorted({*root.rglob("*"), manifest}) if path.is_file()]


def _verify_download(folder: Path, digest: str) -> None:
    if (actual := _describe(folder, "download").digest) != digest:
        raise InputError(
            f"the environment {digest[:12]} was built for another Python or machine ({actual[:12]} here)"
        )


def _run(command: list[str], on_line: Callable[[str], None]) -> None:
    """Run a command; ``InputError`` has its last lines where it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip())
            on_line(line.rstrip())
    if process.returncode:
        problems = [line for line in lines if "ERROR" in line] or lines[-3:] or ["no output"]
        raise InputError(f"the packages could not be installed: {' '.join(problems)[:1000]}")


def _describe(folder: Path, name: str) -> Environment:
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    installed = sorted(distributions(path=[str(site_packages)]), key=lambda item: item.name.lower())
    if not installed:
        raise InputError("the requirements name no package")
    files = sorted(
        line for record in site_packages.glob("*.dist-info/RECORD") for line in _list_files(record)
    )
    version = ".".join(platform.python_version_tuple()[:2])
    identity = json.dumps([version, platform.machine(), files])
    modules = (
        _MODULE.fullmatch(entry.name) for entry in site_packages.iterdir() if entry.name != "__pycache__"
    )
    return Environment(
        hashlib.sha256(identity.encode()).hexdigest(),
        name,
        tuple(f"{item.name}=={item.version}" for item in installed),
        frozenset(match[1] for match in modules if match),
        str(site_packages.relative_to(folder)),
        datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def _list_files(record: Path) -> Iterator[tuple[str, str]]:
    """List the installed files with their hashes; scripts are left out, they name the folder."""
    with record.open(encoding="utf-8", newline="") as lines:
        for path, digest, _ in csv.reader(lines):
            if digest and not path.startswith("..") and Path(path).name not in _INSTALLER_FILES:
                yield path, digest


def _make_readable(folder: Path) -> None:
    """Let the unprivileged user of the sandbox read all of it, whatever the umask."""
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            if not os.path.islink(path):
                mode = stat.S_IMODE(os.stat(path).st_mode)
                os.chmod(path, mode | 0o444 | (0o111 if os.path.isdir(path) or mode & 0o100 else 0))


def _write_manifest(folder: Path, environment: Environment) -> None:
    values = {**asdict(environment), "modules": sorted(environment.modules)}
    partial = folder / f".{MANIFEST}"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)

"""`iccm doctor`: check this machine and name the fix for what is missing. Changes nothing, starts nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out, print_line
from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.db.embedded.binaries import postgres_home
from iccm_assets.errors import DatabaseError, IccmError, ModelNotFoundError, first_line
from iccm_assets.registry import hub, manifest
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import Settings, load_settings

MIN_PYTHON = (3, 11)
# A home with the database, the embedder's cache and some checkpoints of the reference model.
MIN_DISK_BYTES = 2 << 30
UI_PORT = 3000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM_TIMEOUT_SECONDS = 20
_SANDBOX_FIX = (
    "Allow user namespaces for this user (in a container: run it with --security-opt seccomp=unconfined)."
)
_CONTROL_GROUP_FIX = (
    "For exact limits: `systemd-run --user --scope -p Delegate=yes iccm …`, or start it as root on cgroup v2."
)
# Kernel settings that forbid what bubblewrap needs: name, forbidding value, allowing value.
_USER_NAMESPACE_SWITCHES = (
    ("user/max_user_namespaces", "0", "15000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)


@dataclass(frozen=True)
class SystemCheck:
    """One requirement: what the machine has, and the fix, which is empty if it is ok."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this machine; exits 1 if something required is missing."""
    # The checks work without a network: the model hub is not queried.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    checks = list(run_checks())
    missing = [check for check in checks if check.required and not check.ok]
    if as_json:
        echo_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print_line(_format(check))
        out.print(f"\n{len(missing)} requirements are missing." if missing else "\nThis machine is ready.")
    if missing:
        raise typer.Exit(1)


def run_checks() -> Iterator[SystemCheck]:
    """Run every check in order; a check that fails to run is a missing requirement, never an exception."""
    yield check_python()
    try:
        settings = load_settings()
    except IccmError as error:
        yield SystemCheck(
            "settings", False, True, error.detail, error.hint or "Unset or correct the variable."
        )
        return
    yield SystemCheck("settings", True, True, f"profile {settings.profile}")
    yield check_database(settings)
    yield from check_sandbox(settings)
    yield check_disk(settings.home)
    yield check_port(UI_PORT)
    yield _run_check("base model", _describe_base_model, settings)
    yield _run_check("embedder", _describe_embedder, settings)
    fix = "Correct ICCM_CANARY_SET or the file."
    yield _run_check("canary set", _describe_canary_set, settings, fix)
    fix = "Correct ICCM_ORCHESTRA or ICCM_ORCHESTRA_QUORUM."
    yield _run_check("orchestra", _describe_orchestra, settings, fix)
    yield from check_real_traffic(settings)
    yield check_browser()


def check_python() -> SystemCheck:
    """Check the version of Python."""
    current, minimum = (".".join(map(str, version)) for version in (sys.version_info[:3], MIN_PYTHON))
    ok = sys.version_info >= MIN_PYTHON
    return SystemCheck("python", ok, True, current, "" if ok else f"Install Python {minimum} or newer.")


def check_database(settings: Settings) -> SystemCheck:
    """Check the server at ``ICCM_DATABASE_URL``, or the programs of the embedded one."""
    describe = _describe_embedded if settings.database_url is None else _describe_server
    return _run_check("postgresql", describe, settings)


def check_real_traffic(settings: Settings) -> Iterator[SystemCheck]:
    """Report real conversations that `builtin` cannot score; nothing where the database does not run."""
    from sqlalchemy.exc import SQLAlchemyError

    from iccm_assets.db.database import create_engine_for
    from iccm_assets.db.embedded.embedded_server import EmbeddedServer
    from iccm_assets.reporting.real_traffic import find_builtin_notice

    try:
        url = settings.database_url or EmbeddedServer(settings.home).running_url()
        if url is None:
            return
        engine = create_engine_for(url)
        with engine.connect() as conn:
            notice = find_builtin_notice(conn, settings.orchestra)
        engine.dispose()
    except (IccmError, SQLAlchemyError):
        return  # the check of the database reports it
    if notice is not None:
        fix = "Set ICCM_ORCHESTRA to chat endpoints: openai:URL#model, … (docs/orchestra.md)."
        yield SystemCheck("real traffic", False, False, notice, fix)


def check_sandbox(settings: Settings) -> Iterator[SystemCheck]:
    """Check each layer of the sandbox, in one that is started for this."""
    from iccm_assets.sandbox.launcher import MissingLayersError
    from iccm_assets.sandbox.sandbox import Sandbox

    if settings.sandbox == "unsafe":
        yield SystemCheck(
            "sandbox",
            False,
            False,
            "ICCM_SANDBOX=unsafe",
            "Unset ICCM_SANDBOX: untrusted code runs without isolation.",
        )
        return
    restriction, fix = find_namespace_restriction(Path("/proc/sys"))
    yield SystemCheck("user namespaces", not restriction, False, restriction or "allowed", fix)
    try:
        with Sandbox.start(settings) as running:
            layers = running.running.layers
    except MissingLayersError as error:
        layers = error.layers
    except IccmError as error:
        yield SystemCheck("sandbox", False, True, error.detail, fix or error.hint or _SANDBOX_FIX)
        return
    for name, state in layers.items():
        ok = not state.startswith("missing")
        yield SystemCheck(f"sandbox {name}", ok, True, state, "" if ok else fix or _SANDBOX_FIX)
    yield check_judge_memory(settings)


def check_judge_memory(settings: Settings) -> SystemCheck:
    """Check whether as many sandboxes as set fit into the memory, and how exactly their memory is limited."""
    from iccm_assets.sandbox import control_groups

    parent, total = control_groups.find_parent(), psutil.virtual_memory().total
    count, configured = control_groups.count_workers(settings, total), settings.judge.workers
    each = control_groups.worst_case_bytes(settings)
    how = f"limited exactly by control groups in {parent}" if parent else "sampled, without control groups"
    detail = f"{count} of {configured} at a time, {each >> 20} MiB each of {total >> 20} MiB; memory is {how}"
    fixes = [] if parent else [_CONTROL_GROUP_FIX]
    fixes += (
        [f"Set ICCM_JUDGE__WORKERS={count} or a lower ICCM_JUDGE__MEMORY_MIB."] if count < configured else []
    )
    return SystemCheck("judge memory", not fixes, False, detail, " ".join(fixes))


def find_namespace_restriction(sysctl: Path) -> tuple[str, str]:
    """Find the kernel setting that forbids user namespaces, and its fix; two empty texts if none does."""
    for name, forbidding, allowing in _USER_NAMESPACE_SWITCHES:
        switch = sysctl / name
        if switch.exists() and switch.read_text(encoding="ascii").strip() == forbidding:
            dotted = name.replace("/", ".")
            return f"{dotted} = {forbidding}", f"As root: sysctl -w {dotted}={allowing}"
    return "", ""


def check_disk(home: Path) -> SystemCheck:
    """Check free space and write access where the platform keeps its files."""
    directory = next(path for path in (home, *home.parents) if path.exists())
    free, writable = shutil.disk_usage(directory).free, os.access(directory, os.W_OK)
    ok = free >= MIN_DISK_BYTES and writable
    detail = f"{free / 2**30:.1f} GiB free at {directory}" + ("" if writable else ", not writable")
    fix = f"Free {MIN_DISK_BYTES >> 30} GiB, or set ICCM_HOME to a writable directory with enough space."
    return SystemCheck("disk", ok, True, detail, "" if ok else fix)


def check_port(number: int) -> SystemCheck:
    """Check that the default port of the Dagster UI is free; another one works, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            fix = f"Stop the process on port {number}, or start the UI with `dagster dev --port`."
            return SystemCheck("port", False, False, f"127.0.0.1:{number}: {error.strerror}", fix)
    return SystemCheck("port", True, False, f"127.0.0.1:{number} is free")


def check_browser() -> SystemCheck:
    """Check for a Chromium, which only the browser tests need."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    fix = "Only the browser tests need it: install chromium, or `playwright install chromium`."
    return SystemCheck("chromium", path is not None, False, path or "not found", "" if path else fix)


def _run_check(
    name: str, describe: Callable[[Settings], str], settings: Settings, fix: str = ""
) -> SystemCheck:
    try:
        return SystemCheck(name, True, True, describe(settings))
    except IccmError as error:
        return SystemCheck(name, False, True, error.detail, error.hint or fix)
    except Exception as error:
        # Any error of a library is a result of the check: the command itself must not fail.
        return SystemCheck(name, False, True, first_line(error), "Reinstall the package (`make install`).")


def _describe_embedded(_: Settings) -> str:
    command = [str(postgres_home() / "bin" / "postgres"), "--version"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_SECONDS, check=True
    )
    return f"embedded, {result.stdout.strip()}"


def _describe_server(settings: Settings) -> str:
    from sqlalchemy import text

    from iccm_assets.db.database import (
        MIN_SERVER_VERSION,
        create_engine_for,
        current_revision,
        database_url,
    )

    engine = create_engine_for(database_url(settings))
    try:
        revision = current_revision(engine)
        with engine.connect() as conn:
            version = int(conn.execute(text("show server_version_num")).scalar_one()) // 10_000
            vector = conn.execute(
                text("select from pg_available_extensions where name = 'vector'")
            ).one_or_none()
    finally:
        engine.dispose()
    if version < MIN_SERVER_VERSION:
        raise DatabaseError(f"version {version}", hint=f"Use PostgreSQL {MIN_SERVER_VERSION} or newer.")
    if vector is None:
        raise DatabaseError("no pgvector", hint=f"Install postgresql-{version}-pgvector on the server.")
    return f"version {version} with pgvector, schema revision {revision or 'none yet'}"


def _describe_base_model(settings: Settings) -> str:
    from transformers import AutoTokenizer

    name = settings.base_model
    try:
        directory = hub.resolve(name)
    except ModelNotFoundError:
        if hub.is_local_path(name):
            raise
        fix = f"With a network: `hf download {name}`; without: set ICCM_BASE_MODEL to a directory."
        raise ModelNotFoundError(f"{name} is not in the Hugging Face cache", hint=fix) from None
    hub.check_loadable(directory)
    if hub.has_manifest(directory):
        manifest.verify(directory)
    size = len(AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False))
    return f"{directory}, {size} tokens"


def _describe_embedder(settings: Settings) -> str:
    from iccm_assets.models.embedding import Embedder

    embedder = Embedder.load(settings)
    return f"{embedder.path}, {embedder.digest[:12]}"


def _describe_canary_set(settings: Settings) -> str:
    canary_set = load_canary_set(settings.canary_set)
    return f"{len(canary_set.items)} items in {len(canary_set.slices)} slices, {canary_set.digest}"


def _describe_orchestra(settings: Settings) -> str:
    """List the members; sends no request to endpoints, because requests cost money."""
    orchestra = load_orchestra_from_settings(settings)
    return f"{', '.join(member.name for member in orchestra.members)}; quorum {orchestra.quorum}"


def _format(check: SystemCheck) -> str:
    mark = "[green]ok     [/]" if check.ok else "[red]missing[/]" if check.required else "[yellow]absent [/]"
    fix = f"\n        fix: {check.fix}" if check.fix else ""
    return mark + escape(f" {check.name}: {check.detail}{fix}")

"""`iccm doctor`: what this machine lacks, and the exact fix (S1). Changes nothing, starts nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.errors import DatabaseError, IccmError, InputError, ModelNotFound, OrchestraError
from iccm_assets.settings import Settings, load_settings

MINIMUM_PYTHON = (3, 11)
# A home with the database, the embedder's cache and some checkpoints of the reference model.
NEEDED_DISK_BYTES = 2 << 30
UI_PORT = 3000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM_SECONDS = 20
_SANDBOX_FIX = (
    "Allow user namespaces to this user (in a container: run it with --security-opt seccomp=unconfined)."
)
# Where kernels and distributions forbid what bubblewrap needs: the switch, its closed and its open value.
_USER_NAMESPACE_SWITCHES = (
    ("user/max_user_namespaces", "0", "15000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``fix`` is empty when it is ok."""

    name: str
    ok: bool
    required: bool
    found: str
    fix: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check this machine; exits 1 when something required is missing."""
    # The question is what works without a network, and no hub is to be asked for it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    checks = list(examine())
    missing = [check for check in checks if check.required and not check.ok]
    if as_json:
        echo_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            out.print(_line(check), soft_wrap=True, highlight=False)
        out.print(f"\n{len(missing)} required things are missing." if missing else "\nThis machine is ready.")
    if missing:
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Every check, in order; one that cannot be made is a missing thing, never an exception."""
    yield python_version()
    try:
        settings = load_settings()
    except IccmError as error:
        yield Check("settings", False, True, error.detail, error.hint or "Unset or correct the variable.")
        return
    yield Check("settings", True, True, f"profile {settings.profile}")
    yield database(settings)
    yield from sandbox(settings)
    yield disk(settings.home)
    yield port(UI_PORT)
    yield _tried("base model", lambda: _base_model(settings), required=True)
    yield _tried("embedder", lambda: _embedder(settings), required=True)
    yield _tried("canary set", lambda: _canary_set(settings), required=True)
    yield _tried("orchestra", lambda: _orchestra(settings), required=True)
    yield browser()


def python_version() -> Check:
    """Python is new enough."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    ok = sys.version_info >= MINIMUM_PYTHON
    wanted = ".".join(str(part) for part in MINIMUM_PYTHON)
    return Check("python", ok, True, found, "" if ok else f"Install Python {wanted} or newer.")


def database(settings: Settings) -> Check:
    """A PostgreSQL at ``ICCM_DATABASE_URL``, or the binaries of the embedded one."""
    if settings.database_url is None:
        return _tried("postgresql", _embedded_version, required=True)
    return _tried("postgresql", lambda: _server_version(settings), required=True)


def sandbox(settings: Settings) -> Iterator[Check]:
    """Each layer of the judge's sandbox (J3), looked at in one that was really started."""
    from iccm_assets.judging.sandbox import LayersMissing, Sandbox

    if settings.sandbox == "unsafe":
        fix = "Unset ICCM_SANDBOX: untrusted code runs without isolation."
        yield Check("sandbox", False, False, "ICCM_SANDBOX=unsafe", fix)
        return
    closed, fix = user_namespaces(Path("/proc/sys"))
    yield Check("user namespaces", not closed, False, closed or "allowed", fix)
    try:
        with Sandbox.start(settings) as started:
            layers = started.layers
    except LayersMissing as error:
        layers = error.layers
    except IccmError as error:
        yield Check("sandbox", False, True, error.detail, fix or error.hint or _SANDBOX_FIX)
        return
    for name, state in layers.items():
        ok = not state.startswith("missing")
        yield Check(f"sandbox {name}", ok, True, state, "" if ok else fix or _SANDBOX_FIX)


def user_namespaces(sysctl: Path) -> tuple[str, str]:
    """Which switch forbids user namespaces to ordinary users, and the fix; two empty texts when none does."""
    for name, forbidding, allowing in _USER_NAMESPACE_SWITCHES:
        switch = sysctl / name
        if switch.exists() and switch.read_text(encoding="ascii").strip() == forbidding:
            dotted = name.replace("/", ".")
            return f"{dotted} = {forbidding}", f"As root: sysctl -w {dotted}={allowing}"
    return "", ""


def disk(home: Path) -> Check:
    """There is room where the platform keeps its files."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    ok, writable = free >= NEEDED_DISK_BYTES, os.access(place, os.W_OK)
    found = f"{free / 2**30:.1f} GiB free at {place}" + ("" if writable else ", not writable")
    fix = f"Free {NEEDED_DISK_BYTES >> 30} GiB, or set ICCM_HOME to a writable directory with room."
    return Check("disk", ok and writable, True, found, "" if ok and writable else fix)


def port(number: int) -> Check:
    """The Dagster UI's usual port is free; another one will do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            fix = f"Stop what listens on {number}, or start the UI with `dagster dev --port`."
            return Check("port", False, False, f"127.0.0.1:{number}: {error.strerror}", fix)
    return Check("port", True, False, f"127.0.0.1:{number} is free")


def browser() -> Check:
    """A Chromium for the browser tests."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        fix = "Only the browser tests need one: install chromium, or `playwright install chromium`."
        return Check("chromium", False, False, "not found", fix)
    return Check("chromium", True, False, found)


def _tried(name: str, look: Callable[[], str], *, required: bool) -> Check:
    try:
        return Check(name, True, required, look())
    except IccmError as error:
        return Check(name, False, required, error.detail, error.hint)
    except Exception as error:
        # Whatever a library says about a broken machine is the finding: a doctor does not fall ill.
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(name, False, required, said, "Reinstall the package (`make install`).")


def _embedded_version() -> str:
    from iccm_assets.store.embedded import programs

    command = [str(programs() / "bin" / "postgres"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True)
    return f"embedded, {done.stdout.strip()}"


def _server_version(settings: Settings) -> str:
    from sqlalchemy import text

    from iccm_assets.store.database import MINIMUM_VERSION, current_revision, database_url, engine_for

    engine = engine_for(database_url(settings))
    try:
        revision = current_revision(engine)
        with engine.connect() as conn:
            version = int(conn.execute(text("show server_version_num")).scalar_one()) // 10_000
            vector = conn.execute(
                text("select from pg_available_extensions where name = 'vector'")
            ).one_or_none()
    finally:
        engine.dispose()
    if version < MINIMUM_VERSION:
        raise DatabaseError(f"version {version}", hint=f"Use PostgreSQL {MINIMUM_VERSION} or newer.")
    if vector is None:
        raise DatabaseError("no pgvector", hint=f"Install postgresql-{version}-pgvector on the server.")
    return f"version {version} with pgvector, schema revision {revision or 'none yet'}"


def _base_model(settings: Settings) -> str:
    from transformers import AutoTokenizer

    from iccm_assets.models import manifest, resolve

    name = settings.base_model
    try:
        directory = resolve.resolve(name)
    except ModelNotFound:
        if resolve.looks_local(name):
            raise
        fix = f"With a network: `hf download {name}`; without: set ICCM_BASE_MODEL to a directory."
        raise ModelNotFound(f"{name} is not in the Hugging Face cache", hint=fix) from None
    resolve.check_loadable(directory)
    if resolve.is_published(directory):
        manifest.verify(directory)
    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    return f"{directory}, {len(tokenizer)} tokens"


def _embedder(settings: Settings) -> str:
    from iccm_assets.models.embedding import Embedder

    embedder = Embedder.load(settings)
    return f"{embedder.path}, {embedder.digest[:12]}"


def _canary_set(settings: Settings) -> str:
    from iccm_assets.curation.canary_set import load_canary_set

    try:
        found = load_canary_set(settings.canary_set)
    except InputError as error:
        raise InputError(error.detail, hint=error.hint or "Correct ICCM_CANARY_SET or the file.") from None
    return f"{len(found.items)} items in {len(found.slices)} slices, {found.digest}"


def _orchestra(settings: Settings) -> str:
    """Who is in it; endpoints are not asked, for that costs money."""
    from iccm_assets.judging.orchestra import orchestra_of

    try:
        found = orchestra_of(settings)
    except OrchestraError as error:
        fix = error.hint or "Correct ICCM_ORCHESTRA or ICCM_ORCHESTRA_QUORUM."
        raise OrchestraError(error.detail, hint=fix) from None
    return f"{', '.join(member.name for member in found.members)}; quorum {found.quorum}"


def _line(check: Check) -> str:
    mark = "[green]ok     [/]" if check.ok else "[red]missing[/]" if check.required else "[yellow]absent [/]"
    fix = f"\n        fix: {check.fix}" if check.fix else ""
    return mark + escape(f" {check.name}: {check.found}{fix}")

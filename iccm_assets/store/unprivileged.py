"""Runs one PostgreSQL program as an unprivileged user; started by root in a process of its own (S2).

`python -I unprivileged.py SPEC` with SPEC a JSON object `{"uid", "gid", "package", "home", "args"}`; in
`args`, `{package}` and `{home}` stand for the two directories. Neither need be reachable for that user
(a closed parent such as /root is enough to hide them), and no mode, owner or mount changes for it:

- the home is handed over as an open directory, `/proc/self/fd/N`, which leads into it past its parents;
- the programs look for themselves by their real path, so hidden ones are bound into a private mount
  namespace, which ends with the processes in it.

Standard library only, because nothing else of the package may be importable here.
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


def main() -> int:
    """Drop to the user and become the program; returns only when that is impossible."""
    spec = json.loads(sys.argv[1])
    uid, gid, package, home = spec["uid"], spec["gid"], Path(spec["package"]), _handed_over(spec["home"])
    closed = obstacle(uid, gid, package, home)
    if closed is not None and closed.is_relative_to(package):
        try:
            package = reachable_copy(package, uid, gid)
        except OSError as error:
            sys.stderr.write(
                f"uid {uid} cannot reach {closed}, and a mount namespace cannot be had: {error}\n"
            )
            return CANNOT
        closed = obstacle(uid, gid, package, home)
    if closed is not None:
        sys.stderr.write(f"uid {uid} cannot reach {closed}\n")
        return CANNOT
    drop(uid, gid)
    os.chdir("/")
    args = [str(one).replace("{package}", str(package)).replace("{home}", str(home)) for one in spec["args"]]
    os.execve(args[0], args, dict(os.environ))


def drop(uid: int, gid: int) -> None:
    """Become this user for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def obstacle(uid: int, gid: int, package: Path, home: Path) -> Path | None:
    """What keeps the user from running the programs on this home, found by trying it as that user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        drop(uid, gid)
        os.write(writing, str(_first_closed(package, home) or "").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    os.waitpid(child, 0)
    return Path(found) if found else None


def reachable_copy(package: Path, uid: int, gid: int) -> Path:
    """The programs where the user can reach them, in a mount namespace of this process and its children.

    Raises `OSError` where root may not mount, as in a container without CAP_SYS_ADMIN.
    """
    _call("unshare", _libc().unshare(_CLONE_NEWNS))
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # The wheel's libraries lie beside its package and are found relative to the programs.
    wheel = package.parent
    sources = [path for path in (wheel, wheel.with_name(f"{wheel.name}.libs")) if path.is_dir()]
    # Opened before the stage is covered: the install may lie below it.
    handles = {path.name: os.open(path, os.O_PATH) for path in sources}
    stage = Path(next(place for place in _STAGES if os.path.isdir(place) and not os.path.islink(place)))
    _mount("tmpfs", str(stage), "tmpfs", 0, "mode=0755")
    for name, handle in handles.items():
        (stage / name).mkdir(mode=0o755)
        _mount(f"/proc/self/fd/{handle}", str(stage / name), None, _MS_BIND)
        os.close(handle)
    bound = stage / wheel.name / package.name
    closed = obstacle(uid, gid, bound, Path("/"))
    return bound if closed is None else _opened_up(stage, bound, list(handles))


def _opened_up(stage: Path, bound: Path, names: list[str]) -> Path:
    """The programs copied into memory, for anyone to read: they were installed under a tight umask."""
    for name in names:
        source = bound if name == bound.parent.name else stage / name
        shutil.copytree(source, stage / "copy" / source.relative_to(stage))
    for root, _, files in os.walk(stage / "copy"):
        os.chmod(root, 0o755)
        for name in files:
            path = Path(root) / name
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    return stage / "copy" / bound.relative_to(stage)


def _first_closed(package: Path, home: Path) -> Path | None:
    for path, mode in (
        (package / "bin" / "postgres", os.R_OK | os.X_OK),
        (package / "share" / "postgresql" / "postgres.bki", os.R_OK),
        (package / "lib" / "postgresql" / "vector.so", os.R_OK),
        (home, os.X_OK),
    ):
        if not os.access(path, mode):
            return path
    return None


def _handed_over(home: str) -> Path:
    """The home as an open directory that programs inherit; its path where there is no /proc."""
    if not os.path.isdir("/proc/self/fd"):
        return Path(home)
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(handle, True)
    return Path(f"/proc/self/fd/{handle}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call(f"mount {target}", _libc().mount(*words[:3], ctypes.c_ulong(flags), words[3]))


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    sys.exit(main())

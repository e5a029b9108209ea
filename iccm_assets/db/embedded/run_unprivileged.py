"""Run one PostgreSQL program as an unprivileged user; started by root in a process of its own (S2).

`python -I FILE SPEC`, where SPEC is a JSON object `{"uid", "gid", "package", "home", "args"}`; in `args`,
`{package}` and `{home}` stand for the two directories. The user need not be able to reach them (a closed
parent such as /root hides them), and their modes, owners and mounts do not change:

- the home is passed as an open directory, `/proc/self/fd/N`, which bypasses its parents;
- the programs find their files by their real path, so hidden ones are bound into a private mount namespace,
  which ends with the processes in it.

Standard library only: nothing else of the package may be importable here.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
from pathlib import Path

CANNOT_RUN_STATUS = 97  # the reason is the last line on stderr

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18

# A tmpfs covers one of these, in the private namespace only.
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/run")


def main() -> int:
    """Drop privileges and become the program; returns only if that is impossible."""
    spec = json.loads(sys.argv[1])
    uid, gid, package, home = spec["uid"], spec["gid"], Path(spec["package"]), _open_inheritable(spec["home"])
    unreadable = find_unreadable_path(uid, gid, package, home)
    if unreadable is not None and unreadable.is_relative_to(package):
        try:
            package = bind_readable_copy(package, uid, gid)
        except OSError as error:
            sys.stderr.write(
                f"uid {uid} cannot reach {unreadable}, and a mount namespace cannot be created: {error}\n"
            )
            return CANNOT_RUN_STATUS
        unreadable = find_unreadable_path(uid, gid, package, home)
    if unreadable is not None:
        sys.stderr.write(f"uid {uid} cannot reach {unreadable}\n")
        return CANNOT_RUN_STATUS
    drop_privileges(uid, gid)
    os.chdir("/")
    args = [arg.replace("{package}", str(package)).replace("{home}", str(home)) for arg in spec["args"]]
    os.execve(args[0], args, dict(os.environ))


def drop_privileges(uid: int, gid: int) -> None:
    """Become this user irrevocably."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def find_unreadable_path(uid: int, gid: int, package: Path, home: Path) -> Path | None:
    """Return the first path the user cannot access, found by trying as that user; None if there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        drop_privileges(uid, gid)
        os.write(writing, str(_first_unreadable(package, home) or "").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        path = pipe.read().decode()
    os.waitpid(child, 0)
    return Path(path) if path else None


def bind_readable_copy(package: Path, uid: int, gid: int) -> Path:
    """Bind the programs where the user can reach them, in a mount namespace of this process and its children.

    Raises `OSError` where root may not mount, as in a container without CAP_SYS_ADMIN.
    """
    _check_call("unshare", _LIBC.unshare(_CLONE_NEWNS))
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # The wheel's libraries are next to its package and are found relative to the programs.
    wheel = package.parent
    sources = [path for path in (wheel, wheel.with_name(f"{wheel.name}.libs")) if path.is_dir()]
    # Opened before the mount point is covered: the installation may be below it.
    handles = {path.name: os.open(path, os.O_PATH) for path in sources}
    stage = next(path for path in map(Path, _MOUNT_POINTS) if path.is_dir() and not path.is_symlink())
    _mount("tmpfs", str(stage), "tmpfs", 0, "mode=0755")
    for name, handle in handles.items():
        (stage / name).mkdir(mode=0o755)
        _mount(f"/proc/self/fd/{handle}", str(stage / name), None, _MS_BIND)
        os.close(handle)
    bound = stage / wheel.name / package.name
    if find_unreadable_path(uid, gid, bound, Path("/")) is None:
        return bound
    return _copy_readable(stage, bound, list(handles))


def _copy_readable(stage: Path, bound: Path, names: list[str]) -> Path:
    """Copy the programs into memory, readable for everyone: they were installed with a strict umask."""
    for name in names:
        source = bound if name == bound.parent.name else stage / name
        shutil.copytree(source, stage / "copy" / source.relative_to(stage))
    for root, _, files in os.walk(stage / "copy"):
        os.chmod(root, 0o755)
        for name in files:
            path = Path(root) / name
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    return stage / "copy" / bound.relative_to(stage)


def _first_unreadable(package: Path, home: Path) -> Path | None:
    required = {
        package / "bin" / "postgres": os.R_OK | os.X_OK,
        package / "share" / "postgresql" / "postgres.bki": os.R_OK,
        package / "lib" / "postgresql" / "vector.so": os.R_OK,
        home: os.X_OK,
    }
    return next((path for path, mode in required.items() if not os.access(path, mode)), None)


def _open_inheritable(home: str) -> Path:
    """Return the home as an open directory that programs inherit; its path where there is no /proc."""
    if not os.path.isdir("/proc/self/fd"):
        return Path(home)
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(descriptor, True)
    return Path(f"/proc/self/fd/{descriptor}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _check_call(f"mount {target}", _LIBC.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def _check_call(name: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


if __name__ == "__main__":
    sys.exit(main())

"""Tripwires: name what no honest implementation does, at the moment it does it (J2).

Standard library only: sent into the sandbox and installed, in the process of each case, before the
implementation is imported. A tripwire enforces nothing (the sandbox does) and an implementation may get
round it; it only gives a name to what would otherwise look like an ordinary error, or like nothing.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_write = os.write
_getframe = sys._getframe

MAX_TEXT = 300
MAX_NOTICES = 20
STDLIB = os.path.dirname(os.__file__) + "/"

PATH_EVENTS = ("open", "os.listdir", "os.scandir", "os.chdir", "os.symlink", "os.link")
SOCKET_EVENTS = (
    *("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
)
HEAP_EVENTS = ("gc.get_objects", "gc.get_referrers", "sys._current_frames")
_SYMBOLS = """
    socket connect syscall ptrace mount unshare setns process_vm_readv process_vm_writev kill keyctl bpf prctl
    pidfd_getfd environ getenv
    """
DANGEROUS_SYMBOLS = frozenset(_SYMBOLS.split())
OWN_FOLDERS = ("/tmp/", "/usr/", "/lib/", "/lib64/", "/dev/", sys.base_prefix + "/", sys.prefix + "/")
_FILES = """
    /etc/localtime /etc/timezone /etc/mime.types /etc/os-release /proc/cpuinfo /proc/meminfo /proc/loadavg
    /proc/uptime /proc/version /proc/self/fd /proc/self/status /proc/self/stat
    """
HARMLESS_FILES = frozenset(_FILES.split())
# These look for system files by themselves, and do without.
_LIBRARIES = """
    mimetypes.py platform.py gettext.py locale.py sysconfig.py subprocess.py ssl.py uuid.py webbrowser.py
    zoneinfo/_common.py zoneinfo/_tzpath.py zoneinfo/__init__.py ctypes/util.py
    """
CURIOUS_LIBRARIES = frozenset(STDLIB + name for name in _LIBRARIES.split())


class Tripwires:
    """An audit hook that reports host files, sockets and the heap, one line each on a pipe."""

    def __init__(self, notices: int, inputs: frozenset[str]) -> None:
        self.notices = notices
        self.inputs = inputs
        self.seen: set[str] = set()
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        check = CHECKS.get(event)
        if check is None or self.busy:
            return
        self.busy = True
        try:
            finding = check(self, event, args)
            if finding and finding not in self.seen and len(self.seen) < MAX_NOTICES:
                self.seen.add(finding)
                _write(self.notices, finding.encode("ascii", "replace")[:MAX_TEXT] + b"\n")
        except Exception:  # a tripwire that fails must not disturb an honest call
            return
        finally:
            self.busy = False

    def path(self, event: str, args: tuple[Any, ...]) -> str | None:
        path = args[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return None
        path = "/" + os.path.abspath("".join([path])).lstrip("/")
        if path in HARMLESS_FILES or (path + "/").startswith(OWN_FOLDERS):
            return None
        if any(_names(given, path) for given in self.inputs) or self._called_by(CURIOUS_LIBRARIES):
            return None
        return "file: reached for " + path

    def new_socket(self, event: str, args: tuple[Any, ...]) -> str | None:
        frame = _getframe(2)
        if frame.f_code.co_name == "__init__" and frame.f_locals.get("fileno") is not None:
            return None  # socketpair() wrapping a descriptor it already has
        return "socket: tried to open a socket"

    def network(self, event: str, args: tuple[Any, ...]) -> str | None:
        return "socket: tried " + event

    def heap(self, event: str, args: tuple[Any, ...]) -> str | None:
        inside_library = _getframe(2).f_code.co_filename.startswith(STDLIB)
        return None if inside_library else "memory: searched it with " + event

    def symbol(self, event: str, args: tuple[Any, ...]) -> str | None:
        name = args[1]
        return "system call: looked up " + name + "() in the C library" if name in DANGEROUS_SYMBOLS else None

    def limits(self, event: str, args: tuple[Any, ...]) -> str | None:
        return "process: tried to limit process 1" if args[0] == 1 else None

    def kill(self, event: str, args: tuple[Any, ...]) -> str | None:
        return f"process: tried to signal process {args[0]}" if args[0] in (-1, 1) else None

    def _called_by(self, files: frozenset[str]) -> bool:
        frame, left = _getframe(3), 20
        while frame is not None and left:
            if frame.f_code.co_filename in files:
                return True
            frame, left = frame.f_back, left - 1  # type: ignore[assignment]
        return False


CHECKS: dict[str, Callable[[Tripwires, str, tuple[Any, ...]], str | None]] = {
    **dict.fromkeys(PATH_EVENTS, Tripwires.path),
    **dict.fromkeys(SOCKET_EVENTS, Tripwires.network),
    **dict.fromkeys(HEAP_EVENTS, Tripwires.heap),
    "socket.__new__": Tripwires.new_socket,
    "ctypes.dlsym": Tripwires.symbol,
    "resource.prlimit": Tripwires.limits,
    "os.kill": Tripwires.kill,
    "os.killpg": Tripwires.kill,
}
REPLACEABLE = ("dumps", "loads", "dump", "load")


def install(notices: int, inputs: Any) -> None:
    """Watch this process from now on; it cannot be undone."""
    sys.addaudithook(Tripwires(notices, frozenset(strings_in(inputs, set()))))


def report_tampering(notices: int) -> None:
    """Report what of json the implementation replaced, if anything."""
    found = _tampering()
    if found:
        _write(notices, found.encode() + b"\n")


def _tampering() -> str | None:
    json = sys.modules.get("json")
    if json is None:
        return None
    for name in REPLACEABLE:
        try:
            file = getattr(json, name).__code__.co_filename
        except AttributeError:
            file = ""
        if not file.startswith((STDLIB, "<frozen")):
            return "tampering: replaced json." + name
    return None


def _names(given: str, path: str) -> bool:
    """Whether an input names this path: reaching for it is then what was asked."""
    return path.endswith("/" + given) or ("/" in given and given in path)


def strings_in(value: Any, found: set[str]) -> set[str]:
    """Every string of two characters and more in the inputs: paths among them are no secret."""
    if isinstance(value, str) and len(value) > 1:
        found.add(value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            strings_in(item, found)
    elif isinstance(value, dict):
        for key, item in value.items():
            strings_in(key, found)
            strings_in(item, found)
    return found

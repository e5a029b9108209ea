"""Audit hook that reports what no honest implementation does, at the moment it happens.

Standard library only: sent into the sandbox and installed, in the process of each case, before the
implementation is imported. The hook enforces nothing (the sandbox does) and an implementation may bypass
it; it only names what would otherwise look like an ordinary error or pass unnoticed. (J2)
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
MAX_VIOLATIONS = 20
STDLIB = os.path.dirname(os.__file__) + "/"

PATH_EVENTS = ("open", "os.listdir", "os.scandir", "os.chdir", "os.symlink", "os.link")
SOCKET_EVENTS = (
    *("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
)
HEAP_SEARCH_EVENTS = ("gc.get_objects", "gc.get_referrers", "sys._current_frames")
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
# Modules that look for system files on their own and work without them.
_LIBRARIES = """
    mimetypes.py platform.py gettext.py locale.py sysconfig.py subprocess.py ssl.py uuid.py webbrowser.py
    zoneinfo/_common.py zoneinfo/_tzpath.py zoneinfo/__init__.py ctypes/util.py
    """
INTROSPECTION_MODULES = frozenset(STDLIB + name for name in _LIBRARIES.split())


class AuditHook:
    """Reports host files, sockets and heap searches, one line each on a pipe."""

    def __init__(self, violations_fd: int, inputs: frozenset[str]) -> None:
        self.violations_fd = violations_fd
        self.inputs = inputs
        self.reported: set[str] = set()
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        check = CHECKS.get(event)
        if check is None or self.busy:
            return
        self.busy = True
        try:
            violation = check(self, event, args)
            if violation and violation not in self.reported and len(self.reported) < MAX_VIOLATIONS:
                self.reported.add(violation)
                _write(self.violations_fd, violation.encode("ascii", "replace")[:MAX_TEXT] + b"\n")
        except Exception:  # a hook that fails must not disturb an honest call
            return
        finally:
            self.busy = False

    def path(self, event: str, args: tuple[Any, ...]) -> str | None:
        path = args[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return None
        # A copy: a subclass of str may redefine the methods used below.
        path = "/" + os.path.abspath("".join([path])).lstrip("/")
        if path in HARMLESS_FILES or (path + "/").startswith(OWN_FOLDERS):
            return None
        # An input may name this path: opening it is then what the case asks for.
        is_input = any(path.endswith("/" + text) or ("/" in text and text in path) for text in self.inputs)
        if is_input or self._called_by(INTROSPECTION_MODULES):
            return None
        return "file: accessed " + path

    def new_socket(self, event: str, args: tuple[Any, ...]) -> str | None:
        frame = _getframe(2)
        if frame.f_code.co_name == "__init__" and frame.f_locals.get("fileno") is not None:
            return None  # socketpair() wraps a descriptor that it already has
        return "socket: tried to open a socket"

    def _called_by(self, files: frozenset[str]) -> bool:
        frame, remaining = _getframe(3), 20
        while frame is not None and remaining:
            if frame.f_code.co_filename in files:
                return True
            frame, remaining = frame.f_back, remaining - 1  # type: ignore[assignment]
        return False


CHECKS: dict[str, Callable[[AuditHook, str, tuple[Any, ...]], str | None]] = {
    **dict.fromkeys(PATH_EVENTS, AuditHook.path),
    **dict.fromkeys(SOCKET_EVENTS, lambda hook, event, args: "socket: tried " + event),
    **dict.fromkeys(
        HEAP_SEARCH_EVENTS,
        lambda hook, event, args: (
            None
            if _getframe(2).f_code.co_filename.startswith(STDLIB)
            else "memory: searched it with " + event
        ),
    ),
    **dict.fromkeys(
        ("os.kill", "os.killpg"),
        lambda hook, event, args: (
            f"process: tried to signal process {args[0]}" if args[0] in (-1, 1) else None
        ),
    ),
    "socket.__new__": AuditHook.new_socket,
    "ctypes.dlsym": lambda hook, event, args: (
        f"system call: looked up {args[1]}() in the C library" if args[1] in DANGEROUS_SYMBOLS else None
    ),
    "resource.prlimit": lambda hook, event, args: (
        "process: tried to limit process 1" if args[0] == 1 else None
    ),
}


def install(violations_fd: int, inputs: Any) -> None:
    """Install the hook in this process; it cannot be removed again."""
    sys.addaudithook(AuditHook(violations_fd, frozenset(collect_strings(inputs, set()))))


def report_tampering(violations_fd: int) -> None:
    """Report the first function of json that the implementation replaced, if any."""
    json = sys.modules.get("json")
    for name in ("dumps", "loads", "dump", "load") if json is not None else ():
        try:
            file = getattr(json, name).__code__.co_filename
        except AttributeError:
            file = ""
        if not file.startswith((STDLIB, "<frozen")):
            _write(violations_fd, f"tampering: replaced json.{name}\n".encode())
            return


def collect_strings(value: Any, strings: set[str]) -> set[str]:
    """Collect every string of two characters and more in the inputs: a path among them may be opened."""
    if isinstance(value, str) and len(value) > 1:
        strings.add(value)
    elif isinstance(value, dict):
        collect_strings([*value, *value.values()], strings)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            collect_strings(item, strings)
    return strings

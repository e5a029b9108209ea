"""Audit hook that reports what no honest implementation does, at the moment it happens.

Standard library only: sent into the sandbox and installed, in the process of each case, before the
implementation is imported. The hook enforces nothing (the sandbox does) and an implementation may bypass
it; it only names what would otherwise look like an ordinary error or pass unnoticed. (J2)
"""

from __future__ import annotations

import io
import marshal
import os
import sys

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_write = os.write
_getframe = sys._getframe
_loads = marshal.loads

MAX_TEXT = 300
MAX_VIOLATIONS = 20
STDLIB = os.path.dirname(os.__file__) + "/"

FOLDER_EVENTS = ("os.listdir", "os.scandir", "os.chdir")
PATH_EVENTS = ("open", *FOLDER_EVENTS, "os.symlink", "os.link")
SOCKET_EVENTS = ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUP_EVENTS = (
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
)
# Names of this machine or of a network without an outside: honest code looks them up and has a default.
LOCAL_DOMAINS = (
    ".localhost",
    ".local",
    ".localdomain",
    ".internal",
    ".invalid",
    ".test",
    ".lan",
    ".home.arpa",
)
LOCAL_ADDRESSES = ("127.", "0.0.0.0", "::")
HEAP_SEARCH_EVENTS = ("gc.get_objects", "gc.get_referrers", "sys._current_frames")
_SYMBOLS = """
    socket connect syscall ptrace mount unshare setns process_vm_readv process_vm_writev kill keyctl bpf prctl
    pidfd_getfd environ getenv
    """
DANGEROUS_SYMBOLS = frozenset(_SYMBOLS.split())
# What people and the system keep to themselves. Any other path is one that is not there: honest code looks
# for its configuration and writes its log at fixed places, and goes on without them.
_FOLDERS = """
    /root /home /srv /boot /proc /sys /etc/ssh /etc/ssl/private /etc/pam.d /etc/security /etc/sudoers.d
    /etc/cron.d /etc/apt /etc/systemd /etc/docker /etc/kubernetes /run/secrets /var/run/secrets /var/spool
    /var/mail /var/backups /var/lib/postgresql /var/lib/mysql /var/lib/docker /var/lib/dpkg /run/postgresql
    /var/run/postgresql
    """
PRIVATE_FOLDERS = tuple(name + "/" for name in _FOLDERS.split())
_SYSTEM_FILES = """
    passwd passwd- shadow shadow- group group- gshadow gshadow- subuid subgid sudoers hosts hostname
    resolv.conf nsswitch.conf host.conf ld.so.conf ld.so.cache ld.so.preload fstab mtab crontab machine-id
    shells login.defs environment profile issue debian_version services protocols exports krb5.keytab
    """
SYSTEM_FILES = frozenset("/etc/" + name for name in _SYSTEM_FILES.split())
_SECRETS = """
    .ssh .aws .azure .gnupg .kube .docker .pgpass .netrc .git-credentials .bash_history authorized_keys
    id_rsa id_ed25519 docker.sock .env
    """
SECRET_NAMES = frozenset(_SECRETS.split())
# Listing one of these is a look around; a program's own folder below them is one that is not there.
_SYSTEM_FOLDERS = """
    / /etc /var /var/lib /var/log /var/run /var/cache /var/tmp /opt /mnt /media /run /bin /sbin
    """
SYSTEM_FOLDERS = frozenset(_SYSTEM_FOLDERS.split())
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

    def __init__(self, violations_fd: int, packed_plan: bytes, files: dict[str, str] | None) -> None:
        self.violations_fd = violations_fd
        self.packed_plan, self.files = packed_plan, files
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
        if not is_private(path, event in FOLDER_EVENTS):
            return None
        if self._is_input(path) or self._called_by(INTROSPECTION_MODULES):
            return None
        return "file: accessed " + path

    def _is_input(self, path: str) -> bool:
        """Whether an input names this path: opening it is then what the case asks for."""
        # Unpacked again: the implementation may have changed the objects that it was called with.
        inputs = collect_strings((_loads(self.packed_plan)[2:], self.files), set())
        return any(path.endswith("/" + text) or ("/" in text and text in path) for text in inputs)

    def lookup(self, event: str, args: tuple[Any, ...]) -> str | None:
        host = args[0][0] if isinstance(args[0], tuple) else args[0]
        if isinstance(host, (bytes, bytearray)):
            host = host.decode("ascii", "replace")
        if host is None or (isinstance(host, str) and is_local("".join([host]))):
            return None
        return "socket: tried " + event

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


def is_private(path: str, listed: bool) -> bool:
    """Whether no honest program looks there; ``listed``: it lists the folder."""
    return (
        (path + "/").startswith(PRIVATE_FOLDERS)
        or path in SYSTEM_FILES
        or (listed and path in SYSTEM_FOLDERS)
        or not SECRET_NAMES.isdisjoint(path.split("/"))
    )


def is_local(host: str) -> bool:
    """Whether a host name or address leads nowhere else."""
    host = host.lower().rstrip(".")
    single = "." not in host and ":" not in host
    return single or host.endswith(LOCAL_DOMAINS) or host.startswith(LOCAL_ADDRESSES)


CHECKS: dict[str, Callable[[AuditHook, str, tuple[Any, ...]], str | None]] = {
    **dict.fromkeys(PATH_EVENTS, AuditHook.path),
    **dict.fromkeys(LOOKUP_EVENTS, AuditHook.lookup),
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


def install(violations_fd: int, packed_plan: bytes, files: dict[str, str] | None) -> None:
    """Install the hook in this process, by the inputs of its case; it cannot be removed again."""
    sys.addaudithook(AuditHook(violations_fd, packed_plan, files))


def report_tampering(violations_fd: int) -> None:
    """Report the first function of json that was replaced by one that does not work like it."""
    json = sys.modules.get("json")
    for name in ("dumps", "loads", "dump", "load") if json is not None else ():
        try:
            if getattr(json, name).__code__.co_filename.startswith((STDLIB, "<frozen")):
                continue
        except AttributeError:
            pass
        if not _works_like_json(json, name):
            _write(violations_fd, f"tampering: replaced json.{name}\n".encode())
            return


def _works_like_json(json: Any, name: str) -> bool:
    """Whether a function converts a sample as json does, whatever spaces and options it adds."""
    text, value = '[1,"a",null]', [1, "a", None]
    file = io.StringIO(text if name == "load" else "")
    arguments = {"dumps": (value,), "dump": (value, file), "loads": (text,), "load": (file,)}
    try:
        result = getattr(json, name)(*arguments[name])
        if name in ("loads", "load"):
            return type(result) is list and bool(result == value)
        return "".join((result if name == "dumps" else file.getvalue()).split()) == text
    except BaseException:
        return False


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

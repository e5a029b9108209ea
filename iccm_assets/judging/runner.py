"""One case in its own process: run the implementation, send back what it did (J1).

Standard library only, no import of this package: the code is sent into the sandbox as is and runs after
``driver.py`` forked. It shares its process with the implementation, so nothing here is trusted. It knows
no expected value; whatever an implementation makes it send is just that implementation's answer. The care
taken here (own copies of builtins, no method of a foreign object called) keeps *honest* answers right when
an implementation redefines things, and names what a dishonest one does.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from _json import encode_basestring_ascii

_write = os.write
_exit = os._exit
_getpid = os.getpid
_getframe = sys._getframe

MODULE = "implementation"
FILENAME = "implementation.py"
MAX_DEPTH = 100
MAX_TEXT = 300
MAX_NOTICES = 20

STDLIB = os.path.dirname(os.__file__) + "/"


class TooLarge(Exception):
    """The answer is larger than an answer may be."""


class TooDeep(Exception):
    """The answer is nested deeper than a tree may be, or contains itself."""


# ---- the answer ----------------------------------------------------------------------------------


class Encoder:
    """Writes values as JSON trees (see ``values.py``), by exact type, up to ``limit`` characters."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def tree(self, value: Any, depth: int = 0) -> str:
        kind = type(value)
        if value is None:
            return self._took('["n"]')
        if kind is bool:
            return self._took('["b",1]' if value else '["b",0]')
        if kind is int:
            return self._took('["i","' + (f"{value:x}") + '"]')
        if kind is float:
            return self._took('["f","' + value.hex() + '"]')
        if kind is str:
            return self._took('["s",' + encode_basestring_ascii(value) + "]")
        if kind is bytes:
            return self._took('["y","' + value.hex() + '"]')
        return self._container(kind, value, depth)

    def _container(self, kind: type, value: Any, depth: int) -> str:
        if depth >= MAX_DEPTH:
            raise TooDeep
        if kind is dict or _is_plain_dict(kind):
            pairs = [
                "[" + self.tree(key, depth + 1) + "," + self.tree(item, depth + 1) + "]"
                for key, item in dict.items(value)
            ]
            return self._took('["d",[' + ",".join(pairs) + "]]")
        for name, builtin in (("l", list), ("t", tuple), ("S", set), ("F", frozenset)):
            if kind is builtin or (builtin is tuple and _is_named_tuple(kind)):
                items = ",".join([self.tree(item, depth + 1) for item in builtin.__iter__(value)])
                return self._took('["' + name + '",[' + items + "]]")
        own_equality = "__eq__" in _namespace(kind)
        return self._took('["u",' + text(_name(kind)) + (",1]" if own_equality else ",0]"))

    def _took(self, piece: str) -> str:
        self.left -= len(piece)
        if self.left < 0:
            raise TooLarge
        return piece


def _is_plain_dict(kind: type) -> bool:
    """The standard library's dicts, which honest code returns where a dict is expected."""
    collections = sys.modules.get("collections")
    names = ("OrderedDict", "defaultdict", "Counter")
    return collections is not None and any(kind is getattr(collections, name, None) for name in names)


def _is_named_tuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and "_fields" in _namespace(kind) and kind.__eq__ is tuple.__eq__


def _namespace(kind: type) -> Any:
    return type.__dict__["__dict__"].__get__(kind)


def _name(kind: type) -> str:
    name = type.__dict__["__name__"].__get__(kind)
    return name if type(name) is str else "?"


def text(value: str) -> str:
    """A JSON string of at most ``MAX_TEXT`` characters."""
    return encode_basestring_ascii(value[:MAX_TEXT])


BUILTIN_EXCEPTIONS = frozenset(
    id(item)
    for item in vars(sys.modules["builtins"]).values()
    if isinstance(item, type) and issubclass(item, BaseException)
)


def describe(error: BaseException) -> str:
    """An exception as JSON: ``["r", [[class name, is it Python's own], …], message, line]``."""
    classes = type.__dict__["__mro__"].__get__(type(error))
    names = ",".join(
        "[" + text(_name(kind)) + (",1]" if id(kind) in BUILTIN_EXCEPTIONS else ",0]")
        for kind in classes[:50]
    )
    try:
        message = str(error)
    except Exception:  # a message that cannot be made is no message
        message = ""
    return '["r",[' + names + "]," + text(message) + "," + f"{_line(error)}" + "]"


def _line(error: BaseException) -> int:
    """The last line of the implementation that the exception passed, 0 if none."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def call(function: Callable[..., Any], args: Any, kwargs: Any, encoder: Encoder) -> tuple[str, Any]:
    """Call and describe the outcome: ``["v", tree]`` or ``["r", …]``; also the value itself."""
    try:
        value = function(*args, **kwargs)
        return '["v",' + encoder.tree(value) + "]", value
    except (TooLarge, TooDeep):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt are outcomes too
        return describe(error), None


def perform(plan: tuple[Any, ...], module: ModuleType, encoder: Encoder) -> str:
    """Carry a plan out and return the JSON of what happened."""
    name, args, kwargs = plan[1:4]
    try:
        target = find(module, name)
    except AttributeError:
        return '["m",' + text(name) + "]"
    if plan[0] == "call":
        return call(target, args, kwargs, encoder)[0]
    try:
        instance = target(*args, **kwargs)
    except BaseException as error:
        return '["o",' + describe(error) + ",[]]"
    outcomes = [call_method(instance, *step, encoder) for step in plan[4]]
    return '["o",null,[' + ",".join(outcomes) + "]]"


def call_method(instance: Any, name: str, args: Any, kwargs: Any, encoder: Encoder) -> str:
    try:
        method = find(instance, name)
    except AttributeError:
        return '["m",' + text(name) + "]"
    except BaseException as error:
        return describe(error)
    return call(method, args, kwargs, encoder)[0]


def find(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


# ---- tripwires -----------------------------------------------------------------------------------

SOCKET_EVENTS = frozenset(
    ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
    + ("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
)
PATH_EVENTS = frozenset(("open", "os.listdir", "os.scandir", "os.chdir", "os.symlink", "os.link"))
HEAP_EVENTS = frozenset(("gc.get_objects", "gc.get_referrers", "sys._current_frames"))
DANGEROUS_SYMBOLS = frozenset(
    (
        "socket",
        "connect",
        "syscall",
        "ptrace",
        "mount",
        "unshare",
        "setns",
        "process_vm_readv",
        "process_vm_writev",
    )
    + ("kill", "keyctl", "bpf", "prctl", "pidfd_getfd", "environ", "getenv")
)
OWN_PLACES = ("/tmp", "/usr", "/lib", "/lib64", "/dev", sys.base_prefix, sys.prefix)
HARMLESS_FILES = frozenset(
    (
        "/etc/localtime",
        "/etc/timezone",
        "/etc/mime.types",
        "/etc/os-release",
        "/proc/cpuinfo",
        "/proc/meminfo",
    )
    + (
        "/proc/loadavg",
        "/proc/uptime",
        "/proc/version",
        "/proc/self/fd",
        "/proc/self/status",
        "/proc/self/stat",
    )
)
# These look for system files by themselves, and do without.
CURIOUS_LIBRARIES = frozenset(
    STDLIB + name
    for name in (
        "mimetypes.py",
        "platform.py",
        "gettext.py",
        "locale.py",
        "sysconfig.py",
        "subprocess.py",
        "ssl.py",
    )
    + (
        "zoneinfo/_common.py",
        "zoneinfo/_tzpath.py",
        "zoneinfo/__init__.py",
        "ctypes/util.py",
        "uuid.py",
        "webbrowser.py",
    )
)


class Tripwires:
    """An audit hook that reports what no honest implementation does: host files, sockets, the heap.

    It enforces nothing (the sandbox does) and an implementation may get round it; it only gives a name to
    what would otherwise look like an ordinary error.
    """

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
        path = os.path.abspath("".join([path]))
        if (
            path in HARMLESS_FILES
            or path.startswith(tuple(place + "/" for place in OWN_PLACES))
            or path in OWN_PLACES
        ):
            return None
        if any(given in path for given in self.inputs) or self._called_by(CURIOUS_LIBRARIES):
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
        return (
            None
            if _getframe(2).f_code.co_filename.startswith(STDLIB)
            else "memory: searched it with " + event
        )

    def symbol(self, event: str, args: tuple[Any, ...]) -> str | None:
        name = args[1]
        return "system call: looked up " + name + "() in the C library" if name in DANGEROUS_SYMBOLS else None

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
    "os.kill": Tripwires.kill,
    "os.killpg": Tripwires.kill,
}
REPLACEABLE = ("dumps", "loads", "dump", "load")


def tampering() -> str | None:
    """What of json the implementation replaced, if anything."""
    json = sys.modules.get("json")
    if json is None:
        return None
    for name in REPLACEABLE:
        code = getattr(getattr(json, name, None), "__code__", None)
        if code is None or not code.co_filename.startswith((STDLIB, "<frozen")):
            return "tampering: replaced json." + name
    return None


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


# ---- the process ---------------------------------------------------------------------------------


def limit_process(limits: dict[str, int]) -> None:
    """Per-process limits; what all processes take together is watched from outside."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value + 1 if name == "RLIMIT_CPU" and hard < 0 else value))


def run(
    source: str, plan: tuple[Any, ...], nonce: bytes, answers: int, notices: int, limits: dict[str, Any]
) -> NoReturn:
    """Import the implementation, carry the plan out, send one answer, leave. Never returns."""
    owner = _getpid()
    limit_process(limits["process"])
    sys.addaudithook(Tripwires(notices, frozenset(strings_in(plan[2:], set()))))
    encoder = Encoder(limits["answer"])
    try:
        answer = _answer(source, plan, encoder, notices)
    except TooLarge:
        answer = '["large"]'
    except TooDeep:
        answer = '["deep"]'
    except BaseException as error:  # our own failure under patched builtins or no memory
        answer = describe(error)
    if _getpid() != owner:
        _exit(0)  # a child the implementation forked and let run on: its parent answers
    found = tampering()
    if found:
        _write(notices, found.encode() + b"\n")
    _send(answers, nonce, answer.encode("ascii"))
    _exit(0)


def _answer(source: str, plan: tuple[Any, ...], encoder: Encoder, notices: int) -> str:
    module = ModuleType(MODULE)
    module.__file__ = FILENAME
    sys.modules[MODULE] = module
    try:
        exec(compile(source, FILENAME, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return '["e",' + describe(error) + "]"
    _write(notices, b"imported\n")
    return perform(plan, module, encoder)


def _send(answers: int, nonce: bytes, payload: bytes) -> None:
    frame = nonce + len(payload).to_bytes(4, "big") + payload
    while frame:
        frame = frame[_write(answers, frame) :]

"""Run one case in its own process and send the answer back.

Standard library only, no import of this package: the code is sent into the sandbox as is and runs after
``init_process.py`` forked. It shares its process with the implementation, so nothing here is trusted. It has
no expected value; anything that an implementation makes it send is only that implementation's answer. Copies
of builtins, and no calls of foreign objects' methods, keep *honest* answers right when an implementation
redefines things, and give a name to what a dishonest one does. (J1)
"""

from __future__ import annotations

import os
import resource
import sys
from _json import encode_basestring_ascii
from types import FunctionType, ModuleType

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from typing import Any, NoReturn

_write = os.write
_exit = os._exit
_getpid = os.getpid

MODULE = "implementation"
FILENAME = "implementation.py"
# Of the standard library and, for dataclasses, of code that it makes.
STANDARD_FILES = (os.path.dirname(os.__file__) + "/", "<frozen", "<string>")
NATIVE_METHOD, MAPPING_PROXY = type(object.__eq__), type(type.__dict__)
MAX_DEPTH = 100
MAX_TEXT = 300
MAX_CLASSES = 200


class AnswerTooLargeError(Exception):
    """The answer is larger than an answer may be."""


class NestingTooDeepError(Exception):
    """The answer is nested deeper than an encoded value may be, or contains itself."""


# ---- the answer ----------------------------------------------------------------------------------


# Lists, not dicts by type: a type's own metaclass may redefine its hash and equality.
_SCALARS = (
    (type(None), lambda value: '["n"]'),
    (bool, lambda value: '["b",1]' if value else '["b",0]'),
    (int, lambda value: '["i","' + f"{value:x}" + '"]'),
    (float, lambda value: '["f","' + value.hex() + '"]'),
    (str, lambda value: '["s",' + encode_basestring_ascii(value) + "]"),
    (bytes, lambda value: '["y","' + value.hex() + '"]'),
)
_SEQUENCES = (("l", list), ("t", tuple), ("S", set), ("F", frozenset))


class Encoder:
    """Encode values as JSON (see ``suite_values.py``), by exact type, up to ``limit`` characters."""

    def __init__(self, limit: int) -> None:
        self.remaining = limit

    def encode(self, value: Any, depth: int = 0) -> str:
        kind = type(value)
        for scalar, encode in _SCALARS:
            if kind is scalar:
                return self._count(encode(value))
        return self._encode_container(kind, value, depth)

    def _encode_container(self, kind: type, value: Any, depth: int) -> str:
        if depth >= MAX_DEPTH:
            raise NestingTooDeepError
        if _is_plain_dict(kind):
            pairs = [
                "[" + self.encode(key, depth + 1) + "," + self.encode(item, depth + 1) + "]"
                for key, item in dict.items(value)
            ]
            return self._count('["d",[' + ",".join(pairs) + "]]")
        for name, builtin in _SEQUENCES:
            if kind is builtin or (builtin is tuple and _is_named_tuple(kind)):
                items = ",".join([self.encode(item, depth + 1) for item in builtin.__iter__(value)])
                return self._count('["' + name + '",[' + items + "]]")
        if kind is MAPPING_PROXY:
            copy = kind.copy(value)
            if _is_plain_dict(type(copy)):
                return self._encode_container(type(copy), copy, depth + 1)
        own_equality = _has_own_equality(kind)
        return self._count('["u",' + encode_text(_class_name(kind)) + (",1]" if own_equality else ",0]"))

    def _count(self, piece: str) -> str:
        self.remaining -= len(piece)
        if self.remaining < 0:
            raise AnswerTooLargeError
        return piece


def _is_plain_dict(kind: type) -> bool:
    """A dict, or one of the standard library's, which honest code returns where a dict is expected."""
    if kind is dict:
        return True
    collections = sys.modules.get("collections")
    names = ("OrderedDict", "defaultdict", "Counter")
    return collections is not None and any(kind is getattr(collections, name, None) for name in names)


def _is_named_tuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and "_fields" in _class_dict(kind) and "__eq__" not in _class_dict(kind)


def _has_own_equality(kind: type) -> bool:
    """Whether the implementation defines when such objects are equal, and not the standard library."""
    classes = type.__dict__["__mro__"].__get__(kind)
    methods = [_class_dict(owner)["__eq__"] for owner in classes if "__eq__" in _class_dict(owner)]
    return any(
        type(method) is not NATIVE_METHOD
        and not (type(method) is FunctionType and method.__code__.co_filename.startswith(STANDARD_FILES))
        for method in methods
    )


def _class_dict(kind: type) -> Any:
    return type.__dict__["__dict__"].__get__(kind)


def _class_name(kind: type) -> str:
    name = type.__dict__["__name__"].__get__(kind)
    return name if type(name) is str else "?"


def encode_text(value: str) -> str:
    """Encode a JSON string of at most ``MAX_TEXT`` characters."""
    return encode_basestring_ascii(value[:MAX_TEXT])


BUILTIN_EXCEPTIONS = frozenset(
    id(item)
    for item in vars(sys.modules["builtins"]).values()
    if isinstance(item, type) and issubclass(item, BaseException)
)


def encode_exception(error: BaseException) -> str:
    """Encode an exception: ``["r", [[class name, is it Python's own], …], message, line]``."""
    classes = type.__dict__["__mro__"].__get__(type(error))
    names = ",".join(
        "[" + encode_text(_class_name(kind)) + (",1]" if id(kind) in BUILTIN_EXCEPTIONS else ",0]")
        for kind in classes[:MAX_CLASSES]
    )
    try:
        message = str(error)
    except Exception:  # its __str__ fails
        message = ""
    return '["r",[' + names + "]," + encode_text(message) + "," + f"{_last_line(error)}" + "]"


def _last_line(error: BaseException) -> int:
    """The last line of the implementation that the exception passed, 0 if none."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def call(owner: Any, name: str, args: Any, kwargs: Any, encoder: Encoder) -> str:
    """Call and encode the outcome: ``["v", value]``, ``["r", …]``, or ``["m", name]`` where it is missing."""
    try:
        function = lookup(owner, name)
    except AttributeError:
        return '["m",' + encode_text(name) + "]"
    except BaseException as error:
        return encode_exception(error)
    try:
        return '["v",' + encoder.encode(function(*args, **kwargs)) + "]"
    except (AnswerTooLargeError, NestingTooDeepError):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt are outcomes too
        return encode_exception(error)


def execute_case(plan: tuple[Any, ...], module: ModuleType, encoder: Encoder) -> str:
    """Execute a plan and encode the outcome."""
    name, args, kwargs = plan[1:4]
    if plan[0] == "call":
        return call(module, name, args, kwargs, encoder)
    try:
        target = lookup(module, name)
    except AttributeError:
        return '["m",' + encode_text(name) + "]"
    try:
        instance = target(*args, **kwargs)
    except BaseException as error:
        return '["o",' + encode_exception(error) + ",[]]"
    return (
        '["o",null,['
        + ",".join([call(instance, method, args, kwargs, encoder) for method, args, kwargs in plan[4]])
        + "]]"
    )


def lookup(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


# ---- the process ---------------------------------------------------------------------------------


def limit_process(limits: dict[str, int]) -> None:
    """Set the limits of this process; the total of all processes is sampled from outside."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value + 1 if name == "RLIMIT_CPU" and hard < 0 else value))


def run(
    source: str,
    plan: tuple[Any, ...],
    nonce: bytes,
    answer_fd: int,
    violations_fd: int,
    limits: dict[str, Any],
    context: dict[str, Any],
) -> NoReturn:
    """Import the implementation, execute the plan, send one answer, exit. Never returns."""
    owner = _getpid()
    limit_process(limits["process"])
    context["audit_hooks"].install(violations_fd, plan[2:])
    try:
        if plan[0] == "test":
            _write(violations_fd, b"imported\n")
            answer = _run_test(source, plan, context)
        else:
            answer = _import_and_execute(source, plan, Encoder(limits["answer"]), violations_fd)
    except AnswerTooLargeError:
        answer = '["large"]'
    except NestingTooDeepError:
        answer = '["deep"]'
    except BaseException as error:  # this module failed, under patched builtins or without memory
        answer = encode_exception(error)
    if _getpid() != owner:
        _exit(0)  # a child that the implementation forked and did not end: its parent answers
    context["audit_hooks"].report_tampering(violations_fd)
    payload = answer.encode("ascii")
    frame = nonce + len(payload).to_bytes(4, "big") + payload
    while frame:
        frame = frame[_write(answer_fd, frame) :]
    _exit(0)


def _import_and_execute(source: str, plan: tuple[Any, ...], encoder: Encoder, violations_fd: int) -> str:
    module = ModuleType(MODULE)
    module.__file__ = FILENAME
    sys.modules[MODULE] = module
    try:
        code = compile(source.removeprefix("\ufeff"), FILENAME, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        return '["e",' + encode_exception(error) + "]"
    _write(violations_fd, b"imported\n")
    return execute_case(plan, module, encoder)


def _run_test(source: str, plan: tuple[Any, ...], context: dict[str, Any]) -> str:
    try:
        answer: str = context["pytest_runner"].run_test(source, *plan[1:], encode_text)
    except BaseException as error:  # pytest itself failed, or was made to fail
        return '["e",' + encode_exception(error) + "]"
    return answer

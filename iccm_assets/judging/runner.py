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
from _json import encode_basestring_ascii
from types import ModuleType

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_write = os.write
_exit = os._exit
_getpid = os.getpid

MODULE = "implementation"
FILENAME = "implementation.py"
MAX_DEPTH = 100
MAX_TEXT = 300


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
    return kind.__bases__ == (tuple,) and "_fields" in _namespace(kind) and "__eq__" not in _namespace(kind)


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
    outcomes = [call_method(instance, step, encoder) for step in plan[4]]
    return '["o",null,[' + ",".join(outcomes) + "]]"


def call_method(instance: Any, step: tuple[str, Any, Any], encoder: Encoder) -> str:
    name, args, kwargs = step
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
    source: str,
    plan: tuple[Any, ...],
    nonce: bytes,
    answers: int,
    notices: int,
    limits: dict[str, Any],
    made: dict[str, Any],
) -> NoReturn:
    """Import the implementation, carry the plan out, send one answer, leave. Never returns."""
    owner = _getpid()
    limit_process(limits["process"])
    tripwires = made["tripwires"]
    tripwires.install(notices, plan[2:])
    encoder = Encoder(limits["answer"])
    try:
        if plan[0] == "test":
            _write(notices, b"imported\n")
            answer = _tested(source, plan, made)
        else:
            answer = _answer(source, plan, encoder, notices)
    except TooLarge:
        answer = '["large"]'
    except TooDeep:
        answer = '["deep"]'
    except BaseException as error:  # our own failure under patched builtins or no memory
        answer = describe(error)
    if _getpid() != owner:
        _exit(0)  # a child the implementation forked and let run on: its parent answers
    tripwires.report_tampering(notices)
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


def _tested(source: str, plan: tuple[Any, ...], made: dict[str, Any]) -> str:
    try:
        answer: str = made["pytest_cases"].run(source, *plan[1:], text)
    except BaseException as error:  # pytest itself failed, or was made to
        return '["e",' + describe(error) + "]"
    return answer


def _send(answers: int, nonce: bytes, payload: bytes) -> None:
    frame = nonce + len(payload).to_bytes(4, "big") + payload
    while frame:
        frame = frame[_write(answers, frame) :]

"""Run one case in its own process and send the answer back.

Standard library only, no import of this package: the code is sent into the sandbox as is and runs after
``init_process.py`` forked. It shares its process with the implementation, so nothing here is trusted. It has
no expected value; anything that an implementation makes it send is only that implementation's answer. Copies
of builtins, and no calls of foreign objects' methods, keep *honest* answers right when an implementation
redefines things, and give a name to what a dishonest one does. (J1)
"""

from __future__ import annotations

import marshal
import os
import resource
import sys
from _json import encode_basestring_ascii
from types import FunctionType, ModuleType, SimpleNamespace

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from typing import Any, NoReturn

_write = os.write
_exit = os._exit
_getpid = os.getpid

MODULE = "implementation"
own_modules = {MODULE}  # and those of its files, where it has several
FILENAME = "implementation.py"
# Of the standard library and, for dataclasses, of code that it makes.
STANDARD_FILES = (os.path.dirname(os.__file__) + "/", "<frozen", "<string>")
NATIVE_METHOD, MAPPING_PROXY = type(object.__eq__), type(type.__dict__)
MAX_DEPTH = 100
MAX_TEXT = 300
MAX_CLASSES = 200
MAX_ITERATED = 100  # items of an iterator that an answer tells


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
    (complex, lambda value: '["c",["' + value.real.hex() + '","' + value.imag.hex() + '"]]'),
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

    def encode_arguments(self, args: Any) -> str:
        """Encode arguments and, where there are any, the shared values that they may refer to."""
        items = [self.encode(item) for item in args]
        if shared_values:
            pairs = [
                '[["s",' + encode_text(name) + "]," + self._encode_content(type(value), value, 0) + "]"
                for name, value in shared_values.items()
            ]
            items.append('["d",[' + ",".join(pairs) + "]]")
        return "[" + ",".join(items) + "]"

    def _encode_container(self, kind: type, value: Any, depth: int) -> str:
        for name in shared_values:  # by name: they may refer to themselves
            if shared_values[name] is value:
                return self._count('["R",' + encode_text(name) + "]")
        return self._encode_content(kind, value, depth)

    def _encode_content(self, kind: type, value: Any, depth: int) -> str:
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
        if _is_iterator(kind):
            return self._encode_iterator(value, depth)
        if kind is MAPPING_PROXY:
            copy = kind.copy(value)
            if _is_plain_dict(type(copy)):
                return self._encode_container(type(copy), copy, depth + 1)
        if _is_numpy(kind):  # as the Python value that it is equal to
            return self.encode(value.tolist(), depth + 1)
        for function, name in given_functions:
            if value is function:
                return self._count('["P",' + encode_text(name) + "]")
        return self._count(self._encode_object(kind, value, depth))

    def _encode_object(self, kind: type, value: Any, depth: int) -> str:
        own_equality = _has_own_equality(kind)
        described = self._describe(kind, value, depth)
        if described and own_equality and described.startswith('["D"'):
            # By attributes only if they are all there is to it: no number, no metaclass of its own.
            is_plain = _is_plain_class(kind) and not described.endswith(",[]]")
            described = '["Q"' + described[4:] if is_plain else ""
        return described or '["u",' + encode_text(_class_name(kind)) + (",1]" if own_equality else ",0]")

    def _encode_iterator(self, value: Any, depth: int) -> str:
        items: list[str] = []
        for item in value:
            if len(items) >= MAX_ITERATED:
                return self._count('["G",[' + ",".join(items) + "]]")
            items.append(self.encode(item, depth + 1))
        return self._count('["g",[' + ",".join(items) + "]]")

    def _describe(self, kind: type, value: Any, depth: int) -> str:
        """Describe an object of an own class: a member of an enumeration by name, others by attributes."""
        name = encode_text(_class_name(kind))
        enum = sys.modules.get("enum")
        if enum is not None and isinstance(type(kind), type) and issubclass(type(kind), enum.EnumMeta):
            member = object.__getattribute__(value, "_name_")
            return '["E",' + name + "," + encode_text(member) + "]" if type(member) is str else ""
        if kind is not SimpleNamespace and _class_dict(kind).get("__module__") not in own_modules:
            return ""
        values = [
            "[" + encode_text(item) + "," + self.encode(attribute, depth + 1) + "]"
            for item, attribute in _list_attributes(kind, value)
        ]
        return '["D",' + name + ",[" + ",".join(values) + "]]"

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


_ITERATORS: tuple[type, ...] = (
    *(map, filter, zip, enumerate, reversed, range, type(_ for _ in ""), type(iter([])), type(iter(()))),
    *(type(iter("")), type(iter(range(0))), type(iter({})), type(iter(set())), type({}.keys())),
    *(type({}.values()), type({}.items()), type(reversed([])), type(iter({}.items()))),
)


def _is_numpy(kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and (kind is numpy.ndarray or issubclass(kind, numpy.generic))


def _is_iterator(kind: type) -> bool:
    if any(kind is known for known in _ITERATORS):
        return True
    itertools = sys.modules.get("itertools")
    return itertools is not None and any(kind is known for known in vars(itertools).values())


def _list_attributes(kind: type, value: Any) -> list[tuple[str, Any]]:
    """List the public attributes of an object, those in slots included."""
    slots: list[Any] = []
    for owner in type.__dict__["__mro__"].__get__(kind):
        names = _class_dict(owner).get("__slots__", ())
        slots += [names] if type(names) is str else names
    attributes: dict[str, Any] = {}
    for name in slots:
        try:
            attributes[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    try:  # noqa: SIM105 (contextlib would double what this process imports)
        attributes.update(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        pass
    return [(name, attributes[name]) for name in attributes if type(name) is str and not name.startswith("_")]


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


def _is_plain_class(kind: type) -> bool:
    """Whether a class and all its bases but `object` are the implementation's own, made by `type`."""
    classes = type.__dict__["__mro__"].__get__(kind)[:-1]
    own = [_class_dict(owner).get("__module__") in own_modules for owner in classes]
    return type(kind) is type and all(own)


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


def call(owner: Any, step: Any, encoder: Encoder, module: ModuleType, detail: Any = "") -> str:
    """Call and encode the outcome: ``["v", value]``, ``["r", …]``, or ``["m", name]`` where it is missing.

    ``step`` is a name with positional and keyword arguments; without arguments (None) the attribute is read.
    With ``detail`` "arguments" the value is followed by a list of the positional arguments as they are then,
    with "changes" also by a list of them as they were; the shared values of the case are the last item.
    """
    name, args, kwargs = step
    try:
        function = lookup(owner, name)
    except AttributeError:
        return '["m",' + encode_text(name) + "]"
    except BaseException as error:
        return encode_exception(error)
    try:
        if args is None:
            return '["v",' + encoder.encode(function) + "]"
        args, kwargs = make_objects(args, module), make_objects(kwargs, module)
        before = "," + encoder.encode_arguments(args) if detail == "changes" else ""
        value = encoder.encode(function(*args, **kwargs))
        after = "," + encoder.encode_arguments(args) if detail in ("arguments", "changes") else ""
        return '["v",' + value + after + before + "]"
    except (AnswerTooLargeError, NestingTooDeepError):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt are outcomes too
        return encode_exception(error)


def execute_case(plan: tuple[Any, ...], module: ModuleType, encoder: Encoder) -> str:
    """Execute a plan and encode the outcome."""
    name, args, kwargs = plan[1:4]
    detail = plan[-1]
    shared = plan[4 if plan[0] == "call" else 5 :][:1]
    shared_values.clear()
    if shared and type(shared[0]) is dict:
        try:
            make_shared(shared[0], module)
        except BaseException as error:
            return encode_exception(error) if plan[0] == "call" else f'["o",{encode_exception(error)},[]]'
    if plan[0] == "call":
        return call(module, plan[1:4], encoder, module, detail)
    try:
        target = lookup(module, name)
    except AttributeError:
        return '["m",' + encode_text(name) + "]"
    try:
        instance = target(*make_objects(args, module), **make_objects(kwargs, module))
    except BaseException as error:
        return '["o",' + encode_exception(error) + ",[]]"
    steps = ",".join([call(instance, step, encoder, module, detail) for step in plan[4]])
    return '["o",null,[' + steps + "]]"


def make_objects(value: Any, module: ModuleType) -> Any:
    """Make the objects that an argument stands for, see ``suite_values.new_object``."""
    kind = type(value)
    if kind is dict:
        if ... in value:
            name, args, kwargs, attributes, *calls = value[...]
            if name == "$function":
                return _find_function(args[0])
            made = [make_objects(item, module) for item in args]
            kind = SimpleNamespace if name == "SimpleNamespace" else lookup(module, name)
            instance = kind(*made, **make_objects(kwargs, module))
            for attribute in attributes:
                setattr(instance, attribute, make_objects(attributes[attribute], module))
            _prepare(instance, calls, module)
            return instance
        return {
            make_objects(key, module) if type(key) is tuple else key: make_objects(item, module)
            for key, item in value.items()
        }
    if kind is list:
        return [make_objects(item, module) for item in value]
    if kind is tuple:
        if value and value[0] is ...:
            return _find_shared(value[1], module)
        return tuple([make_objects(item, module) for item in value])
    return value


shared_values: dict[str, Any] = {}  # of the case that runs
_unmade: dict[str, Any] = {}  # those of which no object was made yet


def make_shared(written: dict[str, Any], module: ModuleType) -> None:
    """Make the values that others refer to by name, each once; they may refer to each other in a circle."""
    _unmade.clear()
    _unmade.update(written)
    for name in written:
        _find_shared(name, module)
    for name, value in written.items():
        made = shared_values[name]
        if type(value) is list:
            made.extend(make_objects(value, module))
        elif ... not in value:
            made.update(make_objects(value, module))
        else:
            attributes = value[...][3]
            for attribute in attributes:
                setattr(made, attribute, make_objects(attributes[attribute], module))
            _prepare(made, value[...][4:], module)


def _prepare(instance: Any, calls: Any, module: ModuleType) -> None:
    """Call methods of an object that is made, which fill it before anybody sees it."""
    for name, args, kwargs in calls[0] if calls else ():
        lookup(instance, name)(*make_objects(args, module), **make_objects(kwargs, module))


def _find_shared(name: str, module: ModuleType) -> Any:
    """Find a shared value, or make it as far as its constructor does."""
    if name not in shared_values:
        value = _unmade.pop(name)
        if type(value) is list:
            shared_values[name] = []
        elif ... not in value:
            shared_values[name] = {}
        else:
            shared_values[name] = make_objects({...: (*value[...][:3], {})}, module)
    return shared_values[name]


given_functions: list[tuple[Any, str]] = []  # that arguments are, and their names


def _find_function(name: str) -> Any:
    """Find a function of Python itself, such as ``abs``, ``str.upper`` or ``operator.add``."""
    first, _, rest = name.partition(".")
    is_module = first in ("math", "operator")
    function = lookup(__import__(first), rest) if is_module else lookup(sys.modules["builtins"], name)
    if (function, name) not in given_functions:
        given_functions.append((function, name))
    return function


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
    suite: Any, packed_plan: bytes, nonce: bytes, descriptors: tuple[int, ...], limits: dict[str, Any]
) -> NoReturn:
    """Import the implementation, execute the plan, send one answer, exit. Never returns.

    ``descriptors`` are the pipes of the answer, of violations and, in the first case, of the compiled source.
    """
    owner = _getpid()
    answer_fd, violations_fd, *code_fd = descriptors
    limit_process(limits["process"])
    plan = marshal.loads(packed_plan)
    audit_hooks = suite.context["audit_hooks"]
    audit_hooks.install(violations_fd, packed_plan, suite.files)
    try:
        if plan[0] == "test":
            _write(violations_fd, b"imported\n")
            answer = _run_test(suite.source, (*plan, suite.files), suite.context)
        else:
            answer = _import_and_execute(suite, plan, Encoder(limits["answer"]), violations_fd, code_fd)
    except AnswerTooLargeError:
        answer = '["large"]'
    except NestingTooDeepError:
        answer = '["deep"]'
    except BaseException as error:  # this module failed, under patched builtins or without memory
        answer = encode_exception(error)
    if _getpid() != owner:
        _exit(0)  # a child that the implementation forked and did not end: its parent answers
    audit_hooks.report_tampering(violations_fd)
    payload = answer.encode("ascii")
    frame = nonce + len(payload).to_bytes(4, "big") + payload
    while frame:
        frame = frame[_write(answer_fd, frame) :]
    _exit(0)


def _import_and_execute(
    suite: Any, plan: tuple[Any, ...], encoder: Encoder, violations_fd: int, code_fd: list[int]
) -> str:
    module = ModuleType(MODULE)
    module.__file__ = FILENAME
    sys.modules[MODULE] = module
    files, source = suite.context["source_files"], suite.source
    try:
        code = marshal.loads(suite.code) if suite.code else files.compile_source(source, FILENAME)
        for descriptor in code_fd:
            _send_code(descriptor, files.pack_code(code))
        own_modules.update(files.run_source(source, module, FILENAME, code))
    except BaseException as error:
        return '["e",' + encode_exception(error) + "]"
    _write(violations_fd, b"imported\n")
    return execute_case(plan, module, encoder)


def _send_code(descriptor: int, packed: bytes) -> None:
    """Send the compiled source before any of it runs, and close the pipe."""
    data = len(packed).to_bytes(8, "big") + packed
    while data:
        data = data[_write(descriptor, data) :]
    os.close(descriptor)


def _run_test(source: str, plan: tuple[Any, ...], context: dict[str, Any]) -> str:
    try:
        files, source = context["source_files"].write_shim(source)
        answer: str = context["pytest_runner"].run_test(source, files, *plan[1:], encode_text)
    except BaseException as error:  # pytest itself failed, or was made to fail
        return '["e",' + encode_exception(error) + "]"
    return answer

"""Values of test suites: how they are written, sent, and compared.

A value has three forms:

- **written**, in a suite: JSON, plus ``{"$tuple": […]}``, ``{"$set": […]}``, ``{"$frozenset": […]}``,
  ``{"$dict": [[k, v]…]}``, ``{"$bytes": "base64"}``, ``{"$float": "nan"}``, ``{"$complex": [0, 1]}`` and
  ``{"$function": "operator.add"}``; among arguments
  ``{"$new": ["Point", [1, 2]]}``, an object of the implementation's own class, perhaps filled by calls of
  its methods, and ``{"$ref": "a"}``, a value that the case names in ``shared``; as expectations
  ``{"$object": ["Point", {"x": 1}]}`` (a dataclass by its fields), ``{"$enum": ["Color", "RED"]}``,
  ``{"$iterator": […]}``, and ``{"$stream": […]}``, the first items of one that does not end soon;
- a **Python value**, what the implementation is called with;
- an **encoded value**, nested lists that name every type: ``["i", "ff"]`` is the integer 255. Answers come
  back encoded, and two values are the same when their encoded forms agree.

Encoded values exist because an untrusted process writes the answer: nothing in it is hashed, unpickled or
called, so an object "equal to everything" is only an unknown type here. (J1)
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from iccm_assets.suites.value_types import FUNCTIONS

EncodedValue = list[Any]

MAX_DEPTH = 100
FUNCTION = "$function"  # in place of a class name: a function of Python itself
FUNCTION_NAMES = frozenset(name for names in FUNCTIONS.values() for name in names)
MAX_SHARED_NAME = 40  # characters
MAX_HASHED_ELEMENTS = 10_000  # elements of one set or dict: bounds what crafted hash collisions can cost


class InvalidValueError(ValueError):
    """A written value or an answer is not well formed."""


@dataclass(frozen=True)
class Described:
    """What only an expectation can be: an encoded value without a Python value of its own."""

    encoded: EncodedValue


# ---- written form -> Python value ----------------------------------------------------------------


def decode(written: Any, depth: int = 0) -> Any:
    """Decode a written value; raises ``InvalidValueError`` when it is malformed."""
    if depth > MAX_DEPTH:
        raise InvalidValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(written, float) and not math.isfinite(written):
        raise InvalidValueError('write {"$float": "nan"}, {"$float": "inf"} or {"$float": "-inf"}')
    if written is None or isinstance(written, (bool, int, str, float)):
        return written
    if isinstance(written, list):
        return [decode(item, depth + 1) for item in written]
    if isinstance(written, dict):
        return _decode_object(written, depth)
    raise InvalidValueError(f"{type(written).__name__} is not a JSON value")


def _decode_object(written: dict[str, Any], depth: int) -> Any:
    if len(written) == 1:
        key, content = next(iter(written.items()))
        if key in _TAGS:
            return _TAGS[key](content, depth)
        if key.startswith("$"):
            raise InvalidValueError(f"unknown encoding {key!r}; known: {', '.join(_TAGS)}")
    return {key: decode(value, depth + 1) for key, value in written.items()}


def _decode_collection(tag: str, content: Any, depth: int) -> Any:
    pairs = tag == "$dict"
    if not isinstance(content, list):
        raise InvalidValueError(
            "$dict takes a list of [key, value] pairs" if pairs else f"{tag} takes a list"
        )
    if pairs and any(not isinstance(pair, list) or len(pair) != 2 for pair in content):
        raise InvalidValueError("$dict takes a list of [key, value] pairs")
    if tag != "$tuple" and len(content) > MAX_HASHED_ELEMENTS:
        raise InvalidValueError(f"{tag} holds more than {MAX_HASHED_ELEMENTS} elements")
    items = [decode(item, depth if pairs else depth + 1) for item in content]
    try:
        return _COLLECTIONS[tag](items)
    except TypeError as error:  # an unhashable element or key
        raise InvalidValueError(f"{tag}: {error}") from None


def _decode_bytes(content: Any, depth: int) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidValueError("$bytes takes a base64 string") from None


def _decode_float(content: Any, depth: int) -> float:
    try:
        if isinstance(content, str):
            return float(content)
    except ValueError:
        pass
    raise InvalidValueError('$float takes a number as text, such as "nan", "inf", "-inf" or "1e300"')


def _decode_complex(content: Any, depth: int) -> complex:
    parts = [decode(part, depth) for part in content] if isinstance(content, list) else []
    if len(parts) != 2 or not all(type(part) in (int, float) for part in parts):
        raise InvalidValueError("$complex takes [real part, imaginary part]")
    try:
        return complex(*parts)
    except OverflowError:
        raise InvalidValueError("$complex: a part is too large") from None


def _decode_function(content: Any, depth: int) -> dict[Any, Any]:
    if not isinstance(content, str) or content not in FUNCTION_NAMES:
        raise InvalidValueError(f"$function takes one of {', '.join(sorted(FUNCTION_NAMES))}")
    return new_object(FUNCTION, [content])


def new_object(
    name: str,
    args: list[Any],
    kwargs: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    calls: list[Any] | None = None,
) -> dict[Any, Any]:
    """Return what stands for an object of the implementation's class ``name`` among the arguments of a call.

    ``attributes`` are set afterwards, then come ``calls`` of its methods, as (name, arguments, keyword
    arguments). Its key is a value that nothing written can be.
    """
    return {...: (name, args, kwargs or {}, attributes or {}, *([calls] if calls else []))}


def refer_to(name: str) -> tuple[Any, ...]:
    """Return what stands for a shared value of a case. It may be a key; nothing written decodes to it."""
    return (..., name)


def is_reference(value: Any) -> bool:
    return type(value) is tuple and value[:1] == (...,)


def _decode_reference(content: Any, depth: int) -> tuple[Any, ...]:
    if not is_shared_name(content):
        raise InvalidValueError("$ref takes the name of a shared value")
    return refer_to(content)


def list_references(value: Any) -> Iterator[str]:
    """List the names of the shared values that a decoded value refers to."""
    if is_reference(value):
        yield value[1]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from list_references(key)
            yield from list_references(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from list_references(item)
    elif type(value) is Described:
        yield from _list_encoded_references(value.encoded)


def _list_encoded_references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        if node[:1] == ["R"]:
            yield str(node[1])
        for item in node:
            yield from _list_encoded_references(item)


def _decode_new(content: Any, depth: int) -> dict[Any, Any]:
    problem = "$new takes [class name, arguments, keyword arguments, attributes, calls]"
    if not isinstance(content, list) or not 1 <= len(content) <= 5 or not _is_class_name(content[0]):
        raise InvalidValueError(problem)
    args: Any = content[1] if len(content) > 1 else []
    named: list[Any] = [*content[2:4], {}, {}][:2]
    if not isinstance(args, list) or not all(isinstance(part, dict) for part in named):
        raise InvalidValueError(problem)
    if not all(_is_class_name(name) for part in named for name in part):
        raise InvalidValueError("$new: a name must be an identifier without leading double underscores")
    decoded = [{name: decode(part[name], depth + 1) for name in part} for part in named]
    calls = _decode_calls(content[4], depth + 1) if len(content) > 4 else []
    kwargs, attributes = decoded
    return new_object(content[0], [decode(item, depth + 1) for item in args], kwargs, attributes, calls)


def _decode_calls(content: Any, depth: int) -> list[Any]:
    """Decode the calls of methods that fill an object: [name, arguments, keyword arguments] each."""
    calls = []
    for call in content if isinstance(content, list) else [None]:
        parts: list[Any] = call if isinstance(call, list) and 1 <= len(call) <= 3 else [None]
        name, args = parts[0], parts[1] if len(parts) > 1 else []
        kwargs = parts[2] if len(parts) > 2 else {}
        is_call = isinstance(args, list) and isinstance(kwargs, dict)
        if not is_call or not all(map(_is_class_name, [name, *kwargs])):
            raise InvalidValueError("$new: calls are [[method, arguments, keyword arguments], …]")
        named = {key: decode(kwargs[key], depth + 1) for key in kwargs}
        calls.append((name, [decode(item, depth + 1) for item in args], named))
    return calls


def _decode_object_value(content: Any, depth: int) -> Described:
    if not isinstance(content, list) or len(content) != 2 or not isinstance(content[1], dict):
        raise InvalidValueError("$object takes [class name, {field: value}]")
    fields = [[name, encode(decode(content[1][name], depth + 1))] for name in content[1]]
    return Described(["D", str(content[0]), fields])


def _decode_enum(content: Any, depth: int) -> Described:
    if (
        not isinstance(content, list)
        or len(content) != 2
        or not all(isinstance(part, str) for part in content)
    ):
        raise InvalidValueError("$enum takes [class name, member name]")
    return Described(["E", *content])


def _decode_iterator(kind: str, content: Any, depth: int) -> Described:
    if not isinstance(content, list):
        raise InvalidValueError("$iterator and $stream take a list")
    return Described([kind, [encode(decode(item, depth + 1)) for item in content]])


def _is_class_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


def is_shared_name(name: object) -> bool:
    """Whether a shared value may have this name."""
    return isinstance(name, str) and name.isidentifier() and len(name) <= MAX_SHARED_NAME


_COLLECTIONS: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$dict": dict,
}
_TAGS: dict[str, Callable[[Any, int], Any]] = {
    **{tag: partial(_decode_collection, tag) for tag in _COLLECTIONS},
    "$bytes": _decode_bytes,
    "$float": _decode_float,
    "$complex": _decode_complex,
    FUNCTION: _decode_function,
    "$new": _decode_new,
    "$ref": _decode_reference,
    "$object": _decode_object_value,
    "$enum": _decode_enum,
    "$iterator": partial(_decode_iterator, "g"),
    "$stream": partial(_decode_iterator, "G"),
}


# ---- Python value -> encoded value ---------------------------------------------------------------

_SCALARS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("b", int),
    int: ("i", lambda number: format(number, "x")),
    float: ("f", float.hex),
    complex: ("c", lambda number: [number.real.hex(), number.imag.hex()]),
    str: ("s", str),
    bytes: ("y", bytes.hex),
}
_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "S", frozenset: "F"}


def encode(value: Any) -> EncodedValue:
    """Encode a trusted Python value (what ``decode`` returned)."""
    kind = type(value)
    if value is None:
        return ["n"]
    if kind is Described:
        return list(value.encoded)
    if kind in _SCALARS:
        tag, encode_scalar = _SCALARS[kind]
        return [tag, encode_scalar(value)]
    if is_reference(value):
        return ["R", value[1]]
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], [encode(item) for item in value]]
    if kind is dict and ... in value and value[...][0] == FUNCTION:
        return ["P", *value[...][1]]
    if kind is dict and ... not in value:
        return ["d", [[encode(key), encode(item)] for key, item in value.items()]]
    raise InvalidValueError(f"{'$new' if kind is dict else kind.__name__} has no encoded form")


# ---- encoded value -> written form ---------------------------------------------------------------


def write_encoded(node: EncodedValue, digits: int = 17) -> Any:
    """Write an encoded value as a suite does; floats are rounded to ``digits`` significant digits.

    Sets are sorted. Dicts keep their order, which a JSON object does not in every store.
    """
    kind, content = node[0], node[-1]
    if kind in "lt":
        items = [write_encoded(item, digits) for item in content]
        return items if kind == "l" else {"$tuple": items}
    if kind in "SF":
        ordered = sorted(content, key=canonical_form)
        return {"$set" if kind == "S" else "$frozenset": [write_encoded(item, digits) for item in ordered]}
    if kind == "d":
        pairs = [[write_encoded(key, digits), write_encoded(item, digits)] for key, item in content]
        simple = not pairs or (
            len(pairs) == 1 and isinstance(pairs[0][0], str) and not pairs[0][0].startswith("$")
        )
        return dict(pairs) if simple else {"$dict": pairs}
    if kind == "f":
        return _write_float(content, digits)
    if kind == "c":
        return {"$complex": [_write_float(part, digits) for part in content]}
    if kind == "R" or (kind == "P" and content in FUNCTION_NAMES):
        return {"$ref" if kind == "R" else FUNCTION: content}
    if kind == "y":
        return {"$bytes": base64.b64encode(bytes.fromhex(content)).decode()}
    if kind in "gG":
        return {"$iterator" if kind == "g" else "$stream": [write_encoded(item, digits) for item in content]}
    if kind in "DQ":
        return {"$object": [node[1], {name: write_encoded(item, digits) for name, item in content}]}
    if kind == "E":
        return {"$enum": node[1:]}
    if kind in _WRITTEN_SCALARS:
        return _WRITTEN_SCALARS[kind](content)
    raise InvalidValueError("an object of a class has no written form")


def _write_float(content: str, digits: int) -> Any:
    number = float.fromhex(content)
    rounded = float(f"{number:.{digits}g}") if math.isfinite(number) else number
    # PostgreSQL writes a large number without a point: it would come back as an integer.
    return rounded if abs(rounded) < 1e15 else {"$float": repr(rounded)}


def write_argument(value: Any) -> Any:
    """Write what a call is given, objects of the implementation's own classes included."""
    if isinstance(value, dict) and ... in value:
        name, args, *named = value[...]
        if name == FUNCTION:
            return {FUNCTION: args[0]}
        written: list[Any] = [{key: write_argument(part[key]) for key in part} for part in named[:2]]
        written += [[_write_call(*call) for call in calls] for calls in named[2:]]
        while written and not written[-1]:
            written.pop()
        return {"$new": [name, [write_argument(item) for item in args], *written]}
    if isinstance(value, list):
        return [write_argument(item) for item in value]
    if isinstance(value, tuple) and not is_reference(value):
        return {"$tuple": [write_argument(item) for item in value]}
    return write_encoded(encode(value))


def _write_call(name: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    named = [{key: write_argument(kwargs[key]) for key in kwargs}] if kwargs else []
    return [name, [write_argument(item) for item in args], *named]


_WRITTEN_SCALARS: dict[str, Callable[[Any], Any]] = {
    "n": lambda content: None,
    "b": bool,
    "i": lambda digits: int(digits, 16),
    "s": str,
}


# ---- answer -> encoded value ---------------------------------------------------------------------


def check_encoded(node: Any, depth: int = 0) -> EncodedValue:
    """Return ``node`` if it is a well-formed encoded value; raise ``InvalidValueError`` otherwise."""
    try:
        _require(depth <= MAX_DEPTH + 1 and isinstance(node, list) and isinstance(node[0], str))
        _CHECKS[node[0]](node[1:], depth)
    except (LookupError, TypeError, ValueError, OverflowError):
        raise InvalidValueError("not an answer") from None
    checked: EncodedValue = node
    return checked


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _check_items(rest: list[Any], depth: int) -> None:
    (items,) = rest
    _require(isinstance(items, list))
    for item in items:
        check_encoded(item, depth + 1)


def _check_pairs(rest: list[Any], depth: int) -> None:
    (pairs,) = rest
    _require(isinstance(pairs, list))
    for pair in pairs:
        _require(isinstance(pair, list) and len(pair) == 2)
        _check_items([pair], depth)


def _check_fields(rest: list[Any], depth: int) -> None:
    name, fields = rest
    _require(isinstance(name, str) and isinstance(fields, list))
    for field_name, item in fields:
        _require(isinstance(field_name, str))
        check_encoded(item, depth + 1)


_CHECKS: dict[str, Callable[[list[Any], int], None]] = {
    "n": lambda rest, depth: _require(not rest),
    "b": lambda rest, depth: _require(rest in ([0], [1])),
    "i": lambda rest, depth: _require(len(rest) == 1 and int(rest[0], 16) is not None),
    "f": lambda rest, depth: _require(float.fromhex(*rest) is not None),
    "c": lambda rest, depth: _require(len(rest) == 1 and len([float.fromhex(part) for part in rest[0]]) == 2),
    "P": lambda rest, depth: _require(len(rest) == 1 and isinstance(rest[0], str)),
    "R": lambda rest, depth: _require(len(rest) == 1 and isinstance(rest[0], str)),
    "s": lambda rest, depth: _require(len(rest) == 1 and isinstance(rest[0], str)),
    "y": lambda rest, depth: _require(bytes.fromhex(*rest) is not None),
    "l": _check_items,
    "t": _check_items,
    "S": _check_items,
    "F": _check_items,
    "d": _check_pairs,
    "g": _check_items,
    "G": _check_items,
    "D": lambda rest, depth: _check_fields(rest, depth),
    "Q": lambda rest, depth: _check_fields(rest, depth),  # a "D" whose class redefines equality
    "E": lambda rest, depth: _require(len(rest) == 2 and all(isinstance(part, str) for part in rest)),
    # A type without an encoded form: its name, and whether it redefines equality.
    "u": lambda rest, depth: _require(len(rest) == 2 and isinstance(rest[0], str) and rest[1] in (0, 1)),
}


def canonical_form(node: EncodedValue) -> str:
    """Return a string that is equal for equal values, in any order of their sets and dicts."""
    kind, content = node[0], node[-1]
    if kind in "fc":
        parts = [float.fromhex(part) for part in ([content] if kind == "f" else content)]
        return f"{kind}" + ",".join("nan" if math.isnan(part) else (part + 0.0).hex() for part in parts)
    if kind == "i":
        return f"i{int(content, 16):x}"
    if kind == "d":
        items = [f"{canonical_form(key)}:{canonical_form(value)}" for key, value in content]
    elif kind in "DQ":
        kind, items = (
            "D",
            [
                json.dumps(node[1]),
                *(f"{json.dumps(name)}:{canonical_form(item)}" for name, item in content),
            ],
        )
    elif kind in "gG" or kind in "ltSF":
        items = [canonical_form(item) for item in content]
    else:
        return json.dumps(node)
    return f"{kind}[{','.join(items if kind in 'ltgG' else sorted(items))}]"

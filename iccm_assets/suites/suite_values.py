"""Values of test suites: how they are written, sent, and compared.

A value has three forms:

- **written**, in a suite: JSON, plus ``{"$tuple": […]}``, ``{"$set": […]}``, ``{"$frozenset": […]}``,
  ``{"$dict": [[k, v]…]}``, ``{"$bytes": "base64"}`` and ``{"$float": "nan"}``;
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
from collections.abc import Callable
from functools import partial
from typing import Any

EncodedValue = list[Any]

MAX_DEPTH = 100
MAX_HASHED_ELEMENTS = 10_000  # elements of one set or dict: bounds what crafted hash collisions can cost
RELATIVE_TOLERANCE = 1e-9
MAX_TOLERANT_SEARCH = 200  # unmatched set elements that are compared pair by pair
MAX_TOLERANT_CHARACTERS = 20_000  # of all of them; sets in sets must be exactly equal


class InvalidValueError(ValueError):
    """A written value or an answer is not well formed."""


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
    if content not in ("nan", "inf", "-inf"):
        raise InvalidValueError('$float takes "nan", "inf" or "-inf"')
    return float(content)


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
}


# ---- Python value -> encoded value ---------------------------------------------------------------

_SCALARS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("b", int),
    int: ("i", lambda number: format(number, "x")),
    float: ("f", float.hex),
    str: ("s", str),
    bytes: ("y", bytes.hex),
}
_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "S", frozenset: "F"}


def encode(value: Any) -> EncodedValue:
    """Encode a trusted Python value (what ``decode`` returned)."""
    kind = type(value)
    if value is None:
        return ["n"]
    if kind in _SCALARS:
        tag, encode_scalar = _SCALARS[kind]
        return [tag, encode_scalar(value)]
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], [encode(item) for item in value]]
    if kind is dict:
        return ["d", [[encode(key), encode(item)] for key, item in value.items()]]
    raise InvalidValueError(f"{kind.__name__} has no encoded form")


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


_CHECKS: dict[str, Callable[[list[Any], int], None]] = {
    "n": lambda rest, depth: _require(not rest),
    "b": lambda rest, depth: _require(rest in ([0], [1])),
    "i": lambda rest, depth: _require(len(rest) == 1 and int(rest[0], 16) is not None),
    "f": lambda rest, depth: _require(float.fromhex(*rest) is not None),
    "s": lambda rest, depth: _require(len(rest) == 1 and isinstance(rest[0], str)),
    "y": lambda rest, depth: _require(bytes.fromhex(*rest) is not None),
    "l": _check_items,
    "t": _check_items,
    "S": _check_items,
    "F": _check_items,
    "d": _check_pairs,
    # A type without an encoded form: its name, and whether it redefines equality.
    "u": lambda rest, depth: _require(len(rest) == 2 and isinstance(rest[0], str) and rest[1] in (0, 1)),
}


# ---- comparison ----------------------------------------------------------------------------------


def diff(expected: EncodedValue, actual: EncodedValue, where: str = "") -> str:
    """Explain why two encoded values are not the same, or return ``""`` when they are.

    Type-strict: ``True`` is not ``1``, ``1`` is not ``1.0``, a list is not a tuple. Floats agree within a
    relative 1e-9, and nan is nan. Order counts in lists and tuples only.
    """
    prefix = f"at {where}: " if where else ""
    if expected[0] == actual[0]:
        if expected[0] in "lt":
            return _sequence_difference(expected, actual, where, prefix)
        if expected[0] == "d":
            return _dict_difference(expected, actual, where, prefix)
        if _same_value(expected[0], *expected[1:2], *actual[1:2]):
            return ""
    return f"{prefix}expected {format_value(expected)}, got {format_value(actual)}"


def _same_value(kind: str, expected: Any = None, actual: Any = None) -> bool:
    """Compare the contents of two scalars or sets of one kind."""
    if kind in "SF":
        return _same_elements(expected, actual)
    if kind == "f":
        return _same_float(float.fromhex(expected), float.fromhex(actual))
    if kind == "i":
        return int(expected, 16) == int(actual, 16)
    return kind != "u" and bool(expected == actual)


def _same_float(expected: float, actual: float) -> bool:
    both_nan = math.isnan(expected) and math.isnan(actual)
    return both_nan or math.isclose(expected, actual, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def _sequence_difference(expected: EncodedValue, actual: EncodedValue, where: str, prefix: str) -> str:
    sizes = len(expected[1]), len(actual[1])
    if sizes[0] != sizes[1]:
        shown = (format_value(expected), format_value(actual))
        return f"{prefix}expected {sizes[0]} elements {shown[0]}, got {sizes[1]} {shown[1]}"
    pairs = enumerate(zip(expected[1], actual[1], strict=True))
    differences = (diff(item, actual_item, f"{where}[{index}]") for index, (item, actual_item) in pairs)
    return next(filter(None, differences), "")


def _dict_difference(expected: EncodedValue, actual: EncodedValue, where: str, prefix: str) -> str:
    keys = {canonical_form(key): key for key, _ in expected[1]}
    actual_keys = {canonical_form(key): key for key, _ in actual[1]}
    if len(actual[1]) != len(actual_keys):
        return f"{prefix}got a dict with a key twice"
    matches = _match_elements(keys, actual_keys)
    for form, key in keys.items():
        if form not in matches:
            return f"{prefix}key {format_value(key)} is missing, got {format_value(actual)}"
    for form, key in actual_keys.items():
        if form not in matches.values():
            return f"{prefix}unexpected key {format_value(key)}"
    values = {canonical_form(key): value for key, value in actual[1]}
    differences = (
        diff(value, values[matches[canonical_form(key)]], f"{where}[{format_value(key)}]")
        for key, value in expected[1]
    )
    return next(filter(None, differences), "")


def _match_elements(expected: dict[str, EncodedValue], actual: dict[str, EncodedValue]) -> dict[str, str]:
    """Map expected to actual canonical forms: exact matches first, then those within the tolerance."""
    matches = {form: form for form in expected.keys() & actual.keys()}
    missing = [form for form in expected if form not in actual]
    extra = [form for form in actual if form not in expected]
    if len(missing) != len(extra) or not _is_searchable([*missing, *extra]):
        return matches
    for form in missing:
        close = next((other for other in extra if not diff(expected[form], actual[other])), None)
        if close is not None:
            extra.remove(close)
            matches[form] = close
    return matches


def _is_searchable(forms: list[str]) -> bool:
    """Whether a search within the tolerance takes little time: few and short elements without sets."""
    is_small = len(forms) <= 2 * MAX_TOLERANT_SEARCH and sum(map(len, forms)) <= MAX_TOLERANT_CHARACTERS
    return is_small and not any("S[" in form or "F[" in form for form in forms)


def _same_elements(expected: list[EncodedValue], actual: list[EncodedValue]) -> bool:
    """Whether two sets hold the same elements."""
    elements, actual_elements = ({canonical_form(item): item for item in side} for side in (expected, actual))
    return len(elements) == len(actual_elements) == len(_match_elements(elements, actual_elements))


def canonical_form(node: EncodedValue) -> str:
    """Return a string that is equal for equal values, in any order of their sets and dicts."""
    kind, content = node[0], node[-1]
    if kind == "f":
        number = float.fromhex(content)
        return f"f{'nan' if math.isnan(number) else (number + 0.0).hex()}"
    if kind == "i":
        return f"i{int(content, 16):x}"
    if kind == "d":
        items = [f"{canonical_form(key)}:{canonical_form(value)}" for key, value in content]
    elif kind in "ltSF":
        items = [canonical_form(item) for item in content]
    else:
        return json.dumps(node)
    return f"{kind}[{','.join(items if kind in 'lt' else sorted(items))}]"


# ---- for people ----------------------------------------------------------------------------------


def format_value(node: EncodedValue, max_length: int = 80) -> str:
    """Format an encoded value as Python would, in at most ``max_length`` characters."""
    text = _format_any(node, max_length)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def _format_any(node: EncodedValue, limit: int) -> str:
    kind, content = node[0], node[-1]
    if kind == "u":
        return f"an object of type {node[1][:60]}" + (" with its own equality" if node[2] else "")
    if kind in _BRACKETS:
        return _format_container(kind, content, limit)
    return _FORMATS[kind](content, limit)


_FORMATS: dict[str, Callable[[Any, int], str]] = {
    "n": lambda content, limit: "None",
    "b": lambda content, limit: str(bool(content)),
    # A longer integer would be cut anyway, and decimal conversion takes quadratic time.
    "i": lambda digits, limit: (
        str(int(digits, 16)) if len(digits) <= 400 else f"an integer of {len(digits)} hex digits"
    ),
    "f": lambda content, limit: repr(float.fromhex(content)),
    "s": lambda content, limit: repr(content[:limit]),
    "y": lambda content, limit: repr(bytes.fromhex(content[: 2 * limit])),
}
_BRACKETS = {"l": ("[", "]"), "t": ("(", ")"), "S": ("{", "}"), "F": ("{", "}"), "d": ("{", "}")}


def _format_container(kind: str, content: list[Any], limit: int) -> str:
    if not content and kind in "SF":
        return "set()" if kind == "S" else "frozenset()"
    shown: list[str] = []
    for item in content[:limit]:
        shown.append(": ".join(format_value(part, limit) for part in (item if kind == "d" else [item])))
        if sum(map(len, shown)) > limit:
            break
    opening, closing = _BRACKETS[kind]
    inner = ", ".join(shown) + ("," if kind == "t" and len(content) == 1 else "")
    text = f"{opening}{inner}{closing}"
    return f"frozenset({text})" if kind == "F" else text

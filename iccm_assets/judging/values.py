"""Values of test suites: how they are written, sent, and compared (J1).

A value has three forms:

- **written**, in a suite: JSON, plus ``{"$tuple": […]}``, ``{"$set": […]}``, ``{"$frozenset": […]}``,
  ``{"$dict": [[k, v]…]}``, ``{"$bytes": "base64"}`` and ``{"$float": "nan"}``;
- a **Python value**, what the implementation is called with;
- a **tree**, nested lists that name every type: ``["i", "ff"]`` is the integer 255. Answers come back as
  trees, and two values are the same when their trees agree.

Trees exist because an answer was written by a process that cannot be trusted: nothing in it is hashed,
unpickled or called, so an object "equal to everything" is only an unknown type here.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

Tree = list[Any]

MAX_DEPTH = 100
MAX_HASHED = 10_000  # elements of one set or dict: bounds what crafted hash collisions can cost
RELATIVE_TOLERANCE = 1e-9
TOLERANT_SEARCH = 200  # unmatched set elements that are compared pair by pair


class ValueProblem(ValueError):
    """A written value or an answer that is not well formed."""


# ---- written form -> Python value ----------------------------------------------------------------


def decode(written: Any, depth: int = 0) -> Any:
    """The Python value of a written one; ``ValueProblem`` when it has none."""
    if depth > MAX_DEPTH:
        raise ValueProblem(f"nested more than {MAX_DEPTH} deep")
    if written is None or isinstance(written, (bool, int, str)):
        return written
    if isinstance(written, float):
        if not math.isfinite(written):
            raise ValueProblem('write {"$float": "nan"}, {"$float": "inf"} or {"$float": "-inf"}')
        return written
    if isinstance(written, list):
        return [decode(item, depth + 1) for item in written]
    if isinstance(written, dict):
        return _decode_object(written, depth)
    raise ValueProblem(f"{type(written).__name__} is not a JSON value")


def _decode_object(written: dict[str, Any], depth: int) -> Any:
    if len(written) == 1:
        key, content = next(iter(written.items()))
        if key in _TAGS:
            return _TAGS[key](content, depth)
        if key.startswith("$"):
            raise ValueProblem(f"unknown encoding {key!r}; known: {', '.join(_TAGS)}")
    return {key: decode(value, depth + 1) for key, value in written.items()}


def _items(tag: str, content: Any, depth: int) -> list[Any]:
    if not isinstance(content, list):
        raise ValueProblem(f"{tag} takes a list")
    return [decode(item, depth + 1) for item in content]


def _hashed(tag: str, build: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    if len(items) > MAX_HASHED:
        raise ValueProblem(f"{tag} holds more than {MAX_HASHED} elements")
    try:
        return build(items)
    except TypeError as error:  # an unhashable element or key
        raise ValueProblem(f"{tag}: {error}") from None


def _decode_dict(content: Any, depth: int) -> dict[Any, Any]:
    if not isinstance(content, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in content):
        raise ValueProblem("$dict takes a list of [key, value] pairs")
    pairs = [(decode(key, depth + 1), decode(value, depth + 1)) for key, value in content]
    result: dict[Any, Any] = _hashed("$dict", dict, pairs)
    return result


def _decode_bytes(content: Any, depth: int) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueProblem("$bytes takes a base64 string") from None


def _decode_float(content: Any, depth: int) -> float:
    if content not in ("nan", "inf", "-inf"):
        raise ValueProblem('$float takes "nan", "inf" or "-inf"')
    return float(content)


_TAGS: dict[str, Callable[[Any, int], Any]] = {
    "$tuple": lambda content, depth: tuple(_items("$tuple", content, depth)),
    "$set": lambda content, depth: _hashed("$set", set, _items("$set", content, depth)),
    "$frozenset": lambda content, depth: _hashed(
        "$frozenset", frozenset, _items("$frozenset", content, depth)
    ),
    "$dict": _decode_dict,
    "$bytes": _decode_bytes,
    "$float": _decode_float,
}


# ---- Python value -> tree ------------------------------------------------------------------------

_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "S", frozenset: "F"}


def tree_of(value: Any) -> Tree:
    """The tree of a trusted Python value (what ``decode`` returned)."""
    kind = type(value)
    if value is None:
        return ["n"]
    if kind is bool:
        return ["b", 1 if value else 0]
    if kind is int:
        return ["i", format(value, "x")]
    if kind is float:
        return ["f", value.hex()]
    if kind is str:
        return ["s", value]
    if kind is bytes:
        return ["y", value.hex()]
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], [tree_of(item) for item in value]]
    if kind is dict:
        return ["d", [[tree_of(key), tree_of(item)] for key, item in value.items()]]
    raise ValueProblem(f"{kind.__name__} has no tree")


# ---- answer -> tree ------------------------------------------------------------------------------


def check_tree(node: Any, depth: int = 0) -> Tree:
    """``node`` itself when it is a well-formed tree, whoever wrote it; else ``ValueProblem``."""
    if depth > MAX_DEPTH + 1 or not isinstance(node, list) or not node or not isinstance(node[0], str):
        raise ValueProblem("not an answer")
    check = _CHECKS.get(node[0])
    if check is None:
        raise ValueProblem("not an answer")
    try:
        check(node[1:], depth)
    except (TypeError, ValueError, OverflowError):
        raise ValueProblem("not an answer") from None
    return node


def _only(condition: bool) -> None:
    if not condition:
        raise ValueError


def _check_items(rest: list[Any], depth: int) -> None:
    (items,) = rest
    _only(isinstance(items, list))
    for item in items:
        check_tree(item, depth + 1)


def _check_pairs(rest: list[Any], depth: int) -> None:
    (pairs,) = rest
    _only(isinstance(pairs, list))
    for pair in pairs:
        _only(isinstance(pair, list) and len(pair) == 2)
        check_tree(pair[0], depth + 1)
        check_tree(pair[1], depth + 1)


def _check_text(rest: list[Any], depth: int) -> None:
    _only(len(rest) == 1 and isinstance(rest[0], str))


def _check_integer(rest: list[Any], depth: int) -> None:
    (digits,) = rest
    int(digits, 16)


def _check_unknown(rest: list[Any], depth: int) -> None:
    _only(len(rest) == 2 and isinstance(rest[0], str) and rest[1] in (0, 1))


_CHECKS: dict[str, Callable[[list[Any], int], None]] = {
    "n": lambda rest, depth: _only(not rest),
    "b": lambda rest, depth: _only(rest in ([0], [1])),
    "i": _check_integer,
    "f": lambda rest, depth: _only(float.fromhex(*rest) is not None),
    "s": _check_text,
    "y": lambda rest, depth: _only(bytes.fromhex(*rest) is not None),
    "l": _check_items,
    "t": _check_items,
    "S": _check_items,
    "F": _check_items,
    "d": _check_pairs,
    "u": _check_unknown,  # a type that has no tree: its name, and whether it redefines equality
}


# ---- comparison ----------------------------------------------------------------------------------


def difference(expected: Tree, actual: Tree, where: str = "") -> str:
    """Why two trees are not the same value, or ``""`` when they are.

    Type-strict: ``True`` is not ``1``, ``1`` is not ``1.0``, a list is not a tuple. Floats agree within a
    relative 1e-9, and nan is nan. Order counts in lists and tuples only.
    """
    at = f"at {where}: " if where else ""
    if expected[0] != actual[0]:
        return f"{at}expected {show(expected)}, got {show(actual)}"
    kind = expected[0]
    if kind in ("l", "t"):
        return _sequence_difference(expected, actual, where)
    if kind in ("S", "F"):
        missing, extra = _unmatched(expected[1], actual[1])
        return f"{at}expected {show(expected)}, got {show(actual)}" if missing or extra else ""
    if kind == "d":
        return _dict_difference(expected, actual, where)
    if kind == "f":
        same = _same_float(float.fromhex(expected[1]), float.fromhex(actual[1]))
    elif kind == "i":
        same = int(expected[1], 16) == int(actual[1], 16)
    elif kind == "u":
        same = False
    else:
        same = expected == actual
    return "" if same else f"{at}expected {show(expected)}, got {show(actual)}"


def _same_float(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def _sequence_difference(expected: Tree, actual: Tree, where: str) -> str:
    left, right = expected[1], actual[1]
    if len(left) != len(right):
        at = f"at {where}: " if where else ""
        return f"{at}expected {len(left)} elements {show(expected)}, got {len(right)} {show(actual)}"
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        found = difference(one, other, f"{where}[{index}]")
        if found:
            return found
    return ""


def _dict_difference(expected: Tree, actual: Tree, where: str) -> str:
    at = f"at {where}: " if where else ""
    wanted = {canonical(key): (key, value) for key, value in expected[1]}
    given = {canonical(key): (key, value) for key, value in actual[1]}
    if len(actual[1]) != len(given):
        return f"{at}got a dict with a key twice"
    _rename_close_keys(wanted, given)
    for name, (key, _) in wanted.items():
        if name not in given:
            return f"{at}key {show(key)} is missing, got {show(actual)}"
    for name, (key, _) in given.items():
        if name not in wanted:
            return f"{at}unexpected key {show(key)}"
    for name, (key, value) in wanted.items():
        found = difference(value, given[name][1], f"{where}[{show(key)}]")
        if found:
            return found
    return ""


def _rename_close_keys(wanted: dict[str, tuple[Tree, Tree]], given: dict[str, tuple[Tree, Tree]]) -> None:
    """File a given key that is within the tolerance of a wanted one under the wanted one's name."""
    absent = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    if len(absent) != len(surplus) or len(absent) > TOLERANT_SEARCH:
        return
    for name in absent:
        close = next((other for other in surplus if not difference(wanted[name][0], given[other][0])), None)
        if close is not None:
            surplus.remove(close)
            given[name] = given.pop(close)


def _unmatched(expected: list[Tree], actual: list[Tree]) -> tuple[list[Tree], list[Tree]]:
    """Elements of two sets that have no counterpart, exact matches first, then within the tolerance."""
    given: dict[str, Tree] = {canonical(item): item for item in actual}
    missing = [item for item in expected if given.pop(canonical(item), None) is None]
    extra = list(given.values())
    if len(missing) != len(extra) or len(missing) > TOLERANT_SEARCH:
        return missing, extra
    for item in list(missing):
        match = next((index for index, other in enumerate(extra) if not difference(item, other)), None)
        if match is not None:
            del extra[match]
            missing.remove(item)
    return missing, extra


def canonical(node: Tree) -> str:
    """A string that is equal for exactly equal values, whatever the order of their sets and dicts."""
    kind = node[0]
    if kind == "f":
        number = float.fromhex(node[1])
        return f"f{'nan' if math.isnan(number) else (number + 0.0).hex()}"
    if kind == "i":
        return f"i{int(node[1], 16):x}"
    if kind in ("l", "t"):
        return f"{kind}[{','.join(canonical(item) for item in node[1])}]"
    if kind in ("S", "F"):
        return f"{kind}[{','.join(sorted(canonical(item) for item in node[1]))}]"
    if kind == "d":
        return f"d[{','.join(sorted(f'{canonical(key)}:{canonical(value)}' for key, value in node[1]))}]"
    return json.dumps(node)


# ---- for people ----------------------------------------------------------------------------------


def show(node: Tree, limit: int = 80) -> str:
    """A tree as Python would print the value, at most ``limit`` characters."""
    text = "".join(_pieces(node, limit))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _pieces(node: Tree, limit: int) -> Iterable[str]:
    kind = node[0]
    if kind == "n":
        return ["None"]
    if kind == "b":
        return ["True" if node[1] else "False"]
    if kind == "i":
        # A longer one would be cut anyway, and printing it in decimal takes quadratic time.
        return [str(int(node[1], 16)) if len(node[1]) <= 400 else f"an integer of {len(node[1])} hex digits"]
    if kind == "f":
        return [repr(float.fromhex(node[1]))]
    if kind == "s":
        return [repr(node[1][:limit])]
    if kind == "y":
        return [repr(bytes.fromhex(node[1][: 2 * limit]))]
    if kind == "u":
        return [f"an object of type {node[1][:60]}" + (" with its own equality" if node[2] else "")]
    return _container_pieces(node, limit)


_BRACKETS = {"l": ("[", "]"), "t": ("(", ")"), "S": ("{", "}"), "F": ("{", "}"), "d": ("{", "}")}


def _container_pieces(node: Tree, limit: int) -> Iterable[str]:
    kind, content = node[0], node[1]
    if not content and kind in "SF":
        return ["set()" if kind == "S" else "frozenset()"]
    shown: list[str] = []
    for item in content[:limit]:
        if kind == "d":
            shown.append(f"{show(item[0], limit)}: {show(item[1], limit)}")
        else:
            shown.append(show(item, limit))
        if sum(map(len, shown)) > limit:
            break
    opening, closing = _BRACKETS[kind]
    inner = ", ".join(shown) + ("," if kind == "t" and len(content) == 1 else "")
    text = f"{opening}{inner}{closing}"
    return [f"frozenset({text})" if kind == "F" else text]

"""Compare encoded values, and describe them for people. (J1)"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from iccm_assets.suites.suite_values import EncodedValue, canonical_form

RELATIVE_TOLERANCE = 1e-9
MAX_TOLERANT_SEARCH = 200  # unmatched set elements that are compared pair by pair
MAX_TOLERANT_CHARACTERS = 20_000  # of all of them; sets in sets must be exactly equal


def diff(expected: EncodedValue, actual: EncodedValue, where: str = "") -> str:
    """Explain why two encoded values are not the same, or return ``""`` when they are.

    Type-strict: ``True`` is not ``1``, ``1`` is not ``1.0``, a list is not a tuple. Floats agree within a
    relative 1e-9, and nan is nan. Order counts in lists and tuples only.
    """
    prefix = f"at {where}: " if where else ""
    if expected[0] in "DQ" and actual[0] in "DQ":  # however the class compares: by attributes
        return _object_difference(expected, actual, where, prefix)
    if expected[0] == actual[0]:
        if expected[0] in "ltgG":
            return _sequence_difference(expected, actual, where, prefix)
        if expected[0] == "d":
            return _dict_difference(expected, actual, where, prefix)
        if expected[0] == "E" and expected != actual:
            return f"{prefix}expected {format_value(expected)}, got {format_value(actual)}"
        if _same_value(expected[0], *expected[1:2], *actual[1:2]):
            return ""
    return f"{prefix}expected {format_value(expected)}, got {format_value(actual)}"


def _same_value(kind: str, expected: Any = None, actual: Any = None) -> bool:
    """Compare the contents of two scalars or sets of one kind."""
    if kind in "SF":
        return _same_elements(expected, actual)
    if kind == "f":
        return _same_float(float.fromhex(expected), float.fromhex(actual))
    if kind == "c":
        return _same_complex(*([float.fromhex(part) for part in side] for side in (expected, actual)))
    if kind == "i":
        return int(expected, 16) == int(actual, 16)
    return kind != "u" and bool(expected == actual)


def _same_float(expected: float, actual: float) -> bool:
    both_nan = math.isnan(expected) and math.isnan(actual)
    return both_nan or math.isclose(expected, actual, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def _same_complex(expected: list[float], actual: list[float]) -> bool:
    """Compare by the distance in the plane: a part that is nearly zero beside the other one may differ."""
    if not all(map(math.isfinite, (*expected, *actual))):
        return all(map(_same_float, expected, actual))
    scale = max(map(abs, (*expected, *actual))) or 1.0  # so that no square overflows
    left, right = (complex(side[0] / scale, side[1] / scale) for side in (expected, actual))
    return abs(left - right) <= RELATIVE_TOLERANCE * max(abs(left), abs(right))


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


def _object_difference(expected: EncodedValue, actual: EncodedValue, where: str, prefix: str) -> str:
    """Compare objects by class name and expected attributes; an implementation may have others, too."""
    attributes = dict(actual[2])
    if expected[1] != actual[1] or any(name not in attributes for name, _ in expected[2]):
        return f"{prefix}expected {format_value(expected)}, got {format_value(actual)}"
    differences = (diff(value, attributes[name], f"{where}.{name}") for name, value in expected[2])
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


# ---- for people ----------------------------------------------------------------------------------


def format_value(node: EncodedValue, max_length: int = 80) -> str:
    """Format an encoded value as Python would, in at most ``max_length`` characters."""
    text = _format_any(node, max_length)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def _format_any(node: EncodedValue, limit: int) -> str:
    kind, content = node[0], node[-1]
    if kind == "u":
        return f"an object of type {node[1][:60]}" + (" with its own equality" if node[2] else "")
    if kind in "DQ":
        fields = ", ".join(f"{name}={format_value(item, limit)}" for name, item in content[:limit])
        return f"{node[1][:60]}({fields})" + (" with its own equality" if kind == "Q" else "")
    if kind == "E":
        return f"{node[1][:60]}.{node[2][:60]}"
    if kind in "gG":
        return f"an iterator over {_format_container('l', content, limit)}"
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
    "c": lambda content, limit: repr(complex(*map(float.fromhex, content))),
    "P": lambda content, limit: content[:limit],
    "R": lambda content, limit: f"the shared {content[:limit]}",
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

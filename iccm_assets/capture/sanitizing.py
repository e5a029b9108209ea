"""Replace what PostgreSQL and JSON cannot hold before a conversation is stored, and count it.

Text: NUL and lone surrogates become U+FFFD. Numbers: NaN and infinity become strings, in test suites the
judge's ``{"$float": "nan"}``. Floats that jsonb would return as integers (from 1e16 up) are encoded in the
same way there, since the judge distinguishes ``1e16`` from ``10**16``. (J1)
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from iccm_assets.errors import InputError

_NUL_OR_SURROGATE = re.compile("[\x00\ud800-\udfff]")
_MAX_DEPTH = 100
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Sanitizer:
    """Cleans the parts of one conversation; ``counts`` holds the number of replacements by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def clean_text(self, value: str) -> str:
        """Return the text as PostgreSQL accepts it."""
        if value.isascii() and "\x00" not in value:
            return value
        return _NUL_OR_SURROGATE.sub(self._replacement, value)

    def clean_optional(self, value: str | None) -> str | None:
        """Clean a text that may be missing."""
        return None if value is None else self.clean_text(value)

    def clean_document(self, value: object, name: str) -> Any:
        """Return a JSON value as jsonb accepts it; raises ``InputError`` for what is not JSON at all."""
        return self._walk(value, self._number, 0, name)

    def clean_suite(self, value: object) -> Any:
        """Clean a test suite, whose numbers retain their types."""
        return self._walk(value, _typed_number, 0, "test suite")

    def _walk(self, value: object, number: Callable[[float], Any], depth: int, name: str) -> Any:
        if depth > _MAX_DEPTH:
            raise InputError(f"the {name} is nested deeper than {_MAX_DEPTH} levels")
        if isinstance(value, str):
            return self.clean_text(value)
        if isinstance(value, float):
            return number(value)
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, Mapping):
            pairs = ((self.clean_text(str(key)), item) for key, item in value.items())
            return {key: self._walk(item, number, depth + 1, name) for key, item in pairs}
        if isinstance(value, (list, tuple)):
            return [self._walk(item, number, depth + 1, name) for item in value]
        raise InputError(f"the {name} holds a {type(value).__name__}, which is not JSON")

    def _number(self, value: float) -> Any:
        if math.isfinite(value):
            return value
        self.counts["not_finite"] += 1
        return str(value)

    def _replacement(self, match: re.Match[str]) -> str:
        self.counts["nul" if match[0] == "\x00" else "lone_surrogate"] += 1
        return "\ufffd"


def _typed_number(value: float) -> Any:
    text = repr(value)
    return {"$float": text} if not math.isfinite(value) or "e+" in text else value


def to_json(value: object, name: str) -> str:
    """Serialize a cleaned value; raises ``InputError`` for integers with too many digits."""
    try:
        return _encode(value)
    except ValueError as error:
        raise InputError(f"the {name} is not JSON ({error})") from None

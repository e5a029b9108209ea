"""The canary set: the frozen evaluation set, versioned by the digest of its content (E1, X3)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.errors import InputError

FIELDS = ("item", "slice", "source_code", "requirements")


@dataclass(frozen=True)
class CanaryItem:
    """A program with its true requirements and its test suite."""

    item: str
    slice: str
    source_code: str
    requirements: str
    test_suite: dict[str, Any]


@dataclass(frozen=True)
class CanarySet:
    """Items in file order; `digest` (16 hex digits) changes with any character of any item."""

    items: tuple[CanaryItem, ...]
    digest: str

    @property
    def slices(self) -> dict[str, int]:
        """Number of items of each slice."""
        return dict(sorted(Counter(item.slice for item in self.items).items()))


def load_canary_set(path: str | Path) -> CanarySet:
    """Read JSON lines (optionally gzipped) of `{item, slice, source_code, requirements, test_suite}`.

    Raises:
        InputError: no such file, an invalid line, a missing field or a repeated item.
    """
    try:
        items = tuple(_parse_item(row, location) for location, row in read_json_lines(Path(path)))
    except InputError as error:
        hint = "Set ICCM_CANARY_SET to a JSON-lines file."
        raise InputError(f"the canary set {error.detail}", hint=hint) from None
    if not items:
        raise InputError(f"the canary set {path} is empty")
    [(name, count)] = Counter(item.item for item in items).most_common(1)
    if count > 1:
        raise InputError(f"the canary set {path} has the item {name!r} twice")
    canonical = json.dumps([vars(item) for item in items], sort_keys=True, ensure_ascii=False)
    return CanarySet(items, hashlib.sha256(canonical.encode()).hexdigest()[:16])


def _parse_item(row: dict[str, Any], location: str) -> CanaryItem:
    if any(not isinstance(row.get(field), str) for field in FIELDS):
        raise InputError(f"{location}: needs the text fields {', '.join(FIELDS)}")
    if not isinstance(row.get("test_suite"), dict):
        raise InputError(f"{location}: needs a test_suite object")
    return CanaryItem(**{field: row[field] for field in (*FIELDS, "test_suite")})

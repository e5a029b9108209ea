"""The canary set: the frozen evaluation set, versioned by the digest of its content (E1, X3)."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iccm_assets.errors import InputError

FIELDS = ("item", "slice", "source_code", "requirements")


@dataclass(frozen=True)
class CanaryItem:
    """One program with its true requirements and its test suite (SPEC J1)."""

    item: str
    slice: str
    source_code: str
    requirements: str
    test_suite: dict[str, Any]


@dataclass(frozen=True)
class CanarySet:
    """Items in file order; `digest` changes with any character of any item."""

    items: tuple[CanaryItem, ...]
    digest: str

    @property
    def slices(self) -> dict[str, int]:
        """Number of items of each slice."""
        names = [item.slice for item in self.items]
        return {name: names.count(name) for name in sorted(set(names))}


def load_canary_set(path: str | Path) -> CanarySet:
    """Read JSON lines (optionally gzipped) of `{item, slice, source_code, requirements, test_suite}`.

    Raises:
        InputError: no such file, an unreadable line, a missing field or an item named twice.
    """
    items: list[CanaryItem] = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        if line.strip():
            items.append(_item(line, f"{path}, line {number}"))
    if not items:
        raise InputError(f"the canary set {path} is empty")
    names = [item.item for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the canary set {path} has the item {twice!r} twice")
    canonical = json.dumps([vars(item) for item in items], sort_keys=True, ensure_ascii=False)
    return CanarySet(tuple(items), hashlib.sha256(canonical.encode()).hexdigest()[:16])


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return text.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"the canary set {path}: {error}", hint="Set ICCM_CANARY_SET to a JSON-lines file."
        ) from None


def _item(line: str, where: str) -> CanaryItem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or any(not isinstance(row.get(field), str) for field in FIELDS):
        raise InputError(f"{where}: wants the text fields {', '.join(FIELDS)}")
    if not isinstance(row.get("test_suite"), dict):
        raise InputError(f"{where}: wants a test_suite object (SPEC J1)")
    texts = {field: row[field] for field in FIELDS}
    return CanaryItem(**texts, test_suite=row["test_suite"])

"""Format values for display: numbers, names, and images and tables as Markdown for Dagster's UI."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any


def format_number(value: float | None, digits: int = 3, missing: str = "-") -> str:
    """Format a number with fixed decimals; ``missing`` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def format_duration(seconds: float) -> str:
    """Format a duration in the unit that suits its length: "40 s", "3 min", "2.5 h", "3 days"."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{round(seconds / size, int(size > 1)):g} {unit}"
    return f"{round(seconds / 86_400, 1):g} days"


def snake_case_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values under metadata names: prefix and key in lower case, joined by underscores."""
    return {
        re.sub(r"[\W_]+", "_", f"{prefix} {key}").strip("_").lower(): value
        for key, value in sorted(values.items())
    }


def markdown_image(png: bytes, alt: str) -> str:
    """Return an image as Markdown with the bytes embedded, for ``MetadataValue.md``."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows of equal keys as a Markdown table."""
    if not rows:
        return "nothing was measured"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

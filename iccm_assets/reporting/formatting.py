"""Format values for display: numbers, and images and tables as Markdown for Dagster's UI."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any


def format_number(value: float | None, digits: int = 3, missing: str = "-") -> str:
    """Format a number with fixed decimals; ``missing`` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def markdown_image(png: bytes, alt: str) -> str:
    """Return an image as Markdown with the bytes embedded, for ``MetadataValue.md``."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows of equal keys as a Markdown table."""
    if not rows:
        return "nothing was measured"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

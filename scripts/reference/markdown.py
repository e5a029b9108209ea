"""Markdown of headings, tables and code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def page(title: str, introduction: str, *sections: str) -> str:
    """Join the parts of a page, with a blank line between them."""
    return "\n\n".join([f"# {title}", introduction.strip(), *filter(None, sections)]) + "\n"


def section(title: str, *paragraphs: str, level: int = 2) -> str:
    """Return a heading and what stands below it."""
    return "\n\n".join(["#" * level + f" {title}", *filter(None, paragraphs)])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; empty without rows."""
    lines = [_row(row) for row in rows]
    return "\n".join([_row(head), _row(["---"] * len(head)), *lines]) if lines else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def code(text: object) -> str:
    """Return text as inline code; empty text stays empty."""
    return f"`{text}`" if str(text) else ""


def codes(texts: Iterable[object], separator: str = ", ") -> str:
    """Join inline code of several texts."""
    return separator.join(map(code, texts))


def prose(text: str | None) -> str:
    """Return a description as Markdown: angle brackets and pairs of underscores stay as they are."""
    parts = (text or "").split("`")
    for index in range(0, len(parts), 2):
        parts[index] = parts[index].replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")
    return "`".join(parts)

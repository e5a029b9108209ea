"""Items of a requirements text: numbered lines, lines with ids, table rows, else its parts in order. (C3)"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iccm_assets.capture.requirement_talk import begins_with_explanation

ID_PREFIX = r"(?:REQ|FR|NFR|SR|SRS|SYS|US|AC|BR|UC|HLR|LLR|FUNC|SWR|R|F)"
NOUN = (
    r"(?:requirements?|items?|points?|numbers?|no\.?|nr\.?|statements?|sentences?|bullets?|criterion"
    r"|criteria|rules?"
    r"|anforderung(?:en)?|punkt|nummer|exigence|point|numéro|requisito|punto|número|要件|需求|要求|第)"
)
NUMBER = r"\d{1,5}(?:\.\d{1,4}){0,4}"
_ITEM = re.compile(
    r"(?P<lead>[ \t>|]{0,40}(?:[-*+•][ \t]+)?[*_`\[(\"'“]{0,4})"
    rf"(?P<key>{ID_PREFIX}[-_. ]?{NUMBER}|{NOUN}[ ]#?{NUMBER}(?=[\])*_]{{0,4}}[ \t]{{0,2}}[.:：)|])"
    rf"|#?{NUMBER}(?=[\])*_]{{0,4}}[.:：)|]|[ ]\|))"
    r"(?P<sep>[\])*_`]{0,4}[ \t]{0,3}[.:：)|\-–—]?[*_`]{0,4}:?[ \t]+)(?P<text>\S.*)",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?P<lead>[ \t>]{0,40}(?:[-*+•◦][ \t]+))(?P<text>\S.*)")
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_EXPLAINS = re.compile(
    r"(?:this|that|it) (?:means|says|is because)\b|because\b|(?:is |should |must |will )?(?:now\b"
    r"|(?:reads?|becomes?)(?: now| as follows)?[ ]?[:\"“'`])",
    re.IGNORECASE,
)
_WRAPPING = ("**", "__", '"', "“", "”", "„", "«", "»", "'", "`", "*", "‘", "’")
MAX_LINE = 4000  # characters of a line that are read


@dataclass(frozen=True)
class RequirementItem:
    """An item of the text: its key, and lines ``first`` to ``last`` exclusive."""

    key: str
    first: int
    last: int


def find_items(lines: list[str]) -> list[RequirementItem]:
    starts = [
        (index, parse_key(match["key"]))
        for index, line in enumerate(lines)
        if (match := _ITEM.match(line[:MAX_LINE])) and not is_talk(match["text"])
    ]
    ends = [index for index, _ in starts[1:]] + [len(lines)]
    return [
        RequirementItem(key, first, _item_end(lines, first, end))
        for (first, key), end in zip(starts, ends, strict=False)
    ]


def _item_end(lines: list[str], first: int, end: int) -> int:
    """Return where an item ends: at a blank line, unless what follows it is indented."""
    for index in range(first + 1, end):
        if lines[index].lstrip().startswith(("```", "~~~")):
            return index
        if not lines[index].strip():
            following = lines[index + 1] if index + 1 < end else ""
            if not following.startswith(("  ", "\t")):
                return index
    return end


def get_item_text(lines: list[str], item: RequirementItem) -> str:
    match = _ITEM.match(lines[item.first][:MAX_LINE])
    assert match is not None
    text = match["text"]
    if match["lead"].lstrip(" >").startswith("|"):
        text = max(text.split("|"), key=len)
    rest = lines[item.first][MAX_LINE:]
    return "\n".join([strip_marks(text + rest), *lines[item.first + 1 : item.last]]).rstrip()


def parse_key(text: str) -> str:
    """Return the key of an item: its number, with the letters of its id before it, without leading zeros."""
    match = re.fullmatch(rf"(?:({ID_PREFIX})[-_. ]?|[^\d]*)({NUMBER})", text, re.IGNORECASE)
    assert match is not None
    number = ".".join(part.lstrip("0") or "0" for part in match[2].split("."))
    return f"{(match[1] or '').upper()}{number}"


def get_number(key: str) -> str:
    return key.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def strip_marks(text: str) -> str:
    """Remove quotation marks and emphasis around a whole text."""
    text = text.strip()
    for opening in _WRAPPING:
        closing = {"“": "”", "„": "“", "«": "»", "‘": "’"}.get(opening, opening)
        if len(text) > 2 * len(opening) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                return inner.strip()
    return text


def count_parts(text: str) -> int:
    """Count the items of a text: numbered, else by bullets, else its sentences."""
    lines = text.split("\n")
    count = len(find_items(lines)) or sum(_BULLET.match(line[:MAX_LINE]) is not None for line in lines)
    return count or sum(bool(part.strip()) for part in SENTENCE.split(text))


def apply_changes(previous: str, changes: Mapping[str, str | None]) -> str:
    lines = previous.split("\n")
    items = find_items(lines)
    if not items:
        return _apply_by_position(previous, changes)
    keys = {item.key: item.key for item in items}
    by_number = {get_number(item.key): item.key for item in items}
    by_key = {keys.get(key, by_number.get(get_number(key), key)): text for key, text in changes.items()}
    result = lines[: items[0].first]
    for item, following in zip(items, [*items[1:], None], strict=True):
        text = by_key.get(item.key, "")
        if text:
            result.append(_replace(lines[item.first], text))
        elif text == "":
            result += lines[item.first : item.last]
        if following is not None:
            result += lines[item.last : following.first]
    form = lines[items[-1].first]
    result += [_renumber(form, key, text) for key, text in by_key.items() if text and key not in keys]
    return "\n".join(result + lines[items[-1].last :])


def _replace(line: str, text: str) -> str:
    """Return the line of an item with other words behind its marker."""
    match = _ITEM.match(line[:MAX_LINE])
    if match is None:
        return text
    if match["lead"].lstrip(" >").startswith("|"):
        cells = match["text"].split("|")
        longest = max(range(len(cells)), key=lambda index: len(cells[index]))
        cells[longest] = f" {text} " if longest else f"{text} "
        return line[: match.start("text")] + "|".join(cells)
    return line[: match.start("text")] + text


def _renumber(line: str, key: str, text: str) -> str:
    """Return a new item in the form of another item's line."""
    match = _ITEM.match(line[:MAX_LINE])
    if match is None:
        return f"{key}. {text}"
    digits = re.sub(rf"{NUMBER}$", get_number(key), match["key"])
    return _replace(line[: match.start("key")] + digits + line[match.end("key") :], text)


def _apply_by_position(previous: str, changes: Mapping[str, str | None]) -> str:
    """Change list items without numbers, or sentences, by their position."""
    lines = previous.split("\n")
    bullets = [index for index, line in enumerate(lines) if _BULLET.match(line[:MAX_LINE])]
    if not bullets:
        sentences = re.split(r"((?<=[.!?])\s+|(?<=[。！？]))", previous)
        _change_parts(sentences, range(0, len(sentences), 2), changes, is_list=False)
        return "".join(sentences).strip()
    _change_parts(lines, bullets, changes, is_list=True)
    listed = frozenset(bullets)
    return "\n".join(line for index, line in enumerate(lines) if line or index not in listed)


def _change_parts(
    parts: list[str], places: Sequence[int], changes: Mapping[str, str | None], *, is_list: bool
) -> None:
    for key, text in changes.items():
        place = _find_place(places, get_number(key))
        if place is not None:
            bullet = _BULLET.match(parts[place]) if is_list and text is not None else None
            parts[place] = f"{bullet['lead'] if bullet else ''}{text or ''}"
        elif text:
            parts.append(f"{'- ' if is_list else ' '}{text}")


def _find_place(places: Sequence[int], number: str) -> int | None:
    return places[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(places) else None


def is_talk(text: str) -> bool:
    """Whether the words of an item explain or ask."""
    explains = _EXPLAINS.match(text) is not None or begins_with_explanation(f"item {text[:200]}")
    return explains or text.rstrip().endswith("?")

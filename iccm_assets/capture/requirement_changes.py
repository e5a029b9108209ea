"""Merge an answer that gives only changed items into the requirements that it changes. (C3)

Items are numbered lines, lines with ids, rows of a table; without any, list items or sentences by position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from iccm_assets.capture.requirement_statements import find_requirements

_ID_PREFIX = r"(?:REQ|FR|NFR|SR|SRS|SYS|US|AC|BR|UC|HLR|LLR|FUNC|SWR|R|F)"
_NOUN = (
    r"(?:requirements?|items?|points?|numbers?|no\.?|nr\.?|statements?|sentences?|bullets?|criterion"
    r"|criteria|rules?"
    r"|anforderung(?:en)?|punkt|nummer|exigence|point|numéro|requisito|punto|número|要件|需求|要求|第)"
)
_NUMBER = r"\d{1,5}(?:\.\d{1,4}){0,4}"
_ITEM = re.compile(
    r"(?P<lead>[ \t>|]{0,40}(?:[-*+•][ \t]+)?[*_`\[(\"'“]{0,4})"
    rf"(?P<key>{_ID_PREFIX}[-_. ]?{_NUMBER}|{_NOUN}[ ]#?{_NUMBER}(?=[\])*_]{{0,4}}[ \t]{{0,2}}[.:：)|])"
    rf"|#?{_NUMBER}(?=[\])*_]{{0,4}}[.:：)|]|[ ]\|))"
    r"(?P<sep>[\])*_`]{0,4}[ \t]{0,3}[.:：)|\-–—]?[*_`]{0,4}:?[ \t]+)(?P<text>\S.*)",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?P<lead>[ \t>]{0,40}(?:[-*+•◦][ \t]+))(?P<text>\S.*)")
_ORDINALS = {
    word: str(number)
    for number, words in enumerate(
        (
            ("first", "1st", "erste", "première", "premier", "primer", "primero"),
            ("second", "2nd", "zweite", "deuxième", "segundo"),
            ("third", "3rd", "dritte", "troisième", "tercero", "tercer"),
            ("fourth", "4th", "vierte", "quatrième", "cuarto"),
            ("fifth", "5th", "fünfte", "cinquième", "quinto"),
            ("sixth", "6th", "sechste"),
            ("seventh", "7th", "siebte"),
            ("eighth", "8th", "achte"),
            ("ninth", "9th", "neunte"),
            ("tenth", "10th", "zehnte"),
        ),
        start=1,
    )
    for word in words
}
_REFERENCE = re.compile(
    rf"\b(?:{_NOUN}[ ]?#?(?P<number>{_NUMBER})|(?P<id>{_ID_PREFIX}[-_.]?{_NUMBER})"
    rf"|(?P<ordinal>{'|'.join(_ORDINALS)})(?:[ ]{_NOUN}|[ ]one)?)\b|#(?P<hash>{_NUMBER})\b",
    re.IGNORECASE,
)
# Between the reference to an item and its new words.
_NOW = re.compile(
    r"[*_`\"')\]]{0,4}(?:[ ](?:now|should|shall|has|have|is|was|been|be|then|instead|to|therefore|will))*[ ]?"
    r"(?:reads?|becomes?|updated|changed|revised|corrected|modified|reworded|rephrased|shortened|replaced"
    r"|amended|rewritten"
    r"|lautet|wird zu|devient|queda|heißt)?(?:[ ](?:now|to|as|by|into|with|jetzt|nun|maintenant|ahora"
    r"|así))*[ ]?"
    r"(?:[:：]|[-–—](?=[ ])|(?=[\"“„«‘`]))[*_]{0,3}[ \t]*",
    re.IGNORECASE,
)
_IS_NOW = re.compile(r"[*_`]{0,3}[ ](?:is now|now is|reads now|now reads|becomes)[ ](?=\S)", re.IGNORECASE)
_CHANGE_WORD = re.compile(
    r"\b(?:updated?|chang\w+|revised?|corrected|new|modified|reworded|rephrased|shorten\w*|replaced?"
    r"|amended|now|instead"
    r"|fixed|rewritten|geändert\w*|neue?|aktualisiert\w*|modifié\w*|nouvelle?|actualizad\w*|nuev\w*)\b",
    re.IGNORECASE,
)
_REMOVED = re.compile(
    r"[*_`]{0,3}[ ](?:(?:is|was|has been|are|were)[ ])?(?:now[ ])?(?:removed|deleted|dropped|gone"
    r"|no longer needed)\b"
    r"|[ ](?:entfällt|est supprimée?|queda eliminad[oa])\b",
    re.IGNORECASE,
)
_REMOVE = re.compile(r"\b(?:removed|deleted|dropped|took out)[ ]$", re.IGNORECASE)
_REST = re.compile(
    r"\b(?:rest|others?|other (?:requirements|items|points|ones)|remaining \w+|everything else"
    r"|all else)[ ](?:\w+[ ])?"
    r"(?:stays?|remains?|(?:is|are)[ ](?:unchanged|the same|not changed)|as (?:is|before)|unchanged"
    r"|not changed)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_EXPLAINS = re.compile(r"(?:this|that|it) (?:means|says|is because)\b|because\b", re.IGNORECASE)
_WRAPPING = ("**", "__", '"', "“", "”", "„", "«", "»", "'", "`", "*", "‘", "’")
_MAX_LINE = 4000  # characters of a line that are read
_MAX_ITEM_LINES = 50  # of an item that words introduce


@dataclass(frozen=True)
class _Item:
    """An item of the text: its key, and lines ``first`` to ``last`` exclusive."""

    key: str
    first: int
    last: int


def merge_changes(previous: str | None, answer: str, request: str) -> str | None:
    """Return ``previous`` with the items that the answer changes, adds or removes.

    None if the answer is no change of single items: then it stands for itself. ``request`` is what the
    developer wrote before it: it may name the item.
    """
    if previous is None or not answer.strip():
        return None
    changes = _find_changes(answer, previous, request)
    return _apply(previous, changes) if changes else None


def _find_changes(answer: str, previous: str, request: str) -> dict[str, str | None]:
    """Return the new words of each changed item by key, None for a removed one; empty if all is new."""
    lines = answer.split("\n")
    items = _find_items(lines)
    listed = {item.key: _item_text(lines, item) for item in items}
    known = [item.key for item in _find_items(previous.split("\n"))]
    requested = _references(request)
    if listed and not _REST.search(answer) and _is_complete(list(listed), known, requested):
        return {}
    changes: dict[str, str | None] = {**_named_changes(lines), **_removals(lines)}
    if listed:
        return {**changes, **listed}
    if not changes and len(requested) == 1 and _count_parts(previous) > 1:
        statement = _single_statement(answer)
        return {requested[0]: statement} if statement else {}
    return changes


def _is_complete(listed: list[str], known: list[str], requested: list[str]) -> bool:
    """Whether the listed items are a whole text: they begin with the first, and leave no gap."""
    numbers = [_number(key) for key in listed]
    first = _number(known[0]) if known else "1"
    if numbers[0] not in {first, "1", "0"}:
        return False
    if set(numbers) <= set(map(_number, requested)):
        return False
    order = {number: position for position, number in enumerate(map(_number, known))}
    positions = [order[number] for number in dict.fromkeys(numbers) if number in order]
    return positions == list(range(len(positions)))


def _find_items(lines: list[str]) -> list[_Item]:
    starts = [
        (index, _key(match["key"]))
        for index, line in enumerate(lines)
        if (match := _ITEM.match(line[:_MAX_LINE])) and not _EXPLAINS.match(match["text"])
    ]
    ends = [index for index, _ in starts[1:]] + [len(lines)]
    return [
        _Item(key, first, _item_end(lines, first, end))
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


def _item_text(lines: list[str], item: _Item) -> str:
    match = _ITEM.match(lines[item.first][:_MAX_LINE])
    assert match is not None
    text = match["text"]
    if match["lead"].lstrip(" >").startswith("|"):
        text = max(text.split("|"), key=len)
    rest = lines[item.first][_MAX_LINE:]
    return "\n".join([_strip(text + rest), *lines[item.first + 1 : item.last]]).rstrip()


def _named_changes(lines: list[str]) -> dict[str, str]:
    """Return the items that words name, as in "requirement 2 now reads: …", with what follows."""
    changes: dict[str, str] = {}
    for index, line in enumerate(lines):
        for reference in _REFERENCE.finditer(line[:_MAX_LINE]):
            end = _NOW.match(line, reference.end()) or _IS_NOW.match(line, reference.end())
            if end is not None:
                text = line[end.end() :].strip()
            elif line.rstrip(" *_").endswith((":", "：")) and _CHANGE_WORD.search(line[:_MAX_LINE]):
                text = ""
            else:
                continue
            text = _strip(text or _next_paragraph(lines, index + 1))
            if text and not _EXPLAINS.match(text):
                changes[_reference_key(reference)] = text
            break
    return changes


def _removals(lines: list[str]) -> dict[str, None]:
    return {
        _reference_key(reference): None
        for line in lines
        for reference in _REFERENCE.finditer(line[:_MAX_LINE])
        if _REMOVED.match(line, reference.end())
        or _REMOVE.search(line, max(0, reference.start() - 20), reference.start())
    }


def _next_paragraph(lines: list[str], first: int) -> str:
    while first < len(lines) and (
        not lines[first].strip() or lines[first].lstrip().startswith(("```", "~~~"))
    ):
        first += 1
    last = first
    while (
        last < min(len(lines), first + _MAX_ITEM_LINES)
        and lines[last].strip()
        and not lines[last].lstrip().startswith(("```", "~~~"))
    ):
        last += 1
    return "\n".join(line.lstrip("> ") for line in lines[first:last])


def _single_statement(answer: str) -> str:
    """Return the statement of an answer that has only this, perhaps among words of chat."""
    paragraphs = [part.strip() for part in answer.split("\n\n") if part.strip()]
    statements = [part for part in paragraphs if find_requirements(part).text is not None]
    if len(statements) != 1 or "\n" in statements[0] or len(_SENTENCE.split(statements[0])) > 2:
        return ""
    return _strip(statements[0].lstrip("-*+•> "))


def _references(request: str) -> list[str]:
    references = _REFERENCE.finditer(request[:20_000])
    return list(dict.fromkeys(_reference_key(reference) for reference in references))


def _reference_key(reference: re.Match[str]) -> str:
    if ordinal := reference["ordinal"]:
        return _ORDINALS[ordinal.lower()]
    return _key(reference["number"] or reference["id"] or reference["hash"])


def _key(text: str) -> str:
    """Return the key of an item: its number, with the letters of its id before it, without leading zeros."""
    match = re.fullmatch(rf"(?:({_ID_PREFIX})[-_. ]?|[^\d]*)({_NUMBER})", text, re.IGNORECASE)
    assert match is not None
    number = ".".join(part.lstrip("0") or "0" for part in match[2].split("."))
    return f"{(match[1] or '').upper()}{number}"


def _number(key: str) -> str:
    return key.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _strip(text: str) -> str:
    """Remove quotation marks and emphasis around a whole text."""
    text = text.strip()
    for opening in _WRAPPING:
        closing = {"“": "”", "„": "“", "«": "»", "‘": "’"}.get(opening, opening)
        if len(text) > 2 * len(opening) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                return inner.strip()
    return text


def _count_parts(text: str) -> int:
    """Count the items of a text: numbered, else by bullets, else its sentences."""
    lines = text.split("\n")
    count = len(_find_items(lines)) or sum(_BULLET.match(line[:_MAX_LINE]) is not None for line in lines)
    return count or sum(bool(part.strip()) for part in _SENTENCE.split(text))


def _apply(previous: str, changes: Mapping[str, str | None]) -> str:
    lines = previous.split("\n")
    items = _find_items(lines)
    if not items:
        return _apply_by_position(previous, changes)
    keys = {item.key for item in items}
    by_number = {_number(item.key): item.key for item in items}
    by_key = {key if key in keys else by_number.get(_number(key), key): text for key, text in changes.items()}
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
    match = _ITEM.match(line[:_MAX_LINE])
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
    match = _ITEM.match(line[:_MAX_LINE])
    if match is None:
        return f"{key}. {text}"
    digits = re.sub(rf"{_NUMBER}$", _number(key), match["key"])
    return _replace(line[: match.start("key")] + digits + line[match.end("key") :], text)


def _apply_by_position(previous: str, changes: Mapping[str, str | None]) -> str:
    """Change list items without numbers, or sentences, by their position."""
    lines = previous.split("\n")
    bullets = [index for index, line in enumerate(lines) if _BULLET.match(line[:_MAX_LINE])]
    parts = lines if bullets else re.split(r"((?<=[.!?])\s+|(?<=[。！？]))", previous)
    places = bullets or list(range(0, len(parts), 2))
    for key, text in changes.items():
        number = _number(key)
        place = places[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(places) else None
        bullet = _BULLET.match(parts[place]) if place is not None else None
        if place is not None:
            parts[place] = "" if text is None else (bullet["lead"] if bullet and bullets else "") + text
        elif text:
            parts.append(f"{'- ' if bullets else ' '}{text}")
    if bullets:
        removed = {index for index in bullets if not parts[index]}
        return "\n".join(part for index, part in enumerate(parts) if index not in removed)
    return "".join(parts).strip()

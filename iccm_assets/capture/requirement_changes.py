"""Merge an answer that gives only changed items into the requirements that it changes. (C3)"""

from __future__ import annotations

import re
from collections.abc import Iterator

from iccm_assets.capture.requirement_items import (
    ID_PREFIX,
    MAX_LINE,
    NOUN,
    NUMBER,
    SENTENCE,
    apply_changes,
    count_parts,
    find_items,
    get_item_text,
    get_number,
    is_talk,
    parse_key,
    strip_marks,
)
from iccm_assets.capture.requirement_statements import find_requirements

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
    rf"\b(?:(?P<noun>{NOUN})[ ]?#?(?P<number>{NUMBER})|(?P<id>{ID_PREFIX}[-_.]?{NUMBER})"
    rf"|(?P<ordinal>{'|'.join(_ORDINALS)})[ ](?P<place>{NOUN}|one))(?![0-9A-Za-z_])|#(?P<hash>{NUMBER})\b",
    re.IGNORECASE,
)
# Nouns that a requirement of some code may use for its own things.
_AMBIGUOUS = re.compile(
    r"(?:items?|points?|numbers?|no\.?|nr\.?|statements?|sentences?|bullets?|rules?|one|punkt|nummer|point"
    r"|numéro|punto"
    r"|número|第)$",
    re.IGNORECASE,
)
_UNCLEAR = re.compile(r"(?:numbers?|no\.?|nr\.?|número|numéro|nummer)$", re.IGNORECASE)
_UNCLEAR_PLACE = re.compile(r"(?:items?|numbers?|points?)$", re.IGNORECASE)
_LEAD = re.compile(
    r"\W*(?:(?:sure|ok|okay|of course|yes|done|here(?:'s| is| are)?|i(?:'ve| have)?|changed|updated"
    r"|revised|corrected"
    r"|modified|reworded|shortened|new|the|version of|text of|wording of|for|and|now|only)\b[\s,:.!*_-]*)*",
    re.IGNORECASE,
)
# Between the reference to an item and its new words.
_NOW = re.compile(
    r"[*_`\"')\]]{0,4}(?:[ ](?:now|should|shall|has|have|is|was|been|be|then|instead|to|therefore|will"
    r"|must|would))*[ ]?"
    r"(?:[ ]?\((?:changed|updated|revised|corrected|new)[^()\n]{0,40}\))?[ ]?(?:,?[ ]use|say|as follows"
    r"|changes|reads?|becomes?|updated|changed|revised|corrected|modified|reworded|rephrased|shortened"
    r"|replaced"
    r"|amended|rewritten"
    r"|lautet|wird zu|devient|queda|heißt)?(?:[ ](?:now|to|as|by|into|with|jetzt|nun|maintenant|ahora"
    r"|así))*[ ]?"
    r"(?:[:：]|→|->|=>|[-–—](?=[ ])|(?=[\"“„«‘`]))[*_]{0,3}[ \t]*",
    re.IGNORECASE,
)
_CJK_NOW = re.compile(r"[^。\n]{0,30}(?:変更|更新|修正|改|变更|修改)[^。\n]{0,20}[:：]")
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
_MAX_ITEM_LINES = 50  # of an item that words introduce
_MAX_REQUEST = 20_000  # characters of a request that are read


def may_change(answer: str, request: str) -> bool:
    """Whether an answer has items, or it or the request names some; the rest cannot change single items."""
    text = f"{answer}\n{request[:_MAX_REQUEST]}"
    return _REFERENCE.search(text) is not None or bool(find_items(answer.split("\n")))


def merge_changes(previous: str | None, answer: str, request: str) -> str | None:
    """Return ``previous`` with the items that the answer changes, adds or removes.

    None if the answer is no change of single items: then it stands for itself. ``request`` is what the
    developer wrote before it: it may name the item.
    """
    if previous is None or not answer.strip():
        return None
    changes = _find_changes(answer, previous, request)
    return apply_changes(previous, changes) if changes else None


def _find_changes(answer: str, previous: str, request: str) -> dict[str, str | None]:
    """Return the new words of each changed item by key, None for a removed one; empty if all is new."""
    lines = answer.split("\n")
    items = find_items(lines)
    listed = {item.key: get_item_text(lines, item) for item in items}
    known = [item.key for item in find_items(previous.split("\n"))]
    requested = _references(request)
    parts = count_parts(previous)
    if listed and not _REST.search(answer) and _is_complete(list(listed), known, requested, parts):
        return {}
    changes: dict[str, str | None] = {**_named_changes(lines), **_removals(lines), **listed}
    numbers = set(map(get_number, known)) or set(map(str, range(1, parts + 1)))
    if not changes and len(requested) == 1 and parts > 1 and get_number(requested[0]) in numbers:
        statement = _single_statement(answer)
        return {requested[0]: statement} if statement else {}
    return changes


def _is_complete(listed: list[str], known: list[str], requested: list[str], parts: int) -> bool:
    """Whether the listed items are a whole text: they begin with the first, and leave no gap.

    ``known`` are the items of the text before; without any, it has so many ``parts``.
    """
    numbers = [get_number(key) for key in listed]
    order = {number: position for position, number in enumerate(map(get_number, known))}
    if numbers[0] not in {next(iter(order), "1"), "1", "0"}:
        order = order or {str(number): number for number in range(1, parts + 1)}
        return not (any(number in order for number in numbers) or numbers[0] == str(len(order) + 1))
    if set(numbers) <= set(map(get_number, requested)):
        return False
    positions = [order[number] for number in dict.fromkeys(numbers) if number in order]
    return positions == list(range(len(positions)))


def _named_changes(lines: list[str]) -> dict[str, str]:
    """Return the items that words name, as in "requirement 2 now reads: …", with what follows."""
    changes: dict[str, str] = {}
    for index, line in enumerate(lines):
        for reference in _find_references(line):
            end = _match_now(line, reference.end())
            if end is not None:
                text = line[end.end() :].strip()
            elif _introduces(line):
                text = ""
            else:
                continue
            text = strip_marks(text or _next_paragraph(lines, index + 1))
            if text and not is_talk(text):
                changes[_reference_key(reference)] = text
            break
    return changes


def _match_now(line: str, position: int) -> re.Match[str] | None:
    """Match what stands between the reference to an item and its new words."""
    return next(
        (end for pattern in (_NOW, _IS_NOW, _CJK_NOW) if (end := pattern.match(line, position))), None
    )


def _removals(lines: list[str]) -> dict[str, None]:
    return {
        _reference_key(reference): None
        for line in lines
        for reference in _find_references(line)
        if _REMOVED.match(line, reference.end())
        or _REMOVE.search(line, max(0, reference.start() - 20), reference.start())
    }


def _find_references(line: str) -> Iterator[re.Match[str]]:
    """Yield the references to items of the text; "item 3" in the midst of a sentence may be anything."""
    for reference in _REFERENCE.finditer(line[:MAX_LINE]):
        noun = reference["noun"] or reference["place"] or ""
        if not _AMBIGUOUS.match(noun) or _LEAD.fullmatch(line, 0, reference.start()):
            yield reference


def _introduces(line: str) -> bool:
    """Whether a line of chat says that a changed item follows."""
    if not line.rstrip(" *_").endswith((":", "：")) or not _CHANGE_WORD.search(line[:MAX_LINE]):
        return False
    return find_requirements(line).text is None


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
    if len(statements) != 1 or "\n" in statements[0] or len(SENTENCE.split(statements[0])) > 2:
        return ""
    return strip_marks(statements[0].lstrip("-*+•> "))


def _references(request: str) -> list[str]:
    """Return the keys of the items that a developer names; "the first item" may be one of a list."""
    return list(
        dict.fromkeys(
            _reference_key(reference)
            for reference in _REFERENCE.finditer(request[:_MAX_REQUEST])
            if not _UNCLEAR.match(reference["noun"] or "")
            and not _UNCLEAR_PLACE.match(reference["place"] or "")
        )
    )


def _reference_key(reference: re.Match[str]) -> str:
    if ordinal := reference["ordinal"]:
        return _ORDINALS[ordinal.lower()]
    return parse_key(reference["number"] or reference["id"] or reference["hash"])

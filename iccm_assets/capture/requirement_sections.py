"""Recognize requirements without a modal verb: sections, numbered lines, tables, stories, scenarios. (C3a)"""

from __future__ import annotations

import re

from iccm_assets.capture.requirement_talk import FIRST_PERSON, begins_with_explanation, rate_explanation
from iccm_assets.capture.requirement_words import HEADING_WORDS, SOFTWARE

MARKER = re.compile(
    r"[ \t>]*(?:[-*+•◦–]|\(?\d{1,4}(?:\.\d{1,4}){0,5}[.):]|\d{1,4}(?:\.\d{1,4}){1,5}"
    r"|\(?[a-zA-Zivx]{1,4}[.)]|\\item"
    r"|\[[ xX]\])[ \t]+(?:\[[ xX]\][ \t]+)?"
)
ID = re.compile(
    r"[ \t>|*_\-\[(\"']{0,12}(?:(?:REQ|FR|NFR|SR|SRS|SYS|US|AC|BR|UC|HLR|LLR|FUNC|SWR|R"
    r"|F)[-_. ]?\d{1,5}(?:[.-]\d{1,4})*"
    r"[\])*_\"']{0,4}\s{0,3}[:.)|\-–—]?|(?:requirement|anforderung|exigence|requisito|criterion|要件|需求|要求)"
    r" ?#?\d{1,4}[\])*_\"']{0,4}\s{0,3}[:：.)|\-–—])[*_\"']{0,3}\s{0,3}(?=\S)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"[ \t>]{0,8}(?:#{1,6}[ \t]+|\d{1,3}(?:\.\d{1,3}){0,4}\.?[ \t]+|\\(?:sub)*section\*?\{|={1,5}[ \t])?"
)
_BOLD = re.compile(r"[ \t>]*(?:\*\*|__)[^*_\n]{1,100}(?:\*\*|__):?[ \t]*")
_UNDERLINE = re.compile(r"[ \t]*(?:={3,}|-{3,})[ \t]*")
_TABLE_RULE = re.compile(r"[ \t>]*\|?[ \t:|+=-]{3,}\|?[ \t]*")
_STORY = re.compile(
    r"\bas an? (?!next|first|last|final|result|rule|consequence|side|matter|workaround|test"
    r"|start)[^.,\n:]{1,80},?"
    r"[*_ \n]{1,6}i (?:want|need|wish|would like|'d like|must be able|should be able)\b"
    r"|\bals [^.,\n:]{1,60} (?:möchte|will|brauche) ich\b|\ben tant qu[e'’][^.,\n:]{1,60},? je (?:veux"
    r"|souhaite|voudrais)\b"
    r"|\bcomo [^.,\n:]{1,60},? (?:quiero|necesito|quisiera)\b|作为[^。\n]{1,40}我(?:想|希望|需要|要)"
    r"|として[^。\n]{1,60}(?:したい|たい)",
    re.IGNORECASE,
)
_SCENARIO = re.compile(
    r"(?:scenario(?: outline)?|example|feature|szenario|funktionalität|scénario|fonctionnalité|escenario"
    r"|característica"
    r"|シナリオ|機能|场景|場景|功能|rule)\s{0,3}[:：]",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"(?:given|when|angenommen|gegeben sei|wenn|étant donné|etant donné|soit|quand|lorsqu[e'’]|dado|dada"
    r"|cuando|前提|もし"
    r"|假如|假设|假設|当|當)(?=\W|\w*[\u3040-\u9fff])",
    re.IGNORECASE,
)
_THEN = re.compile(r"(?:then|dann|alors|entonces|ならば|那么|那麼)(?=\W|[\u3040-\u9fff])", re.IGNORECASE)
_ONE_LINE_SCENARIO = re.compile(r"\bgiven\b.{1,400}\bwhen\b.{1,400}\bthen\b", re.IGNORECASE)
_FILE = re.compile(r"[`\"']?[\w./\\-]+\.\w{1,5}[`\"']?")
_WORD = re.compile(r"\w+")
# A heading without marks of its own.
_PLAIN_HEADING = re.compile(
    r"(?:\d[\d.]*\s+)?(?:[\w-]{1,20} ){0,2}(?:requirements?|criteria|specification|behaviou?r)"
    r"(?: (?:specification|document|list))?(?: (?:for|of) .{1,60})?",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"[*_]{0,2}(?:requirements?|acceptance criteri(?:on|a))[*_]{0,2}:[*_]{0,2}\s+(?=\S)", re.IGNORECASE
)
_ANNOUNCEMENT = re.compile(r"(?:below|here|following|these|the following)\b", re.IGNORECASE)
_REPORT = re.compile(
    r"\bi(?:'ve| have)? (?:found|read|noticed|saw|see|checked|saved|need|looked|stored|put)\b"
    r"|\bquestions?\b",
    re.IGNORECASE,
)
_PRIORITY = re.compile(r"[(\[](?:must|should|shall|could)(?:[ -]have)?[)\]]", re.IGNORECASE)
_AFTER_ID = re.compile(r"(?:now|says?|means?|is|was|should|has)\b", re.IGNORECASE)


def has_priority(line: str) -> bool:
    """Whether an item is marked as "must" or "should"."""
    return _PRIORITY.search(line[:500]) is not None


def is_story(text: str) -> bool:
    """Whether a text has a user story."""
    return _STORY.search(text.replace("*", "")) is not None


def is_scenario(lines: list[str]) -> bool:
    starts = [line[:200].lstrip(" \t>*_-+") for line in lines]
    given = any(_GIVEN.match(line) for line in starts)
    then = any(_THEN.match(line) for line in starts)
    scenario = any(_SCENARIO.match(line.lstrip("#* ")) for line in starts)
    return (given and then) or (scenario and (given or then)) or any(map(_ONE_LINE_SCENARIO.match, starts))


def is_table(lines: list[str]) -> bool:
    """Whether a table has a column of requirements and a row."""
    for header, rule, row in zip(lines, lines[1:], lines[2:], strict=False):
        if (
            "|" in header
            and "-" in rule
            and _TABLE_RULE.fullmatch(rule)
            and HEADING_WORDS.search(header[:500])
        ):
            return "|" in row and len(_WORD.findall(row[:500])) > 2
    return False


def has_numbered(lines: list[str]) -> bool:
    """Whether a line begins with the id of a requirement and goes on with its words."""
    return any(
        len(_WORD.findall(line[match.end() : match.end() + 300])) > 2
        and not begins_with_explanation(line[match.start() :].lstrip(" *_->|")[:200])
        and not _AFTER_ID.match(line, match.end())
        and not line.rstrip().endswith("?")
        for line in lines
        if (match := ID.match(line)) or ((match := _LABEL.match(line)) and SOFTWARE.search(line, match.end()))
    )


def has_section(lines: list[str], is_data: bool) -> bool:
    """Whether a heading of requirements is followed by what they are; in data every line is an item."""
    is_open, needs_item, entries = False, False, 0
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        if not line.strip():
            continue
        if _is_heading(line[:300], next_line):
            is_open, needs_item = True, line.rstrip().endswith(".")
        elif is_open and not (needs_item and not MARKER.match(line)):
            marker = MARKER.match(line)
            words = line[marker.end() :] if marker else line
            entries += _is_entry(words[:500].strip(" \t*_`\"'"), is_item=is_data or marker is not None)
    return entries > 0


def _is_heading(line: str, next_line: str) -> bool:
    stripped = line.strip()
    if not HEADING_WORDS.search(stripped.replace("_", " ")) or stripped.endswith("?"):
        return False
    if rate_explanation(stripped) or _REPORT.search(stripped):
        return False
    words = len(_WORD.findall(stripped))
    if stripped.startswith(("#", "\\")) or _BOLD.fullmatch(line) or _UNDERLINE.fullmatch(next_line[:200]):
        return words <= 15
    if stripped.endswith((":", "：")) or _ANNOUNCEMENT.match(stripped):
        return words <= 25
    return _PLAIN_HEADING.fullmatch(stripped) is not None or (words == 1 and stripped[-1].isalnum())


def _is_entry(words: str, *, is_item: bool) -> bool:
    if not words or words.endswith(("?", "？")) or FIRST_PERSON.match(words) or _FILE.fullmatch(words):
        return False
    if rate_explanation(words) and not is_item:
        return False
    count = len(_WORD.findall(words)) + sum(map(words.count, "をはがにのを的与和"))
    return count > 1 + (not is_item) * 2

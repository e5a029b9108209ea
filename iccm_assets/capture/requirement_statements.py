"""Decide which text is requirements: statements of what software does, in any usual form. (C3a)

Forms: statements with a modal verb in several languages, lists and sections under a requirements heading,
numbered requirements, tables, user stories, scenarios; as text or in a fence of text, data or markup. Chat,
questions, explanations, talk about words and code are none. Linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from iccm_assets.capture.code_recognition import looks_like_code
from iccm_assets.capture.fences import CodeBlock, language_set, split_fences
from iccm_assets.capture.requirement_sections import (
    ID,
    MARKER,
    has_numbered,
    has_priority,
    has_section,
    is_scenario,
    is_story,
    is_table,
)
from iccm_assets.capture.requirement_talk import (
    FIRST_PERSON,
    begins_with_explanation,
    is_doubt,
    is_error,
    is_question,
    is_reason,
    is_review,
    rate_explanation,
)
from iccm_assets.capture.requirement_words import HEADING_WORDS, rate_statement

# Fences of these languages hold text, markup or data, which may be requirements; program code never is.
_TEXT_LANGUAGES = language_set(
    """
    text txt plaintext plain none md markdown mdx rst asciidoc adoc raw requirements requirement spec gherkin
    feature cucumber yaml yml xml json jsonc json5 toml latex tex html htm csv tsv ears quote prose english
    german deutsch en de fr es ja zh
    """
)
_DATA_LANGUAGES = frozenset({"json", "jsonc", "json5", "yaml", "yml", "xml", "html", "htm", "latex", "tex"})
_MAX_SENTENCE = 4000  # characters
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_\"'`)]{0,3}\s+|(?<=[。！？；])|[|;]\s|<br\s?/?>")
_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]{0,300}>|\\(?:begin|end|textbf|emph|label)\{[^{}\n]{0,100}\}")
_JSON_MARKS = re.compile(r"[{}\[\]]|\",|\"\s{0,3}$|(?<=:)\s{0,3}\"|^\s{0,40}\"", re.MULTILINE)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "`": "`", "「": "」", "‘": "’"}
_WORD = re.compile(r"\w+")
_CODE_ONLY = "it is code only"


@dataclass(frozen=True)
class StatementMatch:
    """The requirements in a text, None without any; ``reason`` names their form, or what the text is."""

    text: str | None
    reason: str


@dataclass
class _Counts:
    """What the sentences of a text are."""

    formal: int = 0
    statements: int = 0
    items: int = 0  # statements that are items of a list
    explanations: int = 0
    questions: int = 0
    others: int = 0
    other_items: int = 0


def find_requirements(text: str) -> StatementMatch:
    """Return the requirements in a text: all of it, or the fence that holds them."""
    if not text.strip():
        return StatementMatch(None, "it is empty")
    segments = list(split_fences(text))
    prose = "\n".join(segment for segment in segments if isinstance(segment, str)).strip()
    form, refusal = _recognize(_unwrap(prose), "") if prose else ("", _CODE_ONLY)
    if form:
        return StatementMatch(_unwrap(text.strip()), form)
    blocks = [segment for segment in segments if isinstance(segment, CodeBlock) and _is_text(segment)]
    return _find_fenced(blocks, refusal)


def _find_fenced(blocks: list[CodeBlock], refusal: str) -> StatementMatch:
    """Return the requirements in the last fence with some; else the first reason that is not code."""
    refusals = list[str]()
    for block in reversed(blocks):
        form, reason = _recognize(block.content, block.language)
        if form:
            return StatementMatch(block.content.strip(), form)
        refusals.append(reason)
    reasons = (reason for reason in (refusal, *reversed(refusals)) if reason != _CODE_ONLY)
    return StatementMatch(None, next(reasons, _CODE_ONLY))


def is_informal(text: str) -> bool:
    """Whether requirements are sentences in everyday words, without keywords or a form."""
    counts = _count(text.split("\n"))
    return not counts.formal and find_requirements(text).reason == "statements"


def _is_text(block: CodeBlock) -> bool:
    return bool(block.content.strip()) and (not block.language or block.language in _TEXT_LANGUAGES)


def _unwrap(text: str) -> str:
    """Remove the quotation marks around a whole text."""
    for mark in ("```", "``", "`"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            return inner.strip() if "`" not in inner else text
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        return text[1:-1].strip()
    return text


def _recognize(text: str, language: str) -> tuple[str, str]:
    """Return the form of requirements that a text has, or "" and what it is instead."""
    if not language and looks_like_code(text):
        return "", _CODE_ONLY
    lines = _plain_lines(text, language)
    counts = _count(lines)
    if counts.explanations >= max(1, counts.statements) and counts.items < 2 and not has_numbered(lines):
        return "", "it explains requirements"
    if not counts.formal and is_review(text):
        return "", "it reviews code"
    for form in _forms(text, lines, counts, language in _DATA_LANGUAGES):
        return form, ""
    if counts.questions and not counts.others:
        return "", "it is a question"
    return "", "it does not say what software has to do"


def _plain_lines(text: str, language: str) -> list[str]:
    """Return the lines without the marks of JSON, XML, HTML and LaTeX."""
    stripped = text.lstrip()
    if language.startswith("json") or (not language and stripped[:1] in {"{", "["} and '"' in text):
        text = _JSON_MARKS.sub("\n", text)
    if "<" in text or "\\" in text:
        text = _MARKUP.sub(_replace_markup, text)
    return text.split("\n")


def _replace_markup(match: re.Match[str]) -> str:
    """Replace an element: one that is called like requirements becomes their heading, emphasis nothing."""
    name = match[0].strip("</>").split()[0] if match[0].startswith("<") else ""
    if name.lower() in {"b", "i", "em", "strong", "code", "span", "u", "kbd", "a"} or match[0].startswith(
        "\\text"
    ):
        return ""
    is_heading = not match[0].startswith("</") and HEADING_WORDS.search(name.replace("_", " "))
    return "\nRequirements:\n" if is_heading else "\n"


def _sentences(line: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(line):
        if sentence and sentence.strip(" \t|*_>-:\r\"'`"):
            yield sentence.strip()


def _count(lines: list[str]) -> _Counts:
    counts = _Counts()
    for line in lines:
        if is_error(line):
            counts.others += 1
            continue
        marker = MARKER.match(line) or ID.match(line)
        is_item = marker is not None or line.lstrip().startswith("|")
        if marker is not None and begins_with_explanation(line[:300].lstrip(" \t>|*_-[(")):
            marker, is_item = None, False
        for sentence in _sentences(line[marker.end() :] if marker else line):
            _add(counts, sentence[:_MAX_SENTENCE], is_item)
    return counts


def _add(counts: _Counts, sentence: str, is_item: bool) -> None:
    plain = sentence.lstrip("*_>\"'“ ")
    is_chat = FIRST_PERSON.match(plain) is not None
    if is_question(sentence):
        counts.questions += 1
    elif is_doubt(plain):
        counts.others += 1
    elif (explained := rate_explanation(sentence)) or (not is_item and is_reason(plain)):
        counts.explanations += 0 if is_item else max(1, explained)
    elif rating := _rate_statement(sentence, is_item, is_chat):
        counts.statements += 1
        counts.items += is_item
        counts.formal += rating > 1
    elif len(_WORD.findall(plain[:200])) > 3 and not is_chat:
        counts.others += 1
        counts.other_items += is_item


def _rate_statement(sentence: str, is_item: bool, is_chat: bool) -> int:
    if is_item:
        return rate_statement(sentence, is_item=True) or int(has_priority(sentence))
    return 0 if is_chat else rate_statement(sentence, is_item=False)


def _forms(text: str, lines: list[str], counts: _Counts, is_data: bool) -> Iterator[str]:
    if counts.formal or (counts.items and counts.items >= counts.other_items):
        yield "statements"
    if counts.statements and counts.statements >= counts.others:
        yield "statements"
    if is_story(text):
        yield "user story"
    if is_scenario(lines):
        yield "scenario"
    if is_table(lines):
        yield "table"
    if has_numbered(lines):
        yield "numbered requirements"
    if has_section(lines, is_data):
        yield "list under a heading"

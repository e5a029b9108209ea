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
from iccm_assets.capture.requirement_words import (
    HEADING_WORDS,
    is_foreign,
    is_formal,
    is_statement,
)

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
_MARKER = re.compile(
    r"[ \t>]*(?:[-*+•◦–]|\(?\d{1,4}(?:\.\d{1,4}){0,5}[.):]|\d{1,4}(?:\.\d{1,4}){1,5}"
    r"|\(?[a-zA-Zivx]{1,4}[.)]|\\item"
    r"|\[[ xX]\])[ \t]+(?:\[[ xX]\][ \t]+)?"
)
_ID = re.compile(
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
_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]{0,300}>|\\(?:begin|end|textbf|emph|label)\{[^{}\n]{0,100}\}")
_JSON_MARKS = re.compile(r"[{}\[\]]|\",|\"\s{0,3}$|(?<=:)\s{0,3}\"|^\s{0,40}\"", re.MULTILINE)
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
_FIRST_PERSON = re.compile(
    r"(?:i|i've|i'll|i'm|we|we've|we'll|let me|let's|let us|you|your|feel free|please|sorry|thanks|sure|ok"
    r"|okay|great|hi|hello)\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"(?:shall|should|must|will|would|could|can|may|do|does|did|is|are|have|has|what|which|who|how|where"
    r"|soll|sollen|muss|darf"
    r"|dois|doit|debe)\b[^.]*$",
    re.IGNORECASE,
)
_EXPLANATION = re.compile(
    r"\b(?:requirements?|items?|points?|statements?|sentences?|criterion|rules?|clauses?|numbers?|no\.|r"
    r"|req|fr|it|this|that"
    r"|which|first|second|third|fourth|fifth|last|one|two|text|wording|word|meaning|error|message"
    r"|traceback|documentation|docs|docstring|comment"
    r"|manual|log|warning|standard|code|tests?|specification)[ #-]{0,2}(?:\d{1,4}|above|below)?\s+"
    r"(?:only |just |also |simply |already |really |basically )?"
    r"(?:says?|said|means?|meant|states? that|stated|tells?|explains?|explained|describes?|requires? that"
    r"|expresses|reflects"
    r"|refers?|(?:is|was|are|were) (?:there|about|because|needed|included|added|so|meant|intended)|exists?"
    r"|comes? from)\b"
    r"|\bi (?:mean|meant|said|wrote|chose|used|put|added|assumed)\b|\bthat(?:'s| is) (?:because|why"
    r"|so that)\b"
    r"|\bin other words\b|\bthe reason\b|\bas (?:requirement|item|point|number) \d"
    r"|\b(?:by|with|in|under|according to|because of) (?:requirement|item|point|number|statement|r|req"
    r"|fr)[ #-]{0,2}\d"
    r"|\b(?:i\.e\.|namely) because\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|i think|i guess|i wonder|i believe|(?:i am|i'm) not sure|i don't know"
    r"|not sure (?:if|whether))\b",
    re.IGNORECASE,
)
_ERROR = re.compile(r"[\w.]{0,80}(?:Error|Exception|Warning)\b[:(]")
_BECAUSE = re.compile(
    r"(?:because|since|yes|no|exactly|correct|right|indeed|true|good question)\b", re.IGNORECASE
)
_FILE = re.compile(r"[`\"']?[\w./\\-]+\.\w{1,5}[`\"']?")
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "`": "`", "「": "」", "‘": "’"}
_WORD = re.compile(r"\w+")


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
    prose = "\n".join(segment for segment in segments if isinstance(segment, str))
    reason = "it is code only" if not prose.strip() else ""
    if prose.strip():
        form, reason = _recognize(_unwrap(prose.strip()), "")
        if form:
            return StatementMatch(_unwrap(text.strip()), form)
    fenced = None
    for segment in segments:
        if isinstance(segment, CodeBlock) and _is_text(segment):
            form, refusal = _recognize(segment.content, segment.language)
            fenced = StatementMatch(segment.content.strip(), form) if form else fenced
            reason = reason if reason and reason != "it is code only" else refusal
    return fenced or StatementMatch(None, reason)


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
        return "", "it is code only"
    lines = _plain_lines(text, language)
    counts = _count(lines)
    if counts.explanations and counts.items < 2 and not _has_marked(lines):
        return "", "it explains requirements"
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
        if _ERROR.match(line.lstrip()[:200]):
            counts.others += 1
            continue
        marker = _MARKER.match(line) or _ID.match(line)
        is_item = marker is not None or line.lstrip().startswith("|")
        if marker is not None and _EXPLANATION.match(line[:300].lstrip(" \t>|*_-[(")):
            marker, is_item = None, False
        for sentence in _sentences(line[marker.end() :] if marker else line):
            _add(counts, sentence[:_MAX_SENTENCE], is_item)
    return counts


def _add(counts: _Counts, sentence: str, is_item: bool) -> None:
    plain = sentence.lstrip("*_>\"'“ ")
    if sentence.rstrip("*_\"')”").endswith(("?", "？", "ですか。", "ますか。")):
        counts.questions += 1
    elif _HEDGE.search(sentence):
        counts.others += 1
    elif _EXPLANATION.search(sentence) or (not is_item and _BECAUSE.match(plain)):
        counts.explanations += not is_item
    elif not (_FIRST_PERSON.match(plain) and not is_item) and is_statement(sentence, is_item=is_item):
        counts.statements += 1
        counts.items += is_item
        counts.formal += is_formal(sentence) or is_foreign(sentence)
    elif len(_WORD.findall(plain[:200])) > 3 and not _FIRST_PERSON.match(plain):
        counts.others += 1
        counts.other_items += is_item


def _forms(text: str, lines: list[str], counts: _Counts, is_data: bool) -> Iterator[str]:
    if counts.formal or (counts.items and counts.items >= counts.other_items):
        yield "statements"
    if counts.statements and counts.statements >= counts.others:
        yield "statements"
    if _STORY.search(text.replace("*", "")):
        yield "user story"
    if _is_scenario(lines):
        yield "scenario"
    if _is_table(lines):
        yield "table"
    if _has_marked(lines):
        yield "numbered requirements"
    if _has_section(lines, is_data):
        yield "list under a heading"


def _is_scenario(lines: list[str]) -> bool:
    starts = [line[:200].lstrip(" \t>*_-+") for line in lines]
    given = any(_GIVEN.match(line) for line in starts)
    then = any(_THEN.match(line) for line in starts)
    scenario = any(_SCENARIO.match(line.lstrip("#* ")) for line in starts)
    return (given and then) or (scenario and (given or then)) or any(map(_ONE_LINE_SCENARIO.match, starts))


def _is_table(lines: list[str]) -> bool:
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


def _has_marked(lines: list[str]) -> bool:
    """Whether a line begins with the id of a requirement and goes on with its words."""
    return any(
        len(_WORD.findall(line[match.end() : match.end() + 300])) > 2
        and not _EXPLANATION.match(line[match.start() :].lstrip(" *_->|")[:200])
        and not re.match(r"(?:now|says?|means?|is|was|should|has)\b", line[match.end() :], re.IGNORECASE)
        and not line.rstrip().endswith("?")
        for line in lines
        if (match := _ID.match(line))
    )


def _has_section(lines: list[str], is_data: bool) -> bool:
    """Whether a heading of requirements is followed by what they are; in data every line is an item."""
    is_open, entries = False, 0
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        if not line.strip():
            continue
        if _is_heading(line[:300], next_line):
            is_open = True
        elif is_open:
            marker = _MARKER.match(line)
            words = line[marker.end() :] if marker else line
            entries += _is_entry(words[:500].strip(" \t*_`\"'"), is_item=is_data or marker is not None)
    return entries > 0


def _is_heading(line: str, next_line: str) -> bool:
    stripped = line.strip()
    if not HEADING_WORDS.search(stripped) or stripped.endswith("?") or _EXPLANATION.search(stripped):
        return False
    words = len(_WORD.findall(stripped))
    if stripped.startswith(("#", "\\")) or _BOLD.fullmatch(line) or _UNDERLINE.fullmatch(next_line[:200]):
        return words <= 15
    if stripped.endswith((":", "：")):
        return words <= 25
    prefix = _HEADING.match(line)
    return words <= 6 and prefix is not None and not stripped.endswith((".", "!", "。"))


def _is_entry(words: str, *, is_item: bool) -> bool:
    if not words or words.endswith(("?", "？")) or _FIRST_PERSON.match(words) or _FILE.fullmatch(words):
        return False
    if _EXPLANATION.search(words) and not is_item:
        return False
    count = len(_WORD.findall(words)) + sum(map(words.count, "をはがにのを的与和"))
    return count > 1 + (not is_item) * 2

"""Text of a chat answer: its thinking, and its fenced code blocks (O3).

Both are read line by line in one pass, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

# A fence may stand in a list item. After tildes the info string may hold backticks.
_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]{1,4})?)"
    r"(?:(?P<ticks>`{3,})(?P<info>[^`\n]*)|(?P<tildes>~{3,})(?P<text>[^\n]*))$",
    re.MULTILINE,
)
# A fence of Python may begin behind words on the same line. The blanks are possessive: time stays linear.
_LATE_FENCE = re.compile(
    r"(?P<indent>[ \t]*+)[^`\n]{1,200}(?P<ticks>`{3,})(?P<info>[ \t]?i?py(?:thon)?[\w.]{0,20}[ \t]{0,20})$",
    re.MULTILINE | re.IGNORECASE,
)
# Marks of thinking: tags, and the channels of gpt-oss. A quoted mark is talk about it.
_NAMES = (
    r"(?:seed:|ant_?|inner_?)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ion|ing)?|scratchpad|analysis"
    r"|plan(?:ning)?|monologue|rationale|brainstorm(?:ing)?|cot)"
)
_MESSAGE = r"[^<\n]{0,100}(?:<\|constrain\|>[^<\n]{0,100})?<\|message\|>"
_OPEN = (
    rf"<{_NAMES}(?:\s[^<>\n]{{0,100}})?>|\[THINK(?:ING)?\]|◁think▷|<\|begin_of_thought\|>"
    rf"|<\|(?:start_)?think(?:ing)?\|>|<\|channel\|>(?!\s{{0,9}}final\b){_MESSAGE}"
)
_CLOSE = (
    rf"</{_NAMES}\s{{0,9}}>|\[/THINK(?:ING)?\]|◁/think▷|<\|end_of_thought\|>|<\|(?:/|end_)think(?:ing)?\|>"
    rf"|<\|channel\|>\s{{0,9}}final\b{_MESSAGE}"
)
_MARK = re.compile(rf"(?<![`'\"])(?:(?P<open>{_OPEN})|(?P<close>{_CLOSE}))", re.IGNORECASE)
# A channel ends with a token of its own, which is no mark elsewhere.
_END = re.compile(rf"(?<![`'\"])(?:{_CLOSE}|<\|(?:end|return|call)\|>)", re.IGNORECASE)
_MARK_WORD = re.compile(r"[\w:]+")
# With the tag that closes the whole answer (`</answer>`), but not the end of thinking.
_STOP_TOKEN = re.compile(
    rf"<\|(?!end_of_thought|end_thinking)\w{{1,30}}\|>|</(?!{_NAMES}>)\w{{1,30}}>|<end_of_turn>|<eos>",
    re.IGNORECASE,
)
MAX_STOP_TOKEN_CHARACTERS = 34
# The channels of a server that removed their tokens.
_BARE_ANALYSIS, _BARE_FINAL = "analysis", "assistantfinal"


class UnclosedThinkingError(Exception):
    """The text ends inside the model's thinking."""


@dataclass(frozen=True)
class AnswerBlock:
    """One fenced code block: its info string, its code, whether its fence is closed.

    ``title`` is the last line before it.
    """

    info: str
    code: str
    closed: bool
    title: str = ""


@dataclass(frozen=True)
class _Fence:
    marks: str
    indent: int
    info: str

    def is_closed_by(self, other: _Fence) -> bool:
        """Whether the other fence ends the block: of the same kind, not shorter, without an info string."""
        return not other.info and other.marks.startswith(self.marks) and other.indent <= self.indent + 3


def normalize_text(text: str) -> str:
    """Return the text with line feeds only, without the stop tokens that some servers leave at its end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff\u200b")
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        start = text.rfind("<", max(0, end - MAX_STOP_TOKEN_CHARACTERS), end)
        if start < 0 or not _STOP_TOKEN.fullmatch(text, start, end):
            break
        end = start
    text = text[:end]
    is_bare_channel = text.startswith(_BARE_ANALYSIS) and _BARE_FINAL in text
    return text.partition(_BARE_FINAL)[2] if is_bare_channel else text


def drop_thinking(text: str) -> str:
    """Return the text without the model's thinking; marks inside of code blocks are code.

    An end without a beginning drops all before it: the beginning was part of the prompt.

    Raises:
        UnclosedThinkingError: the thinking does not end.
    """
    kept: list[str] = []
    fence: _Fence | None = None
    position, line_end, knows_fences = 0, -1, True
    while position < len(text):
        if line_end < position:
            line_end = _find_line_end(text, position)
        mark = _match_fence(text, position, line_end)
        thinking = None
        if fence is None and mark is None:
            thinking = _MARK.search(text, position, line_end)
            mark = None if thinking else _match_late_fence(text, position, line_end)
        fence = _next_fence(fence, mark)
        if thinking is None:
            kept.append(text[position : line_end + 1])
            position = line_end + 1
        elif thinking["close"]:
            kept.clear()
            position = thinking.end()
        else:
            kept.append(text[position : thinking.start()] + "\n")
            end = _find_end_of_thinking(text, thinking) if knows_fences else None
            # Thinking may hold a fence that is never closed, or end with another mark. Its end is looked for
            # in vain only once, so that the time is linear.
            knows_fences = knows_fences and end is not None
            end = end or _END.search(text, thinking.end())
            if end is None:
                raise UnclosedThinkingError
            position = end.end()
    return "".join(kept)


def find_after_thinking(text: str) -> str | None:
    """Return the text after the last end of thinking, wherever it stands; None if there is none."""
    ends = [mark.end() for mark in _MARK.finditer(text) if mark["close"]]
    return text[ends[-1] :] if ends else None


def split_blocks(text: str) -> Iterator[AnswerBlock]:
    """Yield the fenced code blocks of a text; the last one may be unclosed."""
    fence: _Fence | None = None
    lines: list[str] = []
    title = ""
    for line in text.split("\n"):
        mark = _match_fence(line, 0, len(line))
        if fence is None:
            fence, lines = mark or _match_late_fence(line, 0, len(line)), []
            title = line if line.strip() and fence is None else title
        elif mark is not None and fence.is_closed_by(mark):
            yield replace(_make_block(fence, lines, closed=True), title=title)
            fence, title = None, ""
        else:
            lines.append(line)
    if fence is not None:
        yield _make_block(fence, lines, closed=False)


def find_outer_block(text: str) -> AnswerBlock | None:
    """Return the block from the first fence to the last one, if that closes it: its code may hold fences."""
    lines = text.split("\n")
    marks = [
        (number, mark) for number, line in enumerate(lines) if (mark := _match_fence(line, 0, len(line)))
    ]
    if len(marks) < 2:
        return None
    (start, fence), (end, last) = marks[0], marks[-1]
    return _make_block(fence, lines[start + 1 : end], closed=True) if fence.is_closed_by(last) else None


def _make_block(fence: _Fence, lines: list[str], *, closed: bool) -> AnswerBlock:
    """Return the block with its lines moved to the left by the indentation of its fence."""
    code = [line[min(fence.indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines]
    return AnswerBlock(fence.info, "".join(f"{line}\n" for line in code), closed)


def _match_fence(text: str, start: int, end: int) -> _Fence | None:
    match = _FENCE.match(text, start, end)
    if match is None:
        return None
    info = match["info"] if match["ticks"] else match["text"]
    return _Fence(match["ticks"] or match["tildes"], len(match["indent"]), info.strip())


def _next_fence(fence: _Fence | None, mark: _Fence | None) -> _Fence | None:
    """Return the fence that is open behind a line with this mark."""
    if fence is None or mark is None:
        return fence or mark
    return None if fence.is_closed_by(mark) else fence


def _match_late_fence(text: str, start: int, end: int) -> _Fence | None:
    match = _LATE_FENCE.match(text, start, end)
    return match and _Fence(match["ticks"], len(match["indent"]), match["info"].strip())


def _find_line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _find_end_of_thinking(text: str, opening: re.Match[str]) -> re.Match[str] | None:
    """Find the end of the same kind as the opening, outside of the code blocks between; None without one."""
    word = _MARK_WORD.search(opening[0])
    name = word[0].lower() if word and opening[0].startswith("<") and "|" not in opening[0] else ""
    fence: _Fence | None = None
    start = opening.end()
    while start < len(text):
        line_end = _find_line_end(text, start)
        mark = _match_fence(text, start, line_end)
        if fence is None and mark is None:
            for end in _END.finditer(text, start, line_end):
                if not name or end[0].lower().startswith(f"</{name}"):
                    return end
        fence = _next_fence(fence, mark)
        start = line_end + 1
    return None

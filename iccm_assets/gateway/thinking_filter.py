"""Drop what a reasoning model thinks from its answer, also while the answer is written (G7).

Each character is looked at a bounded number of times, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re

from iccm_assets.gateway.batching import GenerationError
from iccm_assets.scoring.reconstruction import is_blank

_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
_ALL_MARKS = (*_MARKS, *_MARKS.values())
_MAX_MARK_CHARACTERS = max(map(len, _ALL_MARKS))


def _compile(*marks: str) -> re.Pattern[str]:
    # A quoted mark is talk about it.
    return re.compile(rf"(?<![`'\"])(?:{'|'.join(map(re.escape, marks))})", re.IGNORECASE)


_ANY_MARK = _compile(*_ALL_MARKS)
_END = {opening: _compile(closing) for opening, closing in _MARKS.items()}


class ThinkingFilter:
    """Passes an answer on without its thinking; a mark may be divided between pieces.

    The end of thinking that has no beginning drops all before it, which is possible only where nothing was
    passed on; with ``is_whole`` the first piece is the whole text.
    """

    def __init__(self, *, is_whole: bool = False) -> None:
        self._is_whole = is_whole
        self._previous, self._rest = "", ""  # the character before what is not decided yet
        self._end: re.Pattern[str] | None = None  # of the thinking that is open
        self._blanks: list[str] = []
        self._has_begun = False
        self.has_thinking = False

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside the thinking."""
        return self._end is not None

    def feed(self, text: str) -> str:
        """Take a piece of the text and return what of it belongs to the answer."""
        data, position = self._previous + self._rest + text, len(self._previous)
        kept: list[str] = []
        while match := (self._end or _ANY_MARK).search(data, position):
            if self._end is None:
                self._keep(data[position : match.start()], kept)
                self._end = _END.get(match[0].lower())
                if self._end is None:
                    self._drop_before(kept)
            else:
                self._end = None
            self.has_thinking, position = True, match.end()
            if not self._has_begun:
                self._blanks.clear()
        undecided = _find_undecided(data, position)
        if self._end is None:
            self._keep(data[position:undecided], kept)
        self._previous, self._rest = data[:undecided][-1:], data[undecided:]
        return "".join(kept)

    def finish(self) -> str:
        """Return the rest of the answer: what could have become a mark."""
        kept: list[str] = []
        if self._end is None:
            self._keep(self._rest, kept)
        self._rest = ""
        return "".join(kept)

    def _keep(self, text: str, kept: list[str]) -> None:
        """Keep a text; blanks at the beginning wait for what follows, those behind thinking are dropped."""
        if self._has_begun:
            kept.append(text)
        elif is_blank(text):
            self._blanks.append(text)
        else:
            text = "".join([*self._blanks, text])
            kept.append(text.lstrip() if self.has_thinking else text)
            self._has_begun = True

    def _drop_before(self, kept: list[str]) -> None:
        if self._has_begun and not self._is_whole:
            raise GenerationError("the thinking ended without a beginning, after a part of it was passed on")
        kept.clear()
        self._has_begun = False


def drop_thinking_marks(text: str) -> tuple[str, ThinkingFilter]:
    """Return a whole text without its thinking, and the filter, which knows what was dropped."""
    thinking = ThinkingFilter(is_whole=True)
    return thinking.feed(text) + thinking.finish(), thinking


def _find_undecided(data: str, position: int) -> int:
    """Return where the end of the text may be the beginning of a mark; its length if it is none."""
    for start in range(max(position, len(data) - _MAX_MARK_CHARACTERS + 1), len(data)):
        if data[start] in "<[◁" and any(mark.startswith(data[start:].lower()) for mark in _ALL_MARKS):
            return start
    return len(data)

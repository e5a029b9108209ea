"""A pattern whose findings are replaced by a placeholder, and the loop that applies many of them (C4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Found = Callable[[str], None]


@dataclass(frozen=True)
class Rule:
    """``pattern`` (its group ``x``, else the whole) becomes ``<kind>`` where ``holds`` says so.

    ``hints`` are texts of which one must occur, case and all, and ``gate`` a simpler pattern that must be
    found, for the pattern to be tried: looking for them is much quicker. ``remember``: a finding without a
    shape of its own, so that it is to be replaced also where nothing around it tells what it is.
    """

    kind: str
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    holds: Callable[[re.Match[str]], bool] = lambda match: True
    remember: bool = False
    gate: re.Pattern[str] | None = None

    def apply(self, text: str, remember: Found) -> str:
        """The text with this rule's findings replaced."""
        if self.hints and not any(hint in text for hint in self.hints):
            return text
        if self.gate is not None and not self.gate.search(text):
            return text
        group = "x" if "x" in self.pattern.groupindex else 0
        return self.pattern.sub(lambda match: self._replacement(match, group, remember), text)

    def _replacement(self, match: re.Match[str], group: str | int, remember: Found) -> str:
        found = match[group]
        if not found or found.startswith("<") or not self.holds(match):
            return match[0]
        if self.remember:
            remember(found)
        start, end = (position - match.start() for position in match.span(group))
        return f"{match[0][:start]}<{self.kind}>{match[0][end:]}"


def replace_spans(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """The text with each ``(start, end, kind)``, ordered and disjoint, replaced by ``<kind>``."""
    parts, position = [], 0
    for start, end, kind in spans:
        parts += [text[position:start], f"<{kind}>"]
        position = end
    return "".join([*parts, text[position:]])


def at_start(literal: str) -> str:
    """A pattern for ``literal`` where a word may begin: not inside one, but behind an escaped line end.

    The literal comes first and what stands before it is looked at afterwards: so the regex engine can skip
    to it instead of trying every position.
    """
    return rf"{literal}(?:(?<![A-Za-z0-9]{literal})|(?<=\\[nrt]{literal}))"

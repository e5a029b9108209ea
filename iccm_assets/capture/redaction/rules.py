"""Redaction rules: patterns whose matches are replaced by a placeholder. (C4)"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

OnMatch = Callable[[str], None]
Span = tuple[int, int, str]  # start, end, kind


@dataclass(frozen=True)
class RedactionRule:
    """``pattern`` (its group ``x``, else the whole) becomes ``<kind>`` where ``holds`` is true.

    ``hints`` are texts of which one must occur, case-sensitively, and ``gate`` a simpler pattern that must
    match, for the pattern to be tried: searching for them is much faster. ``remember``: report the match, so
    that it is also replaced where nothing around it identifies it.
    """

    kind: str
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    holds: Callable[[re.Match[str]], bool] = lambda match: True
    remember: bool = False
    gate: re.Pattern[str] | None = None

    def apply(self, text: str, remember: OnMatch) -> str:
        """Return the text with this rule's matches replaced."""
        if self.hints and not any(hint in text for hint in self.hints):
            return text
        if self.gate is not None and not self.gate.search(text):
            return text
        return self.pattern.sub(lambda match: self._replacement(match, remember), text)

    def _replacement(self, match: re.Match[str], remember: OnMatch) -> str:
        group = "x" if "x" in self.pattern.groupindex else 0
        secret, whole, start = match[group], match[0], match.start()
        if not secret or secret.startswith("<") or not self.holds(match):
            return whole
        if self.remember:
            remember(secret)
        return f"{whole[: match.start(group) - start]}<{self.kind}>{whole[match.end(group) - start :]}"


def replace_spans(text: str, spans: Iterable[Span]) -> str:
    """Replace each ``(start, end, kind)``, ordered and disjoint, by ``<kind>``."""
    parts, position = [], 0
    for start, end, kind in spans:
        parts += [text[position:start], f"<{kind}>"]
        position = end
    return "".join([*parts, text[position:]])


def at_word_start(literal: str) -> str:
    """Return a pattern for ``literal`` at the start of a word, or after an escaped line end.

    The literal comes first and what precedes it is tested afterwards, so that the regex engine can skip to
    it instead of trying every position.
    """
    return rf"{literal}(?:(?<![A-Za-z0-9]{literal})|(?<=\\[nrt]{literal}))"

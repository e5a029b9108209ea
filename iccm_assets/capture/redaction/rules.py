"""Redaction rules: patterns whose matches are replaced by a placeholder. (C4)"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

OnMatch = Callable[[str], None]
Span = tuple[int, int, str]  # start, end, kind
# What of a text to replace for a span, and by what; None to keep it.
Place = Callable[[str, Span], tuple[int, int, str] | None]


def place_anywhere(text: str, span: Span) -> tuple[int, int, str] | None:
    """Replace exactly the span by the placeholder of its kind."""
    start, end, kind = span
    return start, end, f"<{kind}>"


def replace_spans(text: str, spans: Iterable[Span], place: Place = place_anywhere) -> str:
    """Replace each span, ordered and disjoint, as ``place`` says."""
    parts, position = [], 0
    for span in spans:
        if (placed := place(text, span)) is not None and placed[0] >= position:
            parts += [text[position : placed[0]], placed[2]]
            position = placed[1]
    return "".join([*parts, text[position:]]) if parts else text


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

    def may_match(self, text: str) -> bool:
        """Whether a text may contain a match, by the hints and the gate."""
        if self.hints and not any(hint in text for hint in self.hints):
            return False
        return self.gate is None or self.gate.search(text) is not None

    def apply(self, text: str, remember: OnMatch, place: Place = place_anywhere) -> str:
        """Return the text with this rule's matches replaced."""
        if not self.may_match(text):
            return text
        return replace_spans(text, self.find(text, remember), place)

    def find(self, text: str, remember: OnMatch) -> Iterator[Span]:
        """Return the spans to replace, in order."""
        group = "x" if "x" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            secret = match[group]
            if secret and not secret.startswith("<") and self.holds(match):
                if self.remember:
                    remember(secret)
                yield *match.span(group), self.kind


@dataclass(frozen=True)
class RuleGroup:
    """Rules that are applied in their order, of which most texts need none: all hints are searched together.

    ``screen``: what every match contains, so that other texts are read only once. ``inside``: the matches
    also consist of it, so that hints and gates are searched in what it matched only.
    """

    rules: tuple[RedactionRule, ...]
    screen: re.Pattern[str] | None = None
    inside: bool = False

    def apply(self, text: str, remember: OnMatch, place: Place = place_anywhere) -> str:
        """Return the text with the matches of these rules replaced."""
        for number in self._choose(text):
            replaced = self.rules[number].apply(text, remember, place)
            if replaced is not text and not self.inside:
                return self._apply_from(number + 1, replaced, remember, place)
            text = replaced
        return text

    def _apply_from(self, number: int, text: str, remember: OnMatch, place: Place) -> str:
        """Apply all rules from this one on: what was replaced may be what any of them looks for."""
        for rule in self.rules[number:]:
            text = rule.apply(text, remember, place)
        return text

    def _choose(self, text: str) -> list[int]:
        """Return the numbers of the rules that may match a text."""
        if self.inside and self.screen is not None:
            text = "\n".join(self.screen.findall(text))
            if not text:
                return []
        elif self.screen is not None and self.screen.search(text) is None:
            return []
        hints = self._hints
        numbers = {
            number
            for part in filter(text.__contains__, hints)
            for hint, hinted in hints[part]
            if hint in text
            for number in hinted
        }
        gates = ((number, self.rules[number].gate) for number in numbers)
        return sorted(number for number, gate in gates if gate is None or gate.search(text))

    @cached_property
    def _hints(self) -> dict[str, list[tuple[str, list[int]]]]:
        """The hints with the numbers of their rules, by what they share; a rule without one is always tried.

        Half of the hints contain three characters of another: without these, none of them is searched for.
        """
        numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, rule in enumerate(self.rules):
            for hint in rule.hints or ("",):
                numbers[hint].append(number)
        parts = {hint: {hint[at : at + 3] for at in range(max(1, len(hint) - 2))} for hint in numbers}
        counts = Counter(part for shared in parts.values() for part in shared)
        groups: defaultdict[str, list[tuple[str, list[int]]]] = defaultdict(list)
        for hint, hinted in numbers.items():
            groups[max(parts[hint], key=lambda part: (counts[part], part))].append((hint, hinted))
        return dict(groups)

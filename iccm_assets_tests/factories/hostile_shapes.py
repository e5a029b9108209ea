"""Hostile texts derived from a regular expression: what it almost matches, repeated.

A pattern takes more than linear time where many starts each read far before they fail. So: samples of what it
matches, their prefixes and suffixes, repeated or followed by one repeated part, and an end that no match
crosses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from re import _constants as c  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

ENDS = ("", "(", "!", "é", "x", "=")
_CATEGORIES = {
    c.CATEGORY_DIGIT: "7", c.CATEGORY_NOT_DIGIT: "a-", c.CATEGORY_WORD: "aZ7_", c.CATEGORY_NOT_WORD: " -",
    c.CATEGORY_SPACE: " \t", c.CATEGORY_NOT_SPACE: "a.",
}  # fmt: skip
_COMMON = 'a7 -.:=/"\n'


def hostile_units(pattern: re.Pattern[str], seed: int = 1) -> list[tuple[str, str]]:
    """Return pairs of a beginning and a unit to repeat after it."""
    tree, rng = parser.parse(pattern.pattern), random.Random(seed)
    units: set[tuple[str, str]] = set()
    for longest in (False, True, None):
        for _ in range(2):
            sampler = _Sampler(rng, longest)
            text = sampler.sample(tree)
            units.update(("", unit) for unit in _variants(text))
            cuts = (len(text) // 3, len(text) // 2, len(text))
            units.update((text[:cut], unit) for unit in sampler.repeated[:12] for cut in cuts)
    return sorted(pair for pair in units if pair[1])


def build_text(pair: tuple[str, str], length: int, end: str = "") -> str:
    start, unit = pair
    return (start + unit * (length // len(unit) + 1))[:length] + end


def _variants(text: str) -> Iterator[str]:
    yield from (text, text + " ", text + "!", text[:-1])
    for cut in {1, 2, 3, 4, len(text) // 4, len(text) // 2, 3 * len(text) // 4}:
        yield from (text[:cut], text[cut:])


class _Sampler:
    """Makes a text that a pattern matches, apart from assertions; ``repeated``: the repeated parts."""

    def __init__(self, rng: random.Random, longest: bool | None) -> None:
        self._rng, self._longest = rng, longest
        self._groups: dict[int, str] = {}
        self.repeated: list[str] = []

    def sample(self, tree: Any) -> str:
        return "".join(self._node(operator, argument) for operator, argument in tree)

    def _node(self, operator: Any, argument: Any) -> str:
        if operator is c.LITERAL:
            return chr(argument)
        if operator is c.IN:
            return self._rng.choice(_characters(argument))
        if operator in (c.ANY, c.NOT_LITERAL):
            return "a" if argument != ord("a") else "b"
        if operator is c.BRANCH:
            return self.sample(self._rng.choice(argument[1]))
        if operator is c.ATOMIC_GROUP:
            return self.sample(argument)
        if operator is c.SUBPATTERN:
            self._groups[argument[0]] = self.sample(argument[3])
            return self._groups[argument[0]]
        if operator is c.GROUPREF:
            return self._groups.get(argument, "")
        return self._repeat(*argument) if operator in _REPEATS else ""

    def _repeat(self, low: int, high: int, part: Any) -> str:
        high = min(int(high), low + 6)
        count = {False: low, True: high}.get(self._longest, self._rng.randint(low, high))
        first = self.sample(part)
        self.repeated.append(first)
        return "".join(self._rng.choice((first, self.sample(part))) for _ in range(count))


_REPEATS = (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT)


def _characters(items: Any) -> str:
    texts = []
    for operator, argument in items:
        if operator is c.LITERAL:
            texts.append(chr(argument))
        elif operator is c.RANGE:
            texts += map(chr, argument)
        elif operator is c.CATEGORY:
            texts.append(_CATEGORIES[argument])
    listed = "".join(texts)
    if items[0][0] is c.NEGATE:
        return "".join(character for character in _COMMON if character not in listed) or "é"
    return listed

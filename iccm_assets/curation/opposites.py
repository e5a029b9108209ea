"""Tell opposite requirements from reworded ones: which numbers, negations or opposite words differ (P2).

An embedding hardly notices them: "less than 3" and "greater than 3" are 0.996 similar. Near-duplicates whose
sources differ, too, are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter

from iccm_assets.curation.code_fingerprints import ast_hash, normalized_text_hash

# Not a part of a name such as step_1 or utf8; 1,000 is a number of its own.
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,40}(?:,\d{3})*(?:\.\d+)?(?!\w)")
_WORD = re.compile(r"[a-z]+(?:['’]t)?")
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_NEGATIONS = frozenset(
    {"not", "no", "never", "none", "neither", "nor", "cannot", "without", "nothing", "unless"}
)
# Two sides each; words of one side are interchangeable.
_OPPOSITES = (
    ("less lower below under fewer smaller", "more greater above over larger bigger higher exceeds exceed"),
    ("least minimum min smallest lowest shortest", "most maximum max largest highest longest greatest"),
    ("plus add adds added adding sum", "minus subtract subtracts subtracted subtracting difference"),
    ("times multiply multiplies multiplied product", "divide divides divided quotient"),
    (
        "increase increases increased increment increments",
        "decrease decreases decreased decrement decrements",
    ),
    ("ascending", "descending"),
    ("first earliest oldest", "last latest newest"),
    ("before", "after"),
    ("include includes included including", "exclude excludes excluded excluding"),
    ("all every each", "any"),
    ("true", "false"),
    ("even", "odd"),
    ("positive", "negative"),
    ("enable enables enabled", "disable disables disabled"),
    (
        "allow allows allowed accept accepts accepted",
        "deny denies denied reject rejects rejected forbid forbidden",
    ),
    ("upper uppercase", "lowercase"),
    ("left leading prefix", "right trailing suffix"),
    ("start starts begin begins beginning", "end ends ending"),
    ("open opens", "close closes"),
    ("inside within", "outside"),
    ("encode encodes encrypt encrypts", "decode decodes decrypt decrypts"),
    ("equal equals same", "unequal different differs"),
    ("present", "missing absent"),
    ("and", "or"),
)
_SIDES = {
    word: (pair, side)
    for pair, sides in enumerate(_OPPOSITES)
    for side, words in enumerate(sides)
    for word in words.split()
}


def find_text_differences(text: str, other: str) -> tuple[str, ...]:
    """Return which of ``numbers``, ``negations`` and ``opposites`` two texts have in different numbers."""
    words, other_words = (_WORD.findall(each.lower()) for each in (text, other))
    differs = {
        "numbers": _count_numbers(text, words) != _count_numbers(other, other_words),
        "negations": _count_negations(words) != _count_negations(other_words),
        "opposites": _has_opposites(_count_sides(words), _count_sides(other_words)),
    }
    return tuple(name for name, is_different in differs.items() if is_different)


def find_example_differences(source: str, text: str, other_source: str, other_text: str) -> tuple[str, ...]:
    """Return the differences of the texts of two examples; none if their sources are the same program."""
    differences = find_text_differences(text, other_text)
    return differences if differences and not _is_same_program(source, other_source) else ()


def _is_same_program(source: str, other: str) -> bool:
    if normalized_text_hash(source) == normalized_text_hash(other):
        return True
    fingerprint = ast_hash(source)
    return fingerprint is not None and fingerprint == ast_hash(other)


def _count_numbers(text: str, words: list[str]) -> Counter[float]:
    numbers = Counter(float(number.replace(",", "")) for number in _NUMBER.findall(text))
    return numbers + Counter(float(_NUMBER_WORDS.index(word)) for word in words if word in _NUMBER_WORDS)


def _count_negations(words: list[str]) -> int:
    return sum(word in _NEGATIONS or word.endswith(("'t", "’t")) for word in words)


def _count_sides(words: list[str]) -> Counter[tuple[int, int]]:
    return Counter(_SIDES[word] for word in words if word in _SIDES)


def _has_opposites(sides: Counter[tuple[int, int]], others: Counter[tuple[int, int]]) -> bool:
    """Return whether a text has more of one side of a pair, and the other text more of the other side."""
    return any(
        (sides[pair, 0] - others[pair, 0]) * (sides[pair, 1] - others[pair, 1]) < 0
        for pair in range(len(_OPPOSITES))
    )

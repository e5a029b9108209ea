"""Reconstructors: re-implement the code that a requirements text describes (O1)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from iccm_assets.errors import InputError

MAX_DETAIL_CHARACTERS = 500
# Categories of characters that leave no mark: controls, formats, separators, surrogates, unassigned ones,
# and marks that only change another character.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Cn", "Zs", "Zl", "Zp", "Mn", "Me"})
# The blank braille pattern and the Hangul fillers count as symbols and letters.
_BLANK_CHARACTERS = frozenset("\u2800\u115f\u1160\u3164\uffa0")


@dataclass(frozen=True)
class Reconstruction:
    """One member's re-implementation of a requirements text.

    ``answered`` has code. ``unreadable``: the text is invalid, so it scores 0. ``missing``: the member is
    unavailable, so it does not count and may put the orchestra below its quorum.
    """

    reconstructor: str
    status: Literal["answered", "unreadable", "missing"]
    implementation: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ProgramShape:
    """What an implementation may import besides the standard library (J5), and its files, if several (J6)."""

    packages: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


ANY_PROGRAM = ProgramShape()


@dataclass(frozen=True)
class ReconstructionRequest:
    """A requirements text, and earlier answers by member name; those members get no request."""

    requirements: str
    cached_answers: Mapping[str, Reconstruction] = field(default_factory=dict)
    shape: ProgramShape = ANY_PROGRAM


@dataclass(frozen=True)
class LocalReconstructor:
    """An in-process reconstructor; its function raises ValueError or InputError for an invalid text."""

    name: str
    function: Callable[[str], str]

    @property
    def identity(self) -> str:
        """The part of the orchestra's digest that this member contributes."""
        return self.name

    def reconstruct(self, requirements: str) -> Reconstruction:
        """Re-implement the requirements; a text that cannot be parsed is ``unreadable``."""
        try:
            return Reconstruction(self.name, "answered", self.function(requirements))
        except (ValueError, InputError) as error:
            return Reconstruction(self.name, "unreadable", detail=to_printable_line(str(error)))


def to_printable_line(text: str) -> str:
    """Return the text as one line that PostgreSQL can store, of at most ``MAX_DETAIL_CHARACTERS``."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd").split())
    return line[:MAX_DETAIL_CHARACTERS]


def is_blank(text: str) -> bool:
    """Whether a text has no visible character, such as one of spaces and zero-width characters."""
    return all(
        character in _BLANK_CHARACTERS or unicodedata.category(character) in _INVISIBLE_CATEGORIES
        for character in text
    )

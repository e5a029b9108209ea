"""The builtin orchestra: three independent readers of the requirements language (O2).

Each turns a requirements text, and nothing else, into Python source. On good text they agree exactly;
on incomplete or odd text each has its own way, so that vague requirements get a high variance:

- ``strict`` refuses: one sentence it cannot read and every call raises NotImplementedError;
- ``literal`` skips what it cannot read, and takes 0 where a constant is missing;
- ``guessing`` supposes: synonyms, nearest names, its own idea of "about" and "small".

They share the grammar and nothing else. All raise ``ReaderError`` on text that names no function.
"""

from __future__ import annotations

from collections.abc import Callable

from iccm_assets.reference.readers.guessing import read as _guessing
from iccm_assets.reference.readers.literal import read as _literal
from iccm_assets.reference.readers.opening import ReaderError
from iccm_assets.reference.readers.strict import read as _strict

READERS: dict[str, Callable[[str], str]] = {"strict": _strict, "literal": _literal, "guessing": _guessing}

__all__ = ["READERS", "ReaderError"]

"""What every reader must find before it can write anything: which function or class is meant."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from iccm_assets.errors import InputError

_NAME = re.compile(r"([Ff]unction|[Cc]lass)\s+`([A-Za-z_]\w*)`")
_TICKED = re.compile(r"`([A-Za-z_]\w*)`")


class ReaderError(InputError):
    """The requirements text cannot be turned into code; no implementation was written."""


@dataclass(frozen=True)
class Opening:
    """The name and parameters of a function or class, as far as the text gives them."""

    name: str
    params: tuple[str, ...]
    is_class: bool = False


def find_opening(text: str) -> Opening:
    """Name and parameters from anywhere in the text; raises ``ReaderError`` when neither is named."""
    found = _NAME.search(text)
    if found is None or keyword.iskeyword(found[2]):
        raise ReaderError("the text names no function and no class")
    after = text[found.end() :]
    end = after.find(".")
    listed = _TICKED.findall(after[:end] if end >= 0 else after)
    params = tuple(dict.fromkeys(name for name in listed if not keyword.iskeyword(name)))
    return Opening(found[2], params, found[1].lower() == "class")


def checked(code: str) -> str:
    """The code itself; raises ``ReaderError`` when it is not Python."""
    try:
        compile(code, "<requirements>", "exec")  # compiled, not run
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ReaderError(f"what was written is not Python ({error})") from error
    return code

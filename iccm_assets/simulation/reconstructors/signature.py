"""Find the function or class a text is about, which every reconstructor needs first."""

from __future__ import annotations

import keyword
import re
import warnings
from dataclasses import dataclass

from iccm_assets.errors import InputError

_NAME = re.compile(r"([Ff]unction|[Cc]lass)\s+`([A-Za-z_]\w*)`")
_TICKED = re.compile(r"`([A-Za-z_]\w*)`")


class ReconstructionError(InputError):
    """The requirements text cannot be turned into code; no implementation was written."""


@dataclass(frozen=True)
class PartialSignature:
    """Name and parameters of a function or class, as far as the text contains them."""

    name: str
    params: tuple[str, ...]
    is_class: bool = False


def find_signature(text: str) -> PartialSignature:
    """Find name and parameters anywhere in the text; raises ``ReconstructionError`` if there is no name."""
    match = _NAME.search(text)
    if match is None or keyword.iskeyword(match[2]):
        raise ReconstructionError("the text names no function and no class")
    names = _TICKED.findall(text[match.end() :].partition(".")[0])
    params = tuple(dict.fromkeys(name for name in names if not keyword.iskeyword(name)))
    return PartialSignature(match[2], params, match[1].lower() == "class")


def check_syntax(code: str) -> str:
    """Return the code; raises ``ReconstructionError`` if it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the texts are generated: nobody can mend their style
            compile(code, "<requirements>", "exec")  # compiled, not run
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ReconstructionError(f"the written code is not valid Python ({error})") from error
    return code

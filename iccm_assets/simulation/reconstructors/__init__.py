"""The builtin orchestra: three independent reconstructors of the requirements language (O2).

Each turns a requirements text, and nothing else, into Python source. On good text they agree exactly; on
incomplete or odd text they differ, so that vague requirements get a high variance:

- ``strict`` refuses: if it cannot read one sentence, every call raises NotImplementedError;
- ``literal`` skips what it cannot read, and uses 0 for a missing constant;
- ``lenient`` guesses: synonyms, most similar names, its own meaning of "about" and "small".

They share the grammar and nothing else. All raise ``ReconstructionError`` on text that names no function.
"""

from __future__ import annotations

from collections.abc import Callable

from iccm_assets.simulation.reconstructors.lenient import reconstruct as _lenient
from iccm_assets.simulation.reconstructors.literal import reconstruct as _literal
from iccm_assets.simulation.reconstructors.signature import ReconstructionError
from iccm_assets.simulation.reconstructors.strict import reconstruct as _strict

RECONSTRUCTORS: dict[str, Callable[[str], str]] = {
    "strict": _strict,
    "literal": _literal,
    "lenient": _lenient,
}

__all__ = ["RECONSTRUCTORS", "ReconstructionError"]

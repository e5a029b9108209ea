"""Sessions of two modules with an answer for each."""

from __future__ import annotations

from iccm_assets_tests.factories.sources import FENCED_ADD

SUB = "def sub(a, b):\n    return a - b"
FENCED_SUB = f"```python\n{SUB}\n```"
ADD_ANSWER = "The function `add` shall take `a` and `b`. It shall return `a` plus `b`."
SUB_ANSWER = "The function `sub` shall take `a` and `b`. It shall return `a` minus `b`."


def talk(*texts: object) -> list[dict[str, object]]:
    """Messages of the user and the assistant by turns."""
    return [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)
    ]


TWO_MODULES = talk(FENCED_ADD, ADD_ANSWER, f"And this one:\n{FENCED_SUB}", SUB_ANSWER)

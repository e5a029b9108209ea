"""Whether two answers of the judge's runner agree, and whether requirements could state one.

Standard library only: sent into the sandbox for ``mutant_driver.py``, which compares a source with its
mutants on inputs that no suite has an expectation for. (D5)
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from typing import Any


# Of floats and exceptions; other values agree only where their texts do. No encoded text holds one of them.
_TOLERANT = (b'["f",', b'["c",', b'["r",')


def is_specified(answer: bytes | None, raised: frozenset[str]) -> bool:
    """Whether requirements could state this: a value, or an exception that the source itself raises."""
    if answer is not None and answer.startswith(b'["v",'):
        return True
    try:
        outcome = json.loads(answer or b"null")
        outcomes = [outcome[1], *outcome[2]] if outcome[0] == "o" else [outcome]
        return all(
            part is None or part[0] == "v" or (part[0] == "r" and part[1][0][0] in raised)
            for part in outcomes
        )
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def list_right_steps(answer: bytes | None, raised: frozenset[str]) -> list[bool]:
    """Say of each step of a sequence of calls whether requirements could state what it did."""
    try:
        kind, constructed, *rest = json.loads(answer or b"null")
        steps = rest[0] if kind == "o" and constructed is None else []
    except (ValueError, TypeError, LookupError, RecursionError):
        return []
    return [is_specified(json.dumps(step).encode(), raised) for step in steps]


def is_same(expected: bytes | None, answer: bytes | None) -> bool:
    """Whether two answers agree: values within the tolerance of floats, exceptions by their classes."""
    if expected == answer or expected is None:
        return True
    if answer is None or not any(mark in expected and mark in answer for mark in _TOLERANT):
        return False
    try:
        return agree(json.loads(expected), json.loads(answer))
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        return False


def agree(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if not isinstance(left, list) or not left:
        return bool(left == right)
    if left[0] == right[0] == "r" and len(left) == len(right) == 4:
        return bool(left[1] == right[1])
    if left[0] == right[0] == "c" and len(left) == len(right) == 2:
        return all(agree(["f", part], ["f", other]) for part, other in zip(left[1], right[1], strict=True))
    if left[0] == right[0] == "f" and len(left) == len(right) == 2:
        numbers = float.fromhex(left[1]), float.fromhex(right[1])
        return left == right or abs(numbers[0] - numbers[1]) <= 1e-9 * max(map(abs, numbers))
    return len(left) == len(right) and all(map(agree, left, right))

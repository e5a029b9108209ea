"""Test suites for documents: few cases that tell the document from its near misses (J1, X1).

Near misses (*mutants*) are the document with one thing changed: a constant, a boundary, a branch, an
edit. Cases are chosen greedily so that each mutant fails as many as possible; expected values come
from the oracle. So a wrong constant or a missing branch in requirements shows as a lower pass rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random
from typing import Any

from iccm_assets.reference.document import Document, Number, Raise, Text
from iccm_assets.reference.oracle import Raised, Undefined, run

CANDIDATES = 50
_NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "is less than": ("is at most", "is at least"),
    "is at most": ("is less than", "is more than"),
    "is more than": ("is at least", "is at most"),
    "is at least": ("is more than", "is less than"),
    "is": ("is not", "is at least"),
    "is not": ("is",),
    "is longer than": ("is shorter than",),
    "is shorter than": ("is longer than",),
    "starts with": ("ends with", "contains"),
    "ends with": ("starts with", "contains"),
    "contains": ("starts with", "ends with"),
    "plus": ("minus", "times"),
    "minus": ("plus",),
    "times": ("plus", "divided by"),
    "modulo": ("divided by", "plus"),
    "divided by": ("modulo",),
    "and": ("or",),
    "or": ("and",),
    "largest": ("smallest",),
    "smallest": ("largest",),
    "count": ("sum",),
    "sum": ("count",),
    "in lower case": ("in upper case", "capitalised"),
    "in upper case": ("in lower case",),
    "capitalised": ("in lower case",),
    "in front": ("at the end",),
    "at the end": ("in front",),
    "at least": ("at most",),
    "at most": ("at least",),
    "add": ("subtract",),
    "subtract": ("add",),
    "sorted": ("reversed",),
}


def suite(document: Document, kinds: tuple[str, ...], rng: Random, size: int = 8) -> dict[str, Any]:
    """A suite of ``size`` cases or a few more (J1); deterministic for a given ``rng``."""
    allowed = {part.error for part in _walk(document) if isinstance(part, Raise)}
    inputs: dict[str, tuple[list[Any], Any]] = {}
    for _ in range(CANDIDATES * 3):
        args = [_value(kind, document, rng) for kind in kinds]
        outcome = run(document, args)
        if isinstance(outcome, Undefined) or (isinstance(outcome, Raised) and outcome.error not in allowed):
            continue
        inputs.setdefault(repr(args), (args, outcome))
        if len(inputs) >= CANDIDATES:
            break
    pool = list(inputs.values())
    chosen = _choose(pool, list(mutants(document)), size)
    return {"kind": "cases", "cases": [_case(document.name, *pool[index]) for index in chosen]}


def _case(name: str, args: list[Any], outcome: Any) -> dict[str, Any]:
    end = {"raises": outcome.error} if isinstance(outcome, Raised) else {"expect": outcome}
    return {"call": name, "args": args, **end}


def _choose(pool: list[tuple[list[Any], Any]], misses: list[Document], size: int) -> list[int]:
    """Indices of the cases, greedily covering every mutant as evenly as possible."""
    kills = [
        {number for number, mutant in enumerate(misses) if not _same(run(mutant, args), outcome)}
        for args, outcome in pool
    ]
    killed = [0] * len(misses)
    chosen: list[int] = []
    while len(chosen) < min(size, len(pool)):
        best = max(
            (index for index in range(len(pool)) if index not in chosen),
            key=lambda index: (sum(0.25 ** killed[number] for number in kills[index]), -index),
        )
        chosen.append(best)
        for number in kills[best]:
            killed[number] += 1
    return sorted(chosen)


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _walk(node: Any) -> Iterator[Any]:
    yield node
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for part in dataclasses.fields(node):
            yield from _walk(getattr(node, part.name))
    elif isinstance(node, tuple):
        for part in node:
            yield from _walk(part)


def mutants(document: Document) -> Iterator[Document]:
    """The document with one thing in it changed, in every way."""
    for statements in _changes(document.statements):
        yield dataclasses.replace(document, statements=statements)


def _changes(node: Any) -> Iterator[Any]:
    """Every version of the node with one thing in it changed."""
    match node:
        case Number(value):
            yield from (Number(value + 1), Number(value - 1), Number(value * 10 + 1))
        case Text(value):
            yield from (Text(value + "q"), Text(value[:-1]))
        case str():
            yield from _NEIGHBOURS.get(node, ())
        case tuple():
            yield from _tuple_changes(node)
        case _ if dataclasses.is_dataclass(node) and not isinstance(node, type):
            yield from _field_changes(node)


def _tuple_changes(node: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """One part dropped, swapped with the one before it, or changed."""
    for index, part in enumerate(node):
        if len(node) > 1:
            yield (*node[:index], *node[index + 1 :])
        if index > 0:
            yield (*node[: index - 1], part, node[index - 1], *node[index + 1 :])
        for changed in _changes(part):
            yield (*node[:index], changed, *node[index + 1 :])


def _field_changes(node: Any) -> Iterator[Any]:
    """One field changed; names stay, and an edit keeps its number of constants."""
    for field in dataclasses.fields(node):
        if field.name in {"name", "error"}:
            continue
        value = getattr(node, field.name)
        for changed in _changes(value):
            if field.name != "args" or len(changed) == len(value):
                yield dataclasses.replace(node, **{field.name: changed})


def _value(kind: str, document: Document, rng: Random) -> Any:
    numbers = [part.value for part in _walk(document.statements) if isinstance(part, Number)] or [5]
    texts = [part.value for part in _walk(document.statements) if isinstance(part, Text)] or ["ab"]
    match kind:
        case "int":
            return _int(numbers, rng)
        case "str":
            return _text(texts, numbers, rng)
        case "list[int]":
            return [_int(numbers, rng) for _ in range(rng.choice((0, 1, 2, 4, 5, 6, 8)))]
    return [_text(texts, numbers, rng) for _ in range(rng.choice((0, 1, 3, 4, 5, 6)))]


def _int(numbers: list[Any], rng: Random) -> int:
    roll = rng.random()
    if roll < 0.5:
        return int(rng.choice(numbers)) + rng.choice((-1, 0, 1))
    return rng.randint(-20, 130) if roll < 0.85 else rng.randint(-300, 1200)


def _text(texts: list[str], numbers: list[Any], rng: Random) -> str:
    roll = rng.random()
    constant = rng.choice(texts)
    if roll < 0.25:
        return constant
    word = "".join(rng.choice("abcdeghikmnoprstuw") for _ in range(rng.randint(1, 9)))
    if roll < 0.55:
        return rng.choice((constant + word, word + constant, word + constant + word.upper()))
    if roll < 0.7:
        length = max(0, min(30, int(rng.choice(numbers)) + rng.choice((-1, 0, 1))))
        return "".join(rng.choice("abcdeghikmnoprstuwAB") for _ in range(length))
    if roll < 0.9:
        return f" {word.capitalize()} {constant}Big{constant}{word} x "[rng.choice((0, 0, 1)) :]
    return rng.choice(("", word, word.upper()))

"""Test suites for documents: few cases that tell the document from its near misses (J1, X1).

Near misses (*mutants*) are the document with one thing changed: a constant, a boundary, a branch, an
edit. Cases are chosen greedily so that each mutant fails as many as possible; expected values come
from the oracle. So a wrong constant or a missing branch in requirements shows as a lower pass rate.
Two of the cases are edges: empty, negative, huge, unicode. A class's case is an object and calls on it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import Draft
from iccm_assets.reference.oracle import Raised, Undefined, run, run_object

Kind = TypeVar("Kind", bound=ast.Document | ast.ClassDocument)

CANDIDATES = 50
EDGE_CANDIDATES, EDGE_CASES = 12, 2
EDGES: dict[str, tuple[Any, ...]] = {
    "int": (0, -1, 1, -1000, 1_000_000),
    "str": ("", " ", "Ünïcode ß", "日本語", "\tTab\n", "a" * 60),
    "list[int]": ([], [0], [-5, -5, 7], [10**6], list(range(15))),
    "list[str]": ([], [""], ["é", "É", "é"], [" x "], ["a"] * 15),
}
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


@dataclass(frozen=True)
class Trial:
    """One candidate case: what goes in. ``calls`` None: a function; else what is called on a new object."""

    args: list[Any]
    calls: list[tuple[str, list[Any]]] | None = None
    edge: bool = False


def suite(draft: Draft, rng: Random, size: int = 8) -> dict[str, Any]:
    """A suite of ``size`` cases (J1); deterministic for a given ``rng``."""
    document = draft.document
    allowed = {part.error for part in _walk(document) if isinstance(part, ast.Raise)}
    trials: dict[str, tuple[Trial, Any]] = {}
    for attempt in range(CANDIDATES * 3):
        trial = _draw(draft, rng, edge=attempt < EDGE_CANDIDATES)
        outcome = _outcome(document, trial)
        if _is_case(outcome, allowed):
            trials.setdefault(repr((trial.args, trial.calls)), (trial, outcome))
        if len(trials) >= CANDIDATES:
            break
    pool = list(trials.values())
    chosen = _choose(pool, list(mutants(document)), size)
    return {"kind": "cases", "cases": [_case(document, *pool[index]) for index in chosen]}


def _draw(draft: Draft, rng: Random, edge: bool) -> Trial:
    document = draft.document

    def values(kinds: tuple[str, ...]) -> list[Any]:
        odd = rng.randrange(len(kinds)) if edge and kinds else None
        return [
            rng.choice(EDGES[kind]) if at == odd else _value(kind, document, rng)
            for at, kind in enumerate(kinds)
        ]

    if isinstance(document, ast.Document):
        return Trial(values(draft.kinds), edge=edge)
    kinds = dict(zip((method.name for method in document.methods), draft.method_kinds, strict=True))
    often = (*kinds, next(iter(kinds)))  # the first method fills the object, without it the others say little
    names = [rng.choice(often) for _ in range(rng.randint(2, 7))]
    return Trial(values(draft.kinds), [(name, values(kinds[name])) for name in names], edge)


def _outcome(document: ast.Document | ast.ClassDocument, trial: Trial) -> Any:
    args = copy.deepcopy(trial.args)
    if isinstance(document, ast.Document):
        return run(document, args)
    return run_object(document, args, copy.deepcopy(trial.calls or []))


def _is_case(outcome: Any, allowed: set[str]) -> bool:
    """Whether the outcome is one that the document speaks of."""
    if isinstance(outcome, Undefined):
        return False
    found = outcome if isinstance(outcome, list) else [outcome]
    return all(part.error in allowed for part in found if isinstance(part, Raised))


def _case(document: ast.Document | ast.ClassDocument, trial: Trial, outcome: Any) -> dict[str, Any]:
    if trial.calls is None:
        return {"call": document.name, "args": trial.args, **_end(outcome)}
    if isinstance(outcome, Raised):
        return {"new": document.name, "args": trial.args, **_end(outcome)}
    steps = [
        {"call": name, "args": args, **_end(end)}
        for (name, args), end in zip(trial.calls, outcome, strict=True)
    ]
    return {"new": document.name, "args": trial.args, "steps": steps}


def _end(outcome: Any) -> dict[str, Any]:
    return {"raises": outcome.error} if isinstance(outcome, Raised) else {"expect": outcome}


def _choose(
    pool: list[tuple[Trial, Any]], misses: Sequence[ast.Document | ast.ClassDocument], size: int
) -> list[int]:
    """Indices of the cases: two edges, each error once, then greedily what covers every mutant evenly."""
    kills = [
        {number for number, mutant in enumerate(misses) if not _same(_outcome(mutant, trial), outcome)}
        for trial, outcome in pool
    ]
    killed = [0] * len(misses)
    chosen: list[int] = []
    unseen = {error for _, outcome in pool for error in _errors(outcome)}
    while len(chosen) < min(size, len(pool)):
        left = [index for index in range(len(pool)) if index not in chosen]
        edges = [index for index in left if pool[index][0].edge] if len(chosen) < EDGE_CASES else []
        faults = [index for index in left if unseen & _errors(pool[index][1])]
        best = max(
            edges or faults or left,
            key=lambda index: (sum(0.25 ** killed[number] for number in kills[index]), -index),
        )
        chosen.append(best)
        unseen -= _errors(pool[best][1])
        for number in kills[best]:
            killed[number] += 1
    return sorted(chosen)


def _errors(outcome: Any) -> set[str]:
    found = outcome if isinstance(outcome, list) else [outcome]
    return {part.error for part in found if isinstance(part, Raised)}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return all(_same(*pair) for pair in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right)


def _walk(node: Any) -> Iterator[Any]:
    yield node
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for part in dataclasses.fields(node):
            yield from _walk(getattr(node, part.name))
    elif isinstance(node, tuple):
        for part in node:
            yield from _walk(part)


def mutants(document: ast.Document | ast.ClassDocument) -> Iterator[ast.Document | ast.ClassDocument]:
    """The document with one thing in it changed, in every way."""
    yield from _restated(document)
    if isinstance(document, ast.ClassDocument):
        for at, method in enumerate(document.methods):
            for other in _restated(method):
                methods = (*document.methods[:at], other, *document.methods[at + 1 :])
                yield dataclasses.replace(document, methods=methods)


def _restated(document: Kind) -> Iterator[Kind]:
    for statements in _changes(document.statements):
        yield dataclasses.replace(document, statements=statements)


def _changes(node: Any) -> Iterator[Any]:
    """Every version of the node with one thing in it changed."""
    match node:
        case ast.Number(value):
            yield from (ast.Number(value + 1), ast.Number(value - 1), ast.Number(value * 10 + 1))
        case ast.Text(value):
            yield from (ast.Text(value + "q"), ast.Text(value[:-1]))
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


@lru_cache(maxsize=64)
def _constants(document: ast.Document | ast.ClassDocument) -> tuple[list[int | float], list[str]]:
    """The numbers and texts a document speaks of."""
    numbers = [part.value for part in _walk(document) if isinstance(part, ast.Number)]
    return numbers or [5], [part.value for part in _walk(document) if isinstance(part, ast.Text)] or ["ab"]


def _value(kind: str, document: ast.Document | ast.ClassDocument, rng: Random) -> Any:
    numbers, texts = _constants(document)
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

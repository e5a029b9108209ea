"""Generate test suites that distinguish a document from its mutants (X1).

A mutant is the document with one change: a constant, a boundary, a branch, an edit. Cases are chosen greedily
so that each mutant fails as many as possible; expected values come from the interpreter. A wrong constant or
a missing branch in requirements therefore lowers the pass rate. Two of the cases are edge cases: empty,
negative, huge or unicode input. A case of a class creates an object and calls its methods. A suite may be
completed by cases that reach the branches its mutants left out; those of the canary set are frozen without.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.families.common import TypedDocument
from iccm_assets.simulation.language.interpreter import (
    RaisedError,
    Unspecified,
    call_function,
    call_methods,
    copy_value,
)

AnyDocument = TypeVar("AnyDocument", bound=ast.FunctionDocument | ast.ClassDocument)

CANDIDATE_CASES = 50
EDGE_CANDIDATES, EDGE_CASES = 12, 2
MAX_CASES = 10
FURTHER_CANDIDATES = 200
MARKER = "BranchReached"
EDGE_VALUES: dict[str, tuple[Any, ...]] = {
    "int": (0, -1, 1, -1000, 1_000_000),
    "str": ("", " ", "Ünïcode ß", "日本語", "\tTab\n", "a" * 60),
    "list[int]": ([], [0], [-5, -5, 7], [10**6], list(range(15))),
    "list[str]": ([], [""], ["é", "É", "é"], [" x "], ["a"] * 15),
}
_NEIGHBORS: dict[str, tuple[str, ...]] = {
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
class CandidateInput:
    """Input of one candidate case; ``calls`` are method calls on a new object, None for a function."""

    args: list[Any]
    calls: list[tuple[str, list[Any]]] | None = None
    edge: bool = False


def generate_suite(draft: TypedDocument, rng: Random, size: int = 8) -> dict[str, Any]:
    """Generate a suite of ``size`` cases; deterministic for a given ``rng``."""
    pool = _draw_pool(draft, rng, CANDIDATE_CASES)
    chosen = _choose(pool, list(generate_mutants(draft.document)), size)
    return _suite(draft.document, [pool[index] for index in sorted(chosen)])


def generate_complete_suite(draft: TypedDocument, rng: Random, size: int = 8) -> dict[str, Any]:
    """Generate a suite as ``generate_suite`` does, with a case for each branch that can be reached.

    A case for a branch is added, or replaces the least useful one where there are ``MAX_CASES``.
    """
    document = draft.document
    pool = _draw_pool(draft, rng, CANDIDATE_CASES)
    chosen = _choose(pool, list(generate_mutants(document)), size)
    added: list[tuple[CandidateInput, Any]] = []
    further: list[tuple[CandidateInput, Any]] = []
    for branch in _mark_branches(document):
        if any(_reaches(branch, case) for case in (*(pool[index] for index in chosen), *added)):
            continue
        further = further or _draw_pool(
            draft, Random(repr(document)), FURTHER_CANDIDATES, FURTHER_CANDIDATES // 2
        )
        if case := next((case for case in (*pool, *further) if _reaches(branch, case)), None):
            del chosen[MAX_CASES - 1 - len(added) :]
            added.append(case)
    return _suite(document, [*(pool[index] for index in sorted(chosen)), *added])


def _suite(
    document: ast.FunctionDocument | ast.ClassDocument, chosen: list[tuple[CandidateInput, Any]]
) -> dict[str, Any]:
    return {"kind": "cases", "cases": [_case(document, *case) for case in chosen]}


def _draw_pool(
    draft: TypedDocument, rng: Random, size: int, edges: int = EDGE_CANDIDATES
) -> list[tuple[CandidateInput, Any]]:
    """Draw distinct candidates with their outcomes; the first ``edges`` attempts draw edge cases."""
    document = draft.document
    allowed = {node.error for node in _walk(document) if isinstance(node, ast.Raise)}
    candidates: dict[str, tuple[CandidateInput, Any]] = {}
    for attempt in range(size * 3):
        candidate = _draw(draft, rng, edge=attempt < edges)
        outcome = _run(document, candidate)
        if not isinstance(outcome, Unspecified) and _errors(outcome) <= allowed:
            candidates.setdefault(repr((candidate.args, candidate.calls)), (candidate, outcome))
        if len(candidates) >= size:
            break
    return list(candidates.values())


def _mark_branches(document: AnyDocument) -> Iterator[AnyDocument]:
    """Generate the document with one outcome after the other replaced by an error of its own."""
    for index, statement in enumerate(document.statements):
        if isinstance(statement, ast.When | ast.Otherwise):
            marked = dataclasses.replace(statement, outcome=ast.Raise(MARKER))
            statements = (*document.statements[:index], marked, *document.statements[index + 1 :])
            yield dataclasses.replace(document, statements=statements)
    if isinstance(document, ast.ClassDocument):
        for index, method in enumerate(document.methods):
            for marked_method in _mark_branches(method):
                methods = (*document.methods[:index], marked_method, *document.methods[index + 1 :])
                yield dataclasses.replace(document, methods=methods)


def _reaches(branch: ast.FunctionDocument | ast.ClassDocument, case: tuple[CandidateInput, Any]) -> bool:
    return MARKER in _errors(_run(branch, case[0]))


def _draw(draft: TypedDocument, rng: Random, edge: bool) -> CandidateInput:
    document = draft.document

    def values(kinds: tuple[str, ...]) -> list[Any]:
        edge_index = rng.randrange(len(kinds)) if edge and kinds else None
        return [
            rng.choice(EDGE_VALUES[kind]) if index == edge_index else _value(kind, document, rng)
            for index, kind in enumerate(kinds)
        ]

    if isinstance(document, ast.FunctionDocument):
        return CandidateInput(values(draft.param_types), edge=edge)
    kinds = dict(zip((method.name for method in document.methods), draft.method_param_types, strict=True))
    # The first method counts twice: it fills the object, and without it the others show little.
    names = (*kinds, next(iter(kinds)))
    calls = [rng.choice(names) for _ in range(rng.randint(2, 7))]
    return CandidateInput(values(draft.param_types), [(name, values(kinds[name])) for name in calls], edge)


def _run(document: ast.FunctionDocument | ast.ClassDocument, candidate: CandidateInput) -> Any:
    args = copy_value(candidate.args)
    if isinstance(document, ast.FunctionDocument):
        return call_function(document, args)
    return call_methods(
        document, args, [(name, copy_value(values)) for name, values in candidate.calls or []]
    )


def _case(
    document: ast.FunctionDocument | ast.ClassDocument, candidate: CandidateInput, outcome: Any
) -> dict[str, Any]:
    case = {"call" if candidate.calls is None else "new": document.name, "args": candidate.args}
    if candidate.calls is None or isinstance(outcome, RaisedError):
        return case | _expectation(outcome)
    steps = [
        {"call": name, "args": args, **_expectation(result)}
        for (name, args), result in zip(candidate.calls, outcome, strict=True)
    ]
    return case | {"steps": steps}


def _expectation(outcome: Any) -> dict[str, Any]:
    return {"raises": outcome.error} if isinstance(outcome, RaisedError) else {"expect": outcome}


def _choose(pool: list[tuple[CandidateInput, Any]], mutated: Sequence[Any], size: int) -> list[int]:
    """Choose cases by index: two edge cases, each error once, then greedily what covers all mutants evenly.

    A mutant that already fails n chosen cases adds 1/4^n to the worth of a further one.
    """
    kills = [_find_failing(mutated, candidate, outcome) for candidate, outcome in pool]
    kill_counts = Counter[int]()
    chosen: list[int] = []
    missing_errors = {error for _, outcome in pool for error in _errors(outcome)}

    def worth(index: int) -> tuple[float, int]:
        return sum(0.25 ** kill_counts[number] for number in kills[index]), -index

    while len(chosen) < min(size, len(pool)):
        remaining = [index for index in range(len(pool)) if index not in chosen]
        edges = [index for index in remaining if pool[index][0].edge and len(chosen) < EDGE_CASES]
        errors = [index for index in remaining if missing_errors & _errors(pool[index][1])]
        best = max(next(filter(None, (edges, errors, remaining))), key=worth)
        chosen.append(best)
        missing_errors -= _errors(pool[best][1])
        kill_counts.update(kills[best])
    return chosen


def _find_failing(mutated: Sequence[Any], candidate: CandidateInput, outcome: Any) -> set[int]:
    return {number for number, mutant in enumerate(mutated) if not _equal(_run(mutant, candidate), outcome)}


def _errors(outcome: Any) -> set[str]:
    results = outcome if isinstance(outcome, list) else [outcome]
    return {result.error for result in results if isinstance(result, RaisedError)}


def _equal(left: Any, right: Any) -> bool:
    """Whether two outcomes are equal in type and value: 1, 1.0 and True are three values."""
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return all(map(_equal, left, right))
    return type(left) is type(right) and bool(left == right)


def _walk(node: Any) -> Iterator[Any]:
    yield node
    children = node if isinstance(node, tuple) else _fields(node).values()
    for child in children:
        yield from _walk(child)


def _fields(node: Any) -> dict[str, Any]:
    return {name: getattr(node, name) for name in getattr(node, "__match_args__", ())}


def generate_mutants(document: AnyDocument) -> Iterator[AnyDocument]:
    """Generate the document with one thing changed, in every way."""
    yield from _mutate_statements(document)
    if isinstance(document, ast.ClassDocument):
        for index, method in enumerate(document.methods):
            for mutant in _mutate_statements(method):
                methods = (*document.methods[:index], mutant, *document.methods[index + 1 :])
                yield dataclasses.replace(document, methods=methods)


def _mutate_statements(document: AnyDocument) -> Iterator[AnyDocument]:
    for statements in _mutate(document.statements):
        yield dataclasses.replace(document, statements=statements)


def _mutate(node: Any) -> Iterator[Any]:
    """Generate every version of the node with one thing in it changed."""
    match node:
        case ast.NumberLiteral(value):
            yield from (
                ast.NumberLiteral(value + 1),
                ast.NumberLiteral(value - 1),
                ast.NumberLiteral(value * 10 + 1),
            )
        case ast.TextLiteral(value):
            yield from (ast.TextLiteral(value + "q"), ast.TextLiteral(value[:-1]))
        case str():
            yield from _NEIGHBORS.get(node, ())
        case tuple():
            yield from _mutate_tuple(node)
        case ast.Node():
            yield from _mutate_fields(node)


def _mutate_tuple(node: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Drop one part, swap it with the one before it, or mutate it."""
    for index, part in enumerate(node):
        if len(node) > 1:
            yield (*node[:index], *node[index + 1 :])
        if index > 0:
            yield (*node[: index - 1], part, node[index - 1], *node[index + 1 :])
        for mutant in _mutate(part):
            yield (*node[:index], mutant, *node[index + 1 :])


def _mutate_fields(node: ast.Node) -> Iterator[ast.Node]:
    """Mutate one field; names and errors do not change, nor does the number of an edit's constants."""
    for name, value in _fields(node).items():
        if name not in {"name", "error"}:
            for mutant in _mutate(value):
                if name != "args" or len(mutant) == len(value):
                    yield dataclasses.replace(node, **{name: mutant})


@lru_cache(maxsize=64)
def _constants(document: ast.FunctionDocument | ast.ClassDocument) -> tuple[list[int | float], list[str]]:
    """Collect the numbers and texts of a document, or defaults for each."""
    nodes = list(_walk(document))
    numbers = [node.value for node in nodes if isinstance(node, ast.NumberLiteral)]
    return numbers or [5], [node.value for node in nodes if isinstance(node, ast.TextLiteral)] or ["ab"]


def _value(kind: str, document: ast.FunctionDocument | ast.ClassDocument, rng: Random) -> Any:
    numbers, texts = _constants(document)
    if kind == "int":
        return _int(numbers, rng)
    if kind == "list[int]":
        return [_int(numbers, rng) for _ in range(rng.choice((0, 1, 2, 4, 5, 6, 8)))]
    if kind == "str":
        return _text(texts, numbers, rng)
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

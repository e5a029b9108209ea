"""The base family about errors: each argument is checked, and each fault raises its own error."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    INDENT,
    Draft,
    Family,
    branch,
    comparison,
    draft_function,
    number,
    py_condition,
    py_outcome,
    py_value,
    yoda,
)  # fmt: skip
from iccm_assets.reference.words import ERRORS, MARKS, Lexicon


def _fault(rng: Random, name: str, kind: str) -> ast.Test:
    subject = ast.Name(name)
    if kind == "int":
        return comparison(
            subject, rng.choice(("is less than", "is more than", "is at most", "is")), number(rng)
        )
    roll = rng.random()
    if roll < 0.4:
        return ast.Empty(ast.Chain(subject))
    if roll < 0.75 or kind != "str":
        return comparison(subject, "is longer than", rng.randint(2, 12))
    return comparison(subject, rng.choice(("contains", "starts with")), rng.choice(MARKS))


def _result(rng: Random, names: dict[str, str]) -> ast.Expression:
    name, kind = rng.choice(sorted(names.items()))
    if kind == "str" and rng.random() < 0.6:
        edit = ast.Edit(rng.choice(("stripped", "in lower case", "in upper case")))
        return ast.Edited(ast.Name(name), (edit,))
    base = ast.Name(name) if kind == "int" else ast.Size(ast.Name(name))
    others = [other for other, other_kind in names.items() if other != name and other_kind == "int"]
    other = rng.choice(others) if others and rng.random() < 0.5 else None
    operand = ast.Name(other) if other else ast.Number(rng.randint(2, 30))
    return ast.Chain(base, (ast.Step(rng.choice(("plus", "minus", "times")), operand),))


def _guards(rng: Random, words: Lexicon) -> Draft:
    """One to three arguments, most of them checked."""
    kinds = tuple(rng.choice(("int", "int", "str", "list[int]")) for _ in range(rng.choice((1, 2, 2, 3))))
    make = {"int": words.number_name, "str": words.text_name, "list[int]": words.list_name}
    names = {make[kind](): kind for kind in kinds}
    faults = [(name, kind) for name, kind in names.items() if rng.random() < 0.8] or list(names.items())[:1]
    errors = rng.sample(ERRORS, len(faults))
    guards = [
        branch(_fault(rng, name, kind), ast.Raise(error))
        for (name, kind), error in zip(faults, errors, strict=True)
    ]
    result = _result(rng, names)
    gives = "str" if isinstance(result, ast.Edited) else "int"
    return draft_function(words, tuple(names), (*guards, ast.Always(ast.Return(result))), kinds, gives)


def _write_guards(document: ast.Document, style: str, rng: Random) -> list[str]:
    *guards, last = document.statements
    assert isinstance(last, ast.Always)
    lines: list[str] = []
    for guard in guards:
        assert isinstance(guard, ast.When)
        condition = (yoda if style == "literal_first" else py_condition)(guard.condition, rng)
        keyword = "elif" if style == "elif" and lines else "if"
        lines += [f"{keyword} {condition}:", INDENT + py_outcome(guard.outcome, rng)]
    code = py_value(last.outcome)
    if style == "result":
        variable = rng.choice(("result", "out", "answer"))
        return [*lines, f"{variable} = {code}", f"return {variable}"]
    return [*lines, f"return {code}"]


GUARDS = Family("guards", _guards, _write_guards, ("plain", "elif", "literal_first", "result"))

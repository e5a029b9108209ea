"""The base family about errors: each argument is checked, and each fault raises its own error."""

from __future__ import annotations

from random import Random

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.families.common import (
    INDENT,
    Family,
    TypedDocument,
    compare,
    draft_function,
    draw_number,
    py_condition,
    py_literal_first,
    py_outcome,
    py_value,
    when_test,
)
from iccm_assets.simulation.language.vocabulary import ERRORS, PUNCTUATION, Vocabulary


def _fault(rng: Random, name: str, kind: str) -> ast.Test:
    subject = ast.Parameter(name)
    if kind == "int":
        return compare(
            subject, rng.choice(("is less than", "is more than", "is at most", "is")), draw_number(rng)
        )
    roll = rng.random()
    if roll < 0.4:
        return ast.IsEmpty(ast.Chain(subject))
    if roll < 0.75 or kind != "str":
        return compare(subject, "is longer than", rng.randint(2, 12))
    return compare(subject, rng.choice(("contains", "starts with")), rng.choice(PUNCTUATION))


def _result(rng: Random, names: dict[str, str]) -> ast.Expression:
    name, kind = rng.choice(sorted(names.items()))
    if kind == "str" and rng.random() < 0.6:
        edit = ast.Edit(rng.choice(("stripped", "in lower case", "in upper case")))
        return ast.EditedText(ast.Parameter(name), (edit,))
    base = ast.Parameter(name) if kind == "int" else ast.Length(ast.Parameter(name))
    others = [other for other, other_kind in names.items() if other != name and other_kind == "int"]
    other = rng.choice(others) if others and rng.random() < 0.5 else None
    operand = ast.Parameter(other) if other else ast.NumberLiteral(rng.randint(2, 30))
    return ast.Chain(base, (ast.Step(rng.choice(("plus", "minus", "times")), operand),))


def _guards(rng: Random, words: Vocabulary) -> TypedDocument:
    """One to three arguments, most of them checked."""
    kinds = tuple(rng.choice(("int", "int", "str", "list[int]")) for _ in range(rng.choice((1, 2, 2, 3))))
    make = {"int": words.number_name, "str": words.text_name, "list[int]": words.list_name}
    names = {make[kind](): kind for kind in kinds}
    faults = [(name, kind) for name, kind in names.items() if rng.random() < 0.8] or list(names.items())[:1]
    errors = rng.sample(ERRORS, len(faults))
    guards = [
        when_test(_fault(rng, name, kind), ast.Raise(error))
        for (name, kind), error in zip(faults, errors, strict=True)
    ]
    result = _result(rng, names)
    gives = "str" if isinstance(result, ast.EditedText) else "int"
    return draft_function(words, tuple(names), (*guards, ast.Always(ast.Return(result))), kinds, gives)


def _write_guards(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    *guards, last = document.statements
    assert isinstance(last, ast.Always)
    lines: list[str] = []
    for guard in guards:
        assert isinstance(guard, ast.When)
        condition = (py_literal_first if style == "literal_first" else py_condition)(guard.condition, rng)
        keyword = "elif" if style == "elif" and lines else "if"
        lines += [f"{keyword} {condition}:", INDENT + py_outcome(guard.outcome, rng)]
    code = py_value(last.outcome)
    if style == "result":
        variable = rng.choice(("result", "out", "answer"))
        return [*lines, f"{variable} = {code}", f"return {variable}"]
    return [*lines, f"return {code}"]


GUARDS = Family("guards", _guards, _write_guards, ("plain", "elif", "literal_first", "result"))

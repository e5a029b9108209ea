"""The base family about errors: guards. Each argument is checked, and each fault has an error of its own."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    INDENT,
    Draft,
    Family,
    number,
    py_chain,
    py_condition,
    py_edit,
    py_outcome,
    yoda,
)  # fmt: skip
from iccm_assets.reference.words import ERRORS, MARKS, Lexicon


def _fault(rng: Random, words: Lexicon, name: str, kind: str) -> ast.Test:
    if kind == "int":
        op = rng.choice(("is less than", "is more than", "is at most", "is"))
        return ast.Compare(ast.Chain(ast.Name(name)), op, ast.Number(number(rng)))  # type: ignore[arg-type]
    roll = rng.random()
    if roll < 0.4:
        return ast.Empty(ast.Chain(ast.Name(name)))
    if roll < 0.75 or kind != "str":
        return ast.Compare(ast.Chain(ast.Name(name)), "is longer than", ast.Number(rng.randint(2, 12)))
    return ast.Compare(
        ast.Chain(ast.Name(name)), rng.choice(("contains", "starts with")), ast.Text(rng.choice(MARKS))
    )


def _result(rng: Random, names: dict[str, str]) -> ast.Expression:
    name, kind = rng.choice(sorted(names.items()))
    if kind == "str" and rng.random() < 0.6:
        return ast.Edited(
            ast.Name(name), (ast.Edit(rng.choice(("stripped", "in lower case", "in upper case"))),)
        )
    base = ast.Name(name) if kind == "int" else ast.Size(ast.Name(name))
    others = [other for other, its in names.items() if other != name and its == "int"]
    operand = (
        ast.Name(rng.choice(others)) if others and rng.random() < 0.5 else ast.Number(rng.randint(2, 30))
    )
    return ast.Chain(base, (ast.Step(rng.choice(("plus", "minus", "times")), operand),))


def _guards(rng: Random, words: Lexicon) -> Draft:
    """Two or three arguments, most of them checked."""
    kinds = tuple(rng.choice(("int", "int", "str", "list[int]")) for _ in range(rng.choice((1, 2, 2, 3))))
    make = {"int": words.number_name, "str": words.text_name, "list[int]": words.list_name}
    names = {make[kind](): kind for kind in kinds}
    faults = [(name, kind) for name, kind in names.items() if rng.random() < 0.8] or list(names.items())[:1]
    errors = rng.sample(ERRORS, len(faults))
    statements: list[ast.Statement] = [
        ast.When(ast.Condition((_fault(rng, words, name, kind),)), ast.Raise(error))
        for (name, kind), error in zip(faults, errors, strict=True)
    ]
    result = _result(rng, names)
    statements.append(ast.Always(ast.Return(result)))
    document = ast.Document(words.function_name(), tuple(names), tuple(statements), words.purpose())
    return Draft(document, kinds, "str" if isinstance(result, ast.Edited) else "int")


def _write_guards(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines: list[str] = []
    for part in document.statements:
        if isinstance(part, ast.When):
            test = yoda(part.condition, rng) if style == "yoda" else py_condition(part.condition, rng)
            word = "elif" if style == "elif" and lines else "if"
            lines += [f"{word} {test}:", INDENT + py_outcome(part.outcome, rng)]
    last = document.statements[-1]
    assert isinstance(last, ast.Always) and isinstance(last.outcome, ast.Return)
    value = last.outcome.value
    assert isinstance(value, ast.Chain | ast.Edited)
    code = py_chain(value) if isinstance(value, ast.Chain) else py_edit(value.base.name, value.edits[0])
    if style == "result":
        var = rng.choice(("result", "out", "answer"))
        return [*lines, f"{var} = {code}", f"return {var}"]
    return [*lines, f"return {code}"]


GUARDS = Family("guards", _guards, _write_guards, ("plain", "elif", "yoda", "result"))

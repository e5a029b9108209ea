"""Base families about texts and truth: cleaning, checks, forms."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    ERROR,
    INDENT,
    Draft,
    Family,
    give,
    ladder,
    number,
    py_condition,
    py_edit,
    py_guards,
    py_outcome,
    py_test,
)  # fmt: skip
from iccm_assets.reference.words import MARKS, Lexicon


def _cleaning(rng: Random, words: Lexicon) -> Draft:
    """A text is cleaned in several steps."""
    name = words.text_name()
    mark, other = rng.sample(MARKS, 2)
    case = ast.Edit(rng.choice(("in lower case", "in lower case", "in upper case", "capitalised")))
    end = rng.choice(("in front", "at the end"))
    affix = words.label() + rng.choice((mark, other, ""))
    pool = [
        ast.Edit("stripped"),
        case,
        ast.Edit(
            "replaced", (ast.Text(rng.choice((" ", mark, mark))), ast.Text(rng.choice(("", other, other))))
        ),
        ast.Edit("cut", (ast.Number(rng.randint(2, 24)),)),
        ast.Edit(end, (ast.Text(affix),)),  # type: ignore[arg-type]
    ]
    edits = rng.sample(pool, rng.choice((2, 2, 3, 3, 4)))
    statements: list[ast.Statement] = []
    if rng.random() < 0.3:
        outcome = ERROR if rng.random() < 0.5 else give(words.label())
        statements.append(ast.When(ast.Condition((ast.Empty(ast.Chain(ast.Name(name))),)), outcome))
    statements.append(ast.Always(ast.Return(ast.Edited(ast.Name(name), tuple(edits)))))
    return Draft(
        ast.Document(words.function_name(), (name,), tuple(statements), words.purpose()), ("str",), "str"
    )


def _write_cleaning(document: ast.Document, style: str, rng: Random) -> list[str]:
    lines, whens = py_guards(document, rng)
    for when in whens:
        test = py_test(when.condition.tests[0], rng)
        lines += [f"if {test}:", INDENT + py_outcome(when.outcome, rng)]
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Edited)
    )
    code = document.params[0]
    var = rng.choice(("text", "out", "result")) if style == "renamed" else code
    if style == "chained":
        for edit in last.outcome.value.edits:
            code = py_edit(code, edit)
        return [*lines, f"return {code}"]
    edits = last.outcome.value.edits
    for edit in edits[:-1]:
        lines.append(f"{var} = {py_edit(code, edit)}")
        code = var
    return [*lines, f"return {py_edit(code, edits[-1])}"]


def _forms(rng: Random, words: Lexicon) -> Draft:
    """A text is changed in one way or another, by what it looks like."""
    name = words.text_name()
    count = rng.choice((1, 1, 2))
    pool = [
        ast.Edit(rng.choice(("stripped", "in lower case", "in upper case", "capitalised"))),
        ast.Edit("replaced", (ast.Text(rng.choice((" ", *MARKS))), ast.Text(rng.choice(("", *MARKS))))),
        ast.Edit("cut", (ast.Number(rng.randint(1, 20)),)),
        ast.Edit("in front", (ast.Text(words.label() + rng.choice(MARKS)),)),
        ast.Edit("at the end", (ast.Text(rng.choice(MARKS) + words.label()),)),
    ]
    outcomes = [ast.Return(ast.Edited(ast.Name(name), (edit,))) for edit in rng.sample(pool, count + 1)]
    tests: list[ast.Test] = []
    while len(tests) < count:
        test = _text_test(rng, words, name)
        tests += [test] if test not in tests else []
    statements: list[ast.Statement] = [
        ast.When(ast.Condition((test,)), ERROR if rng.random() < 0.12 else outcome)
        for test, outcome in zip(tests, outcomes, strict=False)
    ]
    statements.append(ast.Otherwise(outcomes[-1]))
    return Draft(
        ast.Document(words.function_name(), (name,), tuple(statements), words.purpose()), ("str",), "str"
    )


def _write_forms(document: ast.Document, style: str, rng: Random) -> list[str]:
    def value(outcome: ast.Outcome) -> str:
        assert isinstance(outcome, ast.Return) and isinstance(outcome.value, ast.Edited)
        return py_edit(outcome.value.base.name, outcome.value.edits[0])

    lines, whens = py_guards(document, rng)
    last = document.statements[-1]
    assert isinstance(last, ast.Otherwise)
    if style == "ternary" and not any(isinstance(when.outcome, ast.Raise) for when in whens):
        parts = [f"({value(when.outcome)}) if {py_condition(when.condition, rng)}" for when in whens]
        return [*lines, "return " + " else ".join((*parts, value(last.outcome)))]
    var = document.params[0]
    for when in whens:
        lines.append(f"if {py_condition(when.condition, rng)}:")
        if isinstance(when.outcome, ast.Raise):
            lines.append(INDENT + py_outcome(when.outcome, rng))
        elif style == "renamed" and when is whens[-1]:
            return [*lines, f"{INDENT}{var} = {value(when.outcome)}", "else:",
                    f"{INDENT}{var} = {value(last.outcome)}", f"return {var}"]  # fmt: skip
        else:
            lines.append(f"{INDENT}return {value(when.outcome)}")
    return [*lines, f"return {value(last.outcome)}"]


def _number_test(rng: Random, name: str) -> ast.Test:
    if rng.random() < 0.3:
        low, high = ladder(rng, 2)
        return ast.Between(ast.Chain(ast.Name(name)), ast.Number(low), ast.Number(high))
    op = rng.choice(("is less than", "is at most", "is more than", "is at least", "is not"))
    return ast.Compare(ast.Chain(ast.Name(name)), op, ast.Number(number(rng, 1)))  # type: ignore[arg-type]


def _text_test(rng: Random, words: Lexicon, name: str) -> ast.Test:
    if rng.random() < 0.4:
        op = rng.choice(("is longer than", "is shorter than"))
        return ast.Compare(ast.Chain(ast.Name(name)), op, ast.Number(rng.randint(2, 20)))  # type: ignore[arg-type]
    op = rng.choice(("starts with", "ends with", "contains", "is"))
    constant = words.label() if op == "is" else rng.choice((rng.choice(MARKS), words.label()[:3]))
    return ast.Compare(ast.Chain(ast.Name(name)), op, ast.Text(constant))  # type: ignore[arg-type]


def _checks(rng: Random, words: Lexicon) -> Draft:
    """Says whether the arguments meet two or three tests."""
    kinds = tuple(rng.choice(("int", "int", "str")) for _ in range(rng.choice((2, 2, 3))))
    params = tuple(words.number_name() if kind == "int" else words.text_name() for kind in kinds)
    tests = tuple(
        _number_test(rng, name) if kind == "int" else _text_test(rng, words, name)
        for name, kind in zip(params, kinds, strict=True)
    )
    condition = ast.Condition(tests, rng.choice(("and", "or")))
    document = ast.Document(
        words.function_name(), params, (ast.Always(ast.Return(ast.Whether(condition))),), words.purpose()
    )
    return Draft(document, kinds, "bool")


def _write_checks(document: ast.Document, style: str, rng: Random) -> list[str]:
    last = document.statements[-1]
    assert (
        isinstance(last, ast.Always)
        and isinstance(last.outcome, ast.Return)
        and isinstance(last.outcome.value, ast.Whether)
    )
    condition = last.outcome.value.condition
    tests = [py_test(test, rng) for test in condition.tests]
    if style == "any":
        return [f"return {'all' if condition.joiner == 'and' else 'any'}([{', '.join(tests)}])"]
    if style == "early" and condition.joiner == "or":
        lines = [line for test in tests[:-1] for line in (f"if {test}:", f"{INDENT}return True")]
        return [*lines, f"return {tests[-1]}"]
    if style == "early":
        lines = [line for test in tests[:-1] for line in (f"if not ({test}):", f"{INDENT}return False")]
        return [*lines, f"return {tests[-1]}"]
    tests = [f"({test})" if " and " in test and condition.joiner == "or" else test for test in tests]
    code = f" {condition.joiner} ".join(tests)
    if style == "if":
        return [f"if {code}:", f"{INDENT}return True", "return False"]
    return [f"return {code}"]


CLEANING = Family("cleaning", _cleaning, _write_cleaning, ("chained", "stepwise", "renamed"))
CHECKS = Family("checks", _checks, _write_checks, ("plain", "if", "early", "any"))
FORMS = Family("forms", _forms, _write_forms, ("plain", "ternary", "renamed"))

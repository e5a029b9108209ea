"""What families share: the shape of a family, and pieces of Python for their source code.

The readers do not use this module: they write their own code (O2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from iccm_assets.reference import document as ast
from iccm_assets.reference.words import Lexicon

INDENT = "    "
_PRECEDENCE = {"plus": 1, "minus": 1, "times": 2, "divided by": 2, "modulo": 2}
_SYMBOLS = {"plus": "+", "minus": "-", "times": "*", "divided by": "//", "modulo": "%"}
_RELATIONS = {
    "is less than": "<", "is at most": "<=", "is more than": ">", "is at least": ">=",
    "is": "==", "is not": "!=",
}  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A document with the kinds of its parameters: ``int``, ``str``, ``list[int]`` or ``list[str]``.

    ``gives`` is what a function returns; for a class ``method_kinds`` has its methods' parameters.
    """

    document: ast.Document | ast.ClassDocument
    kinds: tuple[str, ...]
    gives: str = ""
    method_kinds: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Family:
    """A kind of function or class: draws documents and writes source code for them in several styles.

    ``write`` gives the lines of a function's body, or of a whole class.
    """

    name: str
    draw: Callable[[Random, Lexicon], Draft]
    write: Callable[[Any, str, Random], list[str]]
    styles: tuple[str, ...] = field(default=("plain",))


def number(rng: Random, low: int = 0, high: int = 99) -> int:
    """A constant: mostly one or two digits, now and then a round three-digit one."""
    roll = rng.random()
    if roll < 0.25:
        return rng.randint(low, min(high, 12))
    if roll < 0.93:
        return rng.randint(low, high)
    return rng.randint(max(2, low // 50), 18) * 50


def ladder(rng: Random, count: int) -> list[int]:
    """Increasing constants, at least two apart so that each step can be told from the next."""
    values: set[int] = set()
    while len(values) < count:
        value = number(rng, 1)
        if all(abs(value - other) > 1 for other in values):
            values.add(value)
    return sorted(values)


def distinct(rng: Random, count: int, low: int = 0, high: int = 99) -> list[int]:
    """Different constants in any order."""
    values: list[int] = []
    while len(values) < count:
        value = number(rng, low, high)
        if value not in values:
            values.append(value)
    return values


def compare(left: ast.Atom, op: str, right: int | str) -> ast.Condition:
    """A condition of one comparison with a constant."""
    constant = ast.Text(right) if isinstance(right, str) else ast.Number(right)
    return ast.Condition((ast.Compare(ast.Chain(left), op, constant),))  # type: ignore[arg-type]


def give(value: int | str) -> ast.Return:
    """The outcome that returns a constant."""
    return ast.Return(ast.Chain(ast.Text(value) if isinstance(value, str) else ast.Number(value)))


def negative_guard(rng: Random, name: str, chance: float = 0.35) -> tuple[ast.When, ...]:
    """Sometimes: numbers below a small constant raise ValueError."""
    if rng.random() >= chance:
        return ()
    return (
        ast.When(
            compare(ast.Name(name), rng.choice(("is less than", "is at most")), rng.choice((0, 0, 1, 2))),
            ERROR,
        ),
    )


ERROR = ast.Raise("ValueError")


# ---- Python


def py_atom(atom: ast.Atom, item: str = "item", total: str = "total") -> str:
    """An atom as Python."""
    match atom:
        case ast.Number(value):
            return repr(value)
        case ast.Text(value):
            return repr(value)
        case ast.Truth(value):
            return repr(value)
        case ast.Name(name):
            return name
        case ast.Item():
            return item
        case ast.Total():
            return total
        case ast.Own(name):
            return f"self.{name}"
        case ast.Size(of):
            return f"len({py_atom(of)})"


def py_chain(chain: ast.Chain, item: str = "item", total: str = "total") -> str:
    """Arithmetic as Python, with the brackets that reading from left to right needs."""
    return py_steps(py_atom(chain.base, item, total), chain.steps, item, total)


def py_steps(code: str, steps: tuple[ast.Step, ...], item: str = "item", total: str = "total") -> str:
    """The steps of a chain applied to a piece of code that needs no brackets itself."""
    loosest = 9
    for step in steps:
        strength = _PRECEDENCE[step.op]
        code = f"({code})" if loosest < strength else code
        code = f"{code} {_SYMBOLS[step.op]} {py_atom(step.operand, item, total)}"
        loosest = strength
    return code


def py_test(test: ast.Test, rng: Random, item: str = "item", total: str = "total") -> str:
    """One test as Python, in one of the usual spellings."""
    left = py_chain(test.left, item, total)
    match test:
        case ast.Empty():
            return rng.choice((f"not {left}", f"len({left}) == 0"))
        case ast.Between(_, low, high):
            ends = py_atom(low), py_atom(high)
            return rng.choice(
                (f"{ends[0]} <= {left} <= {ends[1]}", f"{left} >= {ends[0]} and {left} <= {ends[1]}")
            )
        case ast.Compare(_, op, right):
            value = py_atom(right, item, total)
            match op:
                case "is longer than":
                    return f"len({left}) > {value}"
                case "is shorter than":
                    return f"len({left}) < {value}"
                case "starts with":
                    return f"{left}.startswith({value})"
                case "ends with":
                    return f"{left}.endswith({value})"
                case "contains":
                    return f"{value} in {left}"
            return f"{left} {_RELATIONS[op]} {value}"


def py_edit(code: str, edit: ast.Edit) -> str:
    """A change to a text as Python."""
    args = [repr(arg.value) for arg in edit.args]
    simple = code if "+" not in code.replace("'+'", "") else f"({code})"
    match edit.kind:
        case "stripped":
            return f"{simple}.strip()"
        case "in lower case":
            return f"{simple}.lower()"
        case "in upper case":
            return f"{simple}.upper()"
        case "capitalised":
            return f"{simple}.capitalize()"
        case "replaced":
            return f"{simple}.replace({args[0]}, {args[1]})"
        case "cut":
            return f"{simple}[:{args[0]}]"
        case "in front":
            return f"{args[0]} + {code}"
    return f"{code} + {args[0]}"


def yoda(condition: ast.Condition, rng: Random) -> str:
    """A condition of one comparison with the constant in front, where that can be said."""
    (test,) = condition.tests
    if not isinstance(test, ast.Compare) or test.op not in _RELATIONS:
        return py_condition(condition, rng)
    mirrored = _RELATIONS[test.op].translate(str.maketrans("<>", "><"))
    return f"{py_atom(test.right)} {mirrored} {py_chain(test.left)}"


def py_condition(condition: ast.Condition, rng: Random) -> str:
    """A condition as Python."""
    return f" {condition.joiner} ".join(py_test(test, rng) for test in condition.tests)


def py_value(outcome: ast.Outcome) -> str:
    """The Python of an outcome that returns arithmetic."""
    assert isinstance(outcome, ast.Return) and isinstance(outcome.value, ast.Chain)
    return py_chain(outcome.value)


def py_outcome(outcome: ast.Outcome, rng: Random) -> str:
    """A return or raise statement."""
    if isinstance(outcome, ast.Raise):
        return f"raise {outcome.error}" + rng.choice(("", "", "('bad value')", "('not allowed')"))
    return f"return {py_value(outcome)}"


def py_guards(document: ast.Document, rng: Random) -> tuple[list[str], tuple[ast.When, ...]]:
    """The lines of the leading checks that raise, and the ``When`` statements after them."""
    whens = [statement for statement in document.statements if isinstance(statement, ast.When)]
    lines: list[str] = []
    while whens and isinstance(whens[0].outcome, ast.Raise):
        guard = whens.pop(0)
        lines += [f"if {py_condition(guard.condition, rng)}:", INDENT + py_outcome(guard.outcome, rng)]
    return lines, tuple(whens)


def py_branches(document: ast.Document, style: str, rng: Random) -> list[str]:
    """``When``/``Otherwise`` as Python: styles ``if``, ``elif``, ``ternary``, ``result``, ``else``."""
    lines, whens = py_guards(document, rng)
    last = next(part.outcome for part in document.statements if isinstance(part, ast.Otherwise))
    if style == "ternary" and not isinstance(last, ast.Raise):
        parts = [f"{py_value(when.outcome)} if {py_condition(when.condition, rng)}" for when in whens]
        return [*lines, "return " + " else ".join([*parts, py_value(last)])]
    if style == "result" and not isinstance(last, ast.Raise):
        var = rng.choice(("result", "answer", "out"))
        lines.append(f"{var} = {py_value(last)}")
        word = "if"
        for when in whens:
            lines += [
                f"{word} {py_condition(when.condition, rng)}:",
                f"{INDENT}{var} = {py_value(when.outcome)}",
            ]
            word = "elif"
        return [*lines, f"return {var}"]
    for index, when in enumerate(whens):
        word = "elif" if style == "elif" and index else "if"
        lines += [f"{word} {py_condition(when.condition, rng)}:", INDENT + py_outcome(when.outcome, rng)]
    if style in {"else", "elif"}:
        return [*lines, "else:", INDENT + py_outcome(last, rng)]
    return [*lines, py_outcome(last, rng)]

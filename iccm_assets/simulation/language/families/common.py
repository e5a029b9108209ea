"""What the families share: the family type, document parts, and pieces of Python for their source code.

The reconstructors do not use this module: they write their own code (O2). Every function that takes ``rng``
draws from it in a fixed order; another order would change the shipped data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.vocabulary import Vocabulary

T = TypeVar("T")

INDENT = "    "
ERROR = ast.Raise("ValueError")
ORDERINGS = ("is less than", "is at most", "is more than", "is at least")
_PRECEDENCE = {"plus": 1, "minus": 1, "times": 2, "divided by": 2, "modulo": 2}
_OPERATORS = {"plus": "+", "minus": "-", "times": "*", "divided by": "//", "modulo": "%"}
_RELATIONS = {
    "is less than": "{} < {}", "is at most": "{} <= {}", "is more than": "{} > {}",
    "is at least": "{} >= {}", "is": "{} == {}", "is not": "{} != {}",
}  # fmt: skip
_COMPARISONS = _RELATIONS | {
    "is longer than": "len({}) > {}", "is shorter than": "len({}) < {}",
    "starts with": "{}.startswith({})", "ends with": "{}.endswith({})", "contains": "{1} in {0}",
}  # fmt: skip
_EDITS = {
    "stripped": "{0}.strip()", "in lower case": "{0}.lower()", "in upper case": "{0}.upper()",
    "capitalised": "{0}.capitalize()", "replaced": "{0}.replace({1}, {2})", "cut": "{0}[:{1}]",
    "sorted": "sorted({0})", "reversed": "{0}[::-1]", "without repeats": "list(dict.fromkeys({0}))",
}  # fmt: skip


@dataclass(frozen=True)
class TypedDocument:
    """A document with its parameter types: ``int``, ``str``, ``list[int]`` or ``list[str]``.

    A function has a return type; a class has the parameter types of each method instead.
    """

    document: ast.FunctionDocument | ast.ClassDocument
    param_types: tuple[str, ...]
    return_type: str = ""
    method_param_types: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Family:
    """A kind of function or class: draws documents and writes source code for them in several styles.

    ``write`` returns the lines of a function's body, or of a whole class.
    """

    name: str
    draw: Callable[[Random, Vocabulary], TypedDocument]
    write: Callable[[Any, str, Random], list[str]]
    styles: tuple[str, ...]


# ---- parts of documents


def draft_function(
    words: Vocabulary,
    params: Sequence[str],
    statements: Iterable[ast.Statement],
    param_types: tuple[str, ...],
    return_type: str,
) -> TypedDocument:
    """Draw a name and a purpose for a function and put it together."""
    document = ast.FunctionDocument(words.function_name(), tuple(params), tuple(statements), words.purpose())
    return TypedDocument(document, param_types, return_type)


def draw_number(rng: Random, low: int = 0, high: int = 99) -> int:
    """Draw a constant: mostly one or two digits, rarely a round three-digit one."""
    roll = rng.random()
    if roll < 0.25:
        return rng.randint(low, min(high, 12))
    if roll < 0.93:
        return rng.randint(low, high)
    return rng.randint(max(2, low // 50), 18) * 50


def increasing_numbers(rng: Random, count: int) -> list[int]:
    """Draw increasing constants, at least two apart so that each interval holds a number."""
    values: set[int] = set()
    while len(values) < count:
        value = draw_number(rng, 1)
        if all(abs(value - other) > 1 for other in values):
            values.add(value)
    return sorted(values)


def draw_distinct(draw: Callable[[], T], count: int) -> list[T]:
    """Draw until there are ``count`` different values; keep their order."""
    values: list[T] = []
    while len(values) < count:
        value = draw()
        if value not in values:
            values.append(value)
    return values


def to_literal(value: int | str | ast.Atom) -> ast.Atom:
    """Return the constant as a node; a node as it is."""
    if isinstance(value, int):
        return ast.NumberLiteral(value)
    return ast.TextLiteral(value) if isinstance(value, str) else value


def compare(left: ast.Atom | ast.Chain, op: str, right: int | str | ast.Atom) -> ast.Compare:
    """Build a comparison."""
    chain = left if isinstance(left, ast.Chain) else ast.Chain(left)
    return ast.Compare(chain, op, to_literal(right))  # type: ignore[arg-type]


def when_test(test: ast.Test, outcome: ast.Outcome) -> ast.When:
    """Build an outcome under a condition of one test."""
    return ast.When(ast.Condition((test,)), outcome)


def return_constant(value: int | str) -> ast.Return:
    """Build the outcome that returns a constant."""
    return ast.Return(ast.Chain(to_literal(value)))


def draw_step(rng: Random, ops: Sequence[ast.ArithmeticOp], low: int, high: int) -> ast.Step:
    """Draw an operation with a constant from ``low`` to ``high``."""
    op = rng.choice(ops) if len(ops) > 1 else ops[0]  # a choice of one would draw, too
    return ast.Step(op, ast.NumberLiteral(rng.randint(low, high)))


def negative_guard(rng: Random, name: str, chance: float = 0.35) -> tuple[ast.When, ...]:
    """Sometimes: raise ValueError for numbers below a small constant."""
    if rng.random() >= chance:
        return ()
    op = rng.choice(("is less than", "is at most"))
    return (when_test(compare(ast.Parameter(name), op, rng.choice((0, 0, 1, 2))), ERROR),)


# ---- Python


def get_returned(document: ast.FunctionDocument, kind: type[T]) -> T:
    """Return the value of the last statement, which is of this kind."""
    last = document.statements[-1]
    assert isinstance(last, ast.Always | ast.Otherwise) and isinstance(last.outcome, ast.Return)
    assert isinstance(last.outcome.value, kind)
    return last.outcome.value


def py_atom(atom: ast.Atom, item: str = "item", total: str = "total") -> str:
    """Write an atom."""
    match atom:
        case ast.NumberLiteral(value) | ast.TextLiteral(value) | ast.BoolLiteral(value):
            return repr(value)
        case ast.Parameter(name):
            return name
        case ast.CurrentItem():
            return item
        case ast.RunningTotal():
            return total
        case ast.Attribute(name):
            return f"self.{name}"
        case ast.Length(source):
            return f"len({py_atom(source)})"


def py_chain(chain: ast.Chain, item: str = "item", total: str = "total") -> str:
    """Write arithmetic, with the brackets that evaluation from left to right needs."""
    return py_steps(py_atom(chain.base, item, total), chain.steps, item, total)


def py_steps(code: str, steps: tuple[ast.Step, ...], item: str = "item", total: str = "total") -> str:
    """Apply the steps of a chain to code that needs no brackets itself."""
    loosest = 9
    for step in steps:
        precedence = _PRECEDENCE[step.op]
        code = f"({code})" if loosest < precedence else code
        code = f"{code} {_OPERATORS[step.op]} {py_atom(step.operand, item, total)}"
        loosest = precedence
    return code


def py_test(test: ast.Test, rng: Random, item: str = "item") -> str:
    """Write one test, in one of the usual spellings."""
    left = py_chain(test.left, item)
    match test:
        case ast.IsEmpty():
            return rng.choice((f"not {left}", f"len({left}) == 0"))
        case ast.IsBetween(_, low, high):
            spelling = rng.choice(("{0} <= {1} <= {2}", "{1} >= {0} and {1} <= {2}"))
            return spelling.format(py_atom(low), left, py_atom(high))
        case ast.Compare(_, op, right):
            return _COMPARISONS[op].format(left, py_atom(right, item))


def py_list_edit(code: str, edit: ast.Edit) -> str:
    """Apply a change to the code of a list."""
    return _EDITS[edit.kind].format(code, *(repr(arg.value) for arg in edit.args))


def py_edit(code: str, edit: ast.Edit) -> str:
    """Apply a change to the code of a text."""
    if edit.kind in {"in front", "at the end"}:
        affix = repr(edit.args[0].value)
        return f"{affix} + {code}" if edit.kind == "in front" else f"{code} + {affix}"
    return py_list_edit(f"({code})" if "+" in code.replace("'+'", "") else code, edit)


def py_literal_first(condition: ast.Condition, rng: Random) -> str:
    """Write a condition of one comparison with the constant first, where there is a mirrored operator."""
    (test,) = condition.tests
    if not isinstance(test, ast.Compare) or test.op not in _RELATIONS:
        return py_condition(condition, rng)
    mirrored = _RELATIONS[test.op].translate(str.maketrans("<>", "><"))
    return mirrored.format(py_atom(test.right), py_chain(test.left))


def py_condition(condition: ast.Condition, rng: Random) -> str:
    """Write a condition."""
    return f" {condition.joiner} ".join(py_test(test, rng) for test in condition.tests)


def py_value(outcome: ast.Outcome) -> str:
    """Write the value of an outcome: arithmetic, one edit of a text, or the end of a list."""
    assert isinstance(outcome, ast.Return)
    match outcome.value:
        case ast.EditedText(base, (edit,)):
            return py_edit(base.name, edit)
        case ast.EndItem(end, source):
            return f"{py_atom(source)}[{-1 if end == 'last' else 0}]"
        case ast.Chain():
            return py_chain(outcome.value)
    raise AssertionError(outcome)


def py_outcome(outcome: ast.Outcome, rng: Random) -> str:
    """Write a return or raise statement."""
    if isinstance(outcome, ast.Raise):
        return f"raise {outcome.error}" + rng.choice(("", "", "('bad value')", "('not allowed')"))
    return f"return {py_value(outcome)}"


def py_when(statement: ast.When, rng: Random, keyword: str = "if") -> list[str]:
    """Write a condition and its outcome."""
    condition = py_condition(statement.condition, rng)
    return [f"{keyword} {condition}:", INDENT + py_outcome(statement.outcome, rng)]


def py_all_whens(document: ast.FunctionDocument, rng: Random) -> list[str]:
    """Write all ``When`` statements."""
    whens = [statement for statement in document.statements if isinstance(statement, ast.When)]
    return [line for statement in whens for line in py_when(statement, rng)]


def py_guards(document: ast.FunctionDocument, rng: Random) -> tuple[list[str], tuple[ast.When, ...]]:
    """Write the leading checks that raise; return their lines and the ``When`` statements after them."""
    whens = [statement for statement in document.statements if isinstance(statement, ast.When)]
    lines: list[str] = []
    while whens and isinstance(whens[0].outcome, ast.Raise):
        lines += py_when(whens.pop(0), rng)
    return lines, tuple(whens)


def py_ternary(whens: Iterable[ast.When], last: ast.Outcome, rng: Random, form: str = "{} if {}") -> str:
    """Write one return statement that decides among the outcomes."""
    parts = [form.format(py_value(part.outcome), py_condition(part.condition, rng)) for part in whens]
    return "return " + " else ".join((*parts, py_value(last)))


def py_branches(document: ast.FunctionDocument, style: str, rng: Random) -> list[str]:
    """Write ``When`` and ``Otherwise``; styles ``if``, ``elif``, ``ternary``, ``result``, ``else``."""
    lines, whens = py_guards(document, rng)
    last = next(part.outcome for part in document.statements if isinstance(part, ast.Otherwise))
    if style in {"ternary", "result"} and isinstance(last, ast.Raise):
        style = "if"
    if style == "ternary":
        return [*lines, py_ternary(whens, last, rng)]
    keywords = ("if", *["elif" if style in {"elif", "result"} else "if"] * len(whens))
    if style == "result":
        variable = rng.choice(("result", "answer", "out"))
        lines.append(f"{variable} = {py_value(last)}")
        for keyword, part in zip(keywords, whens, strict=False):
            lines.append(f"{keyword} {py_condition(part.condition, rng)}:")
            lines.append(f"{INDENT}{variable} = {py_value(part.outcome)}")
        return [*lines, f"return {variable}"]
    for keyword, part in zip(keywords, whens, strict=False):
        lines += py_when(part, rng, keyword)
    ending = py_outcome(last, rng)
    return [*lines, "else:", INDENT + ending] if style in {"else", "elif"} else [*lines, ending]

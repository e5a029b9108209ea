"""The requirements language: ``parse`` a text into a document, ``render`` a document as text.

``parse(render(d)) == d`` for every document (a property test holds it). The grammar is
``language.lark``; it covers one sentence, so that a reader may go on after one it cannot read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError

from iccm_assets.errors import InputError
from iccm_assets.reference import document as ast

GRAMMAR = Path(__file__).with_name("language.lark")
_SENTENCE = re.compile(r"(?:[^.'\n]|'[^'\n]*'|\.(?=\d))+\.?")


class RequirementsError(InputError):
    """The requirements text does not follow the reference language."""


@dataclass(frozen=True)
class Signature:
    """The opening sentence of a function, class or method: name, parameters, purpose."""

    name: str
    params: tuple[str, ...]
    purpose: str | None = None
    kind: Literal["function", "class", "method"] = "function"


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    """Parse tree -> document values."""

    def start(self, sentence: Signature | ast.Statement) -> Signature | ast.Statement:
        return sentence

    def signature(self, name: Token, *rest: Any) -> Signature:
        params = tuple(str(token)[1:-1] for token in rest if isinstance(token, Token))
        purposes = [part for part in rest if isinstance(part, str) and not isinstance(part, Token)]
        return Signature(str(name)[1:-1], params, purposes[0] if purposes else None)

    def class_signature(self, *parts: Any) -> Signature:
        return replace(self.signature(*parts), kind="class")

    def method_signature(self, *parts: Any) -> Signature:
        return replace(self.signature(*parts), kind="method")

    def purpose(self, *words: Token) -> str:
        return " ".join(str(word) for word in words)

    keeping = purpose
    do = ast.Do
    when_do = ast.WhenDo
    set_ = ast.Set
    append = ast.Append

    def end_item(self, phrase: Token, source: ast.Name | ast.Own) -> ast.EndItem:
        end = cast("Literal['first', 'last']", str(phrase).split()[1])
        return ast.EndItem(end, source, phrase.endswith("from"))

    def empty_list(self) -> ast.EmptyList:
        return ast.EmptyList()

    def own(self, token: Token) -> ast.Own:
        return ast.Own(str(token)[1:-1])

    size = ast.Size

    def when(self, condition: ast.Condition, outcome: ast.Outcome) -> ast.When:
        return ast.When(condition, outcome)

    otherwise = ast.Otherwise
    always = ast.Always
    begin = ast.Start

    def each(self, name: ast.Name, *rest: Any) -> ast.Each:
        tests = rest[0] if len(rest) == 2 else ()
        op, amount = rest[-1]
        return ast.Each(name, tests, op, amount)

    def other(self, move: tuple[Literal["add", "subtract"], ast.Chain]) -> ast.Each:
        return ast.Each(None, (), *move)

    def add(self, amount: ast.Chain) -> tuple[str, ast.Chain]:
        return "add", amount

    def subtract(self, amount: ast.Chain) -> tuple[str, ast.Chain]:
        return "subtract", amount

    def keep_low(self, limit: ast.Number) -> ast.Keep:
        return ast.Keep("at least", limit)

    def keep_high(self, limit: ast.Number) -> ast.Keep:
        return ast.Keep("at most", limit)

    return_ = ast.Return

    def raise_(self, error: Token) -> ast.Raise:
        return ast.Raise(str(error))

    def value(self, chain: ast.Chain) -> ast.Chain:
        return chain

    def limited_low(self, chain: ast.Chain, low: ast.Number) -> ast.Limited:
        return ast.Limited(chain, low, None)

    def limited_high(self, chain: ast.Chain, high: ast.Number) -> ast.Limited:
        return ast.Limited(chain, None, high)

    limited_both = ast.Limited
    whether = ast.Whether

    def edited(self, base: ast.Name, *edits: ast.Edit) -> ast.Edited:
        return ast.Edited(base, edits)

    def items(self, source: ast.Name | ast.Own, *rest: Any) -> ast.Items:
        tests = rest[0] if rest and isinstance(rest[0], tuple) else ()
        changes = rest[1:] if tests else rest
        steps = tuple(change for change in changes if isinstance(change, ast.Step))
        edits = tuple(change for change in changes if isinstance(change, ast.Edit))
        if changes != steps + edits:
            raise RequirementsError("arithmetic on the items comes before changes to the list")
        return ast.Items(source, tests, steps, edits)

    def items_plain(self, source: ast.Name | ast.Own, tests: tuple[ast.Test, ...] = ()) -> ast.Items:
        return ast.Items(source, tests)

    def aggregate(self, kind: Token, items: ast.Items, default: ast.Constant | None = None) -> ast.Aggregate:
        return ast.Aggregate(cast(ast.AggregateKind, str(kind).split()[1]), items, default)

    def default(self, constant: ast.Constant) -> ast.Constant:
        return constant

    def condition(self, test: ast.Test) -> ast.Condition:
        return ast.Condition((test,))

    def all_of(self, *tests: ast.Test) -> ast.Condition:
        return ast.Condition(tests, "and")

    def any_of(self, *tests: ast.Test) -> ast.Condition:
        return ast.Condition(tests, "or")

    def that(self, *predicates: Any) -> tuple[ast.Test, ...]:
        return tuple(self.test(ast.Chain(ast.Item()), predicate) for predicate in predicates)

    def test(self, left: ast.Chain, predicate: tuple[str, ...]) -> ast.Test:
        op, *operands = cast(tuple[Any, ...], predicate)
        if op == "is empty":
            return ast.Empty(left)
        if op == "is between":
            return ast.Between(left, *operands)
        return ast.Compare(left, op, *operands)

    def compare(self, op: Token, right: ast.Atom) -> tuple[Any, ...]:
        return cast(ast.CompareOp, str(op)), right

    def empty(self, _phrase: Token) -> tuple[Any, ...]:
        return ("is empty",)

    def between(self, _phrase: Token, low: ast.Atom, high: ast.Atom) -> tuple[Any, ...]:
        return "is between", low, high

    def chain(self, base: ast.Atom, *steps: ast.Step) -> ast.Chain:
        return ast.Chain(base, steps)

    def step(self, op: Token, operand: ast.Atom) -> ast.Step:
        return ast.Step(cast(ast.ArithmeticOp, str(op)), operand)

    item_step = step

    def item(self) -> ast.Item:
        return ast.Item()

    def total(self) -> ast.Total:
        return ast.Total()

    def text(self, token: Token) -> ast.Text:
        return ast.Text(str(token)[1:-1])

    def true(self) -> ast.Truth:
        return ast.Truth(True)

    def false(self) -> ast.Truth:
        return ast.Truth(False)

    def name(self, token: Token) -> ast.Name:
        return ast.Name(str(token)[1:-1])

    def number(self, token: Token) -> ast.Number:
        return ast.Number(float(token) if "." in token else int(token))

    def plain_edit(self, kind: Token) -> ast.Edit:
        return ast.Edit(cast(ast.EditKind, str(kind)))

    def replaced(self, old: Token, new: Token) -> ast.Edit:
        return ast.Edit("replaced", (self.text(old), self.text(new)))

    def cut(self, size: ast.Number) -> ast.Edit:
        return ast.Edit("cut", (size,))

    def front(self, token: Token) -> ast.Edit:
        return ast.Edit("in front", (self.text(token),))

    def back(self, token: Token) -> ast.Edit:
        return ast.Edit("at the end", (self.text(token),))


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(
        GRAMMAR.read_text(encoding="utf-8"), parser="lalr", maybe_placeholders=False, transformer=_Build()
    )


@lru_cache(maxsize=4096)
def parse_sentence(sentence: str) -> Signature | ast.Statement:
    """One sentence as a value; raises ``RequirementsError``."""
    try:
        return cast("Signature | ast.Statement", _parser().parse(sentence))
    except (LarkError, RecursionError, ValueError) as error:
        raise RequirementsError(f"{sentence[:80]!r}") from error


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space normalised; a full stop inside quotes does not end one."""
    plain = " ".join(text.split())
    return tuple(match.group().strip() for match in _SENTENCE.finditer(plain) if match.group().strip())


def parse(text: str) -> ast.Document | ast.ClassDocument:
    """What a text says; raises ``RequirementsError`` for anything the grammar does not know."""
    parts = [parse_sentence(sentence) for sentence in sentences(text)]
    if not parts or not isinstance(parts[0], Signature) or parts[0].kind == "method":
        raise RequirementsError("the first sentence must be `The function/class `name` shall take ...`")
    groups: list[tuple[Signature, list[ast.Statement]]] = []
    for part in parts:
        if isinstance(part, Signature):
            groups.append((part, []))
        else:
            groups[-1][1].append(part)
    documents = [ast.Document(one.name, one.params, tuple(body), one.purpose) for one, body in groups]
    first, *others = documents
    kinds = [signature.kind for signature, _ in groups]
    if kinds == ["function"] and first.statements:
        return first
    if kinds[0] == "class" and set(kinds[1:]) == {"method"} and all(other.statements for other in others):
        return ast.ClassDocument(first.name, first.params, first.statements, tuple(others), first.purpose)
    raise RequirementsError("one function, or one class with its methods, each with a statement, is expected")


def render(document: ast.Document | ast.ClassDocument) -> str:
    """The document in words, on one line."""
    if isinstance(document, ast.Document):
        purpose = f" and return the {document.purpose}" if document.purpose else ""
        return _section("function", document, purpose)
    creation = ast.Document(document.name, document.params, document.statements)
    purpose = f" and keep the {document.purpose}" if document.purpose else ""
    methods = (_section("method", method) for method in document.methods)
    return " ".join((_section("class", creation, purpose), *methods))


def _section(kind: str, document: ast.Document, purpose: str = "") -> str:
    params = [f"`{name}`" for name in document.params]
    listed = " and ".join(part for part in (", ".join(params[:-1]), *params[-1:]) if part) or "nothing"
    opening = f"The {kind} `{document.name}` shall take {listed}{purpose}."
    return " ".join((opening, *(_statement(statement) for statement in document.statements)))


def _statement(statement: ast.Statement) -> str:
    match statement:
        case ast.When(condition, outcome):
            return f"When {_condition(condition)}, it shall {_outcome(outcome)}."
        case ast.Otherwise(outcome):
            return f"Otherwise it shall {_outcome(outcome)}."
        case ast.Always(outcome):
            return f"It shall {_outcome(outcome)}."
        case ast.Start(value):
            return f"It shall start the total at {_atom(value)}."
        case ast.Each(None, _, op, amount):
            return f"For each other item, it shall {op} {_chain(amount)}."
        case ast.Each(ast.Name(name), tests, op, amount):
            return f"For each item of `{name}`{_that(tests)}, it shall {op} {_chain(amount)}."
        case ast.Keep(side, limit):
            return f"After each item, it shall keep the total {side} {_atom(limit)}."
        case ast.Do(action):
            return f"It shall {_action(action)}."
        case ast.WhenDo(condition, action):
            return f"When {_condition(condition)}, it shall {_action(action)}."
    raise AssertionError(statement)


def _action(action: ast.Action) -> str:
    if isinstance(action, ast.Append):
        return f"append {_chain(action.value)} to {_atom(action.target)}"
    return f"set {_atom(action.target)} to {_expression(action.value)}"


def _outcome(outcome: ast.Outcome) -> str:
    return (
        f"raise {outcome.error}" if isinstance(outcome, ast.Raise) else f"return {_expression(outcome.value)}"
    )


def _expression(expression: ast.Expression) -> str:
    match expression:
        case ast.Chain():
            return _chain(expression)
        case ast.Edited(ast.Name(name), edits):
            return f"`{name}` " + ", then ".join(_text_edit(edit) for edit in edits)
        case ast.Items(source, tests, steps, edits):
            changes = [f", then {step.op} {_atom(step.operand)}" for step in steps]
            changes += [f", then {_list_edit(edit)}" for edit in edits]
            return f"each item of {_atom(source)}{_that(tests)}{''.join(changes)}"
        case ast.Aggregate(kind, items, default):
            rest = "" if default is None else f" or {_atom(default)} if there is none"
            return f"the {kind} of {_expression(items)}{rest}"
        case ast.Whether(condition):
            return f"whether {_condition(condition)}"
        case ast.Limited(value, low, high):
            ends = [f"at least {_atom(low)}"] if low else []
            ends += [f"at most {_atom(high)}"] if high else []
            return f"{_chain(value)}, {' and '.join(ends)}"
        case ast.EndItem(end, source, taken):
            return f"the {end} item {'taken from' if taken else 'of'} {_atom(source)}"
        case ast.EmptyList():
            return "an empty list"
    raise AssertionError(expression)


def _condition(condition: ast.Condition) -> str:
    return f" {condition.joiner} ".join(f"{_chain(test.left)} {_predicate(test)}" for test in condition.tests)


def _that(tests: tuple[ast.Test, ...]) -> str:
    return " that " + " and ".join(_predicate(test) for test in tests) if tests else ""


def _predicate(test: ast.Test) -> str:
    match test:
        case ast.Empty():
            return "is empty"
        case ast.Between(_, low, high):
            return f"is between {_atom(low)} and {_atom(high)}"
        case ast.Compare(_, op, right):
            return f"{op} {_atom(right)}"


def _chain(chain: ast.Chain) -> str:
    return " ".join((_atom(chain.base), *(f"{step.op} {_atom(step.operand)}" for step in chain.steps)))


def _atom(atom: ast.Atom) -> str:
    match atom:
        case ast.Number(value):
            return (
                f"{value:f}".rstrip("0") + "0" * (value == int(value))
                if isinstance(value, float)
                else str(value)
            )
        case ast.Text(value):
            return f"'{value}'"
        case ast.Truth(value):
            return "true" if value else "false"
        case ast.Name(name):
            return f"`{name}`"
        case ast.Item():
            return "the item"
        case ast.Total():
            return "the total"
        case ast.Own(name):
            return f"its `{name}`"
        case ast.Size(of):
            return f"the size of {_atom(of)}"


def _text_edit(edit: ast.Edit) -> str:
    args = [_atom(arg) for arg in edit.args]
    match edit.kind:
        case "replaced":
            return f"with {args[0]} replaced by {args[1]}"
        case "cut":
            return f"cut to {args[0]} characters"
        case "in front" | "at the end":
            return f"with {args[0]} {edit.kind}"
    return edit.kind


def _list_edit(edit: ast.Edit) -> str:
    return f"cut to {_atom(edit.args[0])} items" if edit.kind == "cut" else edit.kind

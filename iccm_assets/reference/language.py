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
from iccm_assets.reference.document import (
    Action,
    Aggregate,
    AggregateKind,
    Always,
    Append,
    ArithmeticOp,
    Atom,
    Between,
    Chain,
    ClassDocument,
    Compare,
    CompareOp,
    Condition,
    Constant,
    Do,
    Document,
    Each,
    Edit,
    Edited,
    EditKind,
    Empty,
    EmptyList,
    EndItem,
    Expression,
    Item,
    Items,
    Keep,
    Limited,
    Name,
    Number,
    Otherwise,
    Outcome,
    Own,
    Raise,
    Return,
    Set,
    Size,
    Start,
    Statement,
    Step,
    Test,
    Text,
    Total,
    Truth,
    When,
    WhenDo,
    Whether,
)  # fmt: skip

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

    def start(self, sentence: Signature | Statement) -> Signature | Statement:
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
    do = Do
    when_do = WhenDo
    set_ = Set
    append = Append

    def end_item(self, phrase: Token, source: Name | Own) -> EndItem:
        end = cast("Literal['first', 'last']", str(phrase).split()[1])
        return EndItem(end, source, phrase.endswith("from"))

    def empty_list(self) -> EmptyList:
        return EmptyList()

    def own(self, token: Token) -> Own:
        return Own(str(token)[1:-1])

    size = Size

    def when(self, condition: Condition, outcome: Outcome) -> When:
        return When(condition, outcome)

    otherwise = Otherwise
    always = Always
    begin = Start

    def each(self, name: Name, *rest: Any) -> Each:
        tests = rest[0] if len(rest) == 2 else ()
        op, amount = rest[-1]
        return Each(name, tests, op, amount)

    def other(self, move: tuple[Literal["add", "subtract"], Chain]) -> Each:
        return Each(None, (), *move)

    def add(self, amount: Chain) -> tuple[str, Chain]:
        return "add", amount

    def subtract(self, amount: Chain) -> tuple[str, Chain]:
        return "subtract", amount

    def keep_low(self, limit: Number) -> Keep:
        return Keep("at least", limit)

    def keep_high(self, limit: Number) -> Keep:
        return Keep("at most", limit)

    return_ = Return

    def raise_(self, error: Token) -> Raise:
        return Raise(str(error))

    def value(self, chain: Chain) -> Chain:
        return chain

    def limited_low(self, chain: Chain, low: Number) -> Limited:
        return Limited(chain, low, None)

    def limited_high(self, chain: Chain, high: Number) -> Limited:
        return Limited(chain, None, high)

    limited_both = Limited
    whether = Whether

    def edited(self, base: Name, *edits: Edit) -> Edited:
        return Edited(base, edits)

    def items(self, source: Name | Own, *rest: Any) -> Items:
        tests = rest[0] if rest and isinstance(rest[0], tuple) else ()
        changes = rest[1:] if tests else rest
        steps = tuple(change for change in changes if isinstance(change, Step))
        edits = tuple(change for change in changes if isinstance(change, Edit))
        if changes != steps + edits:
            raise RequirementsError("arithmetic on the items comes before changes to the list")
        return Items(source, tests, steps, edits)

    def items_plain(self, source: Name | Own, tests: tuple[Test, ...] = ()) -> Items:
        return Items(source, tests)

    def aggregate(self, kind: Token, items: Items, default: Constant | None = None) -> Aggregate:
        return Aggregate(cast(AggregateKind, str(kind).split()[1]), items, default)

    def default(self, constant: Constant) -> Constant:
        return constant

    def condition(self, test: Test) -> Condition:
        return Condition((test,))

    def all_of(self, *tests: Test) -> Condition:
        return Condition(tests, "and")

    def any_of(self, *tests: Test) -> Condition:
        return Condition(tests, "or")

    def that(self, *predicates: Any) -> tuple[Test, ...]:
        return tuple(self.test(Chain(Item()), predicate) for predicate in predicates)

    def test(self, left: Chain, predicate: tuple[str, ...]) -> Test:
        op, *operands = cast(tuple[Any, ...], predicate)
        if op == "is empty":
            return Empty(left)
        if op == "is between":
            return Between(left, *operands)
        return Compare(left, op, *operands)

    def compare(self, op: Token, right: Atom) -> tuple[Any, ...]:
        return cast(CompareOp, str(op)), right

    def empty(self, _phrase: Token) -> tuple[Any, ...]:
        return ("is empty",)

    def between(self, _phrase: Token, low: Atom, high: Atom) -> tuple[Any, ...]:
        return "is between", low, high

    def chain(self, base: Atom, *steps: Step) -> Chain:
        return Chain(base, steps)

    def step(self, op: Token, operand: Atom) -> Step:
        return Step(cast(ArithmeticOp, str(op)), operand)

    item_step = step

    def item(self) -> Item:
        return Item()

    def total(self) -> Total:
        return Total()

    def text(self, token: Token) -> Text:
        return Text(str(token)[1:-1])

    def true(self) -> Truth:
        return Truth(True)

    def false(self) -> Truth:
        return Truth(False)

    def name(self, token: Token) -> Name:
        return Name(str(token)[1:-1])

    def number(self, token: Token) -> Number:
        return Number(float(token) if "." in token else int(token))

    def plain_edit(self, kind: Token) -> Edit:
        return Edit(cast(EditKind, str(kind)))

    def replaced(self, old: Token, new: Token) -> Edit:
        return Edit("replaced", (self.text(old), self.text(new)))

    def cut(self, size: Number) -> Edit:
        return Edit("cut", (size,))

    def front(self, token: Token) -> Edit:
        return Edit("in front", (self.text(token),))

    def back(self, token: Token) -> Edit:
        return Edit("at the end", (self.text(token),))


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(
        GRAMMAR.read_text(encoding="utf-8"), parser="lalr", maybe_placeholders=False, transformer=_Build()
    )


@lru_cache(maxsize=4096)
def parse_sentence(sentence: str) -> Signature | Statement:
    """One sentence as a value; raises ``RequirementsError``."""
    try:
        return cast("Signature | Statement", _parser().parse(sentence))
    except (LarkError, RecursionError, ValueError) as error:
        raise RequirementsError(f"{sentence[:80]!r}") from error


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space normalised; a full stop inside quotes does not end one."""
    plain = " ".join(text.split())
    return tuple(match.group().strip() for match in _SENTENCE.finditer(plain) if match.group().strip())


def parse(text: str) -> Document | ClassDocument:
    """What a text says; raises ``RequirementsError`` for anything the grammar does not know."""
    parts = [parse_sentence(sentence) for sentence in sentences(text)]
    if not parts or not isinstance(parts[0], Signature) or parts[0].kind == "method":
        raise RequirementsError("the first sentence must be `The function/class `name` shall take ...`")
    groups: list[tuple[Signature, list[Statement]]] = []
    for part in parts:
        if isinstance(part, Signature):
            groups.append((part, []))
        else:
            groups[-1][1].append(part)
    documents = [Document(one.name, one.params, tuple(body), one.purpose) for one, body in groups]
    first, *others = documents
    kinds = [signature.kind for signature, _ in groups]
    if kinds == ["function"] and first.statements:
        return first
    if kinds[0] == "class" and set(kinds[1:]) == {"method"} and all(other.statements for other in others):
        return ClassDocument(first.name, first.params, first.statements, tuple(others), first.purpose)
    raise RequirementsError("one function, or one class with its methods, each with a statement, is expected")


def render(document: Document | ClassDocument) -> str:
    """The document in words, on one line."""
    if isinstance(document, Document):
        purpose = f" and return the {document.purpose}" if document.purpose else ""
        return _section("function", document, purpose)
    creation = Document(document.name, document.params, document.statements)
    purpose = f" and keep the {document.purpose}" if document.purpose else ""
    methods = (_section("method", method) for method in document.methods)
    return " ".join((_section("class", creation, purpose), *methods))


def _section(kind: str, document: Document, purpose: str = "") -> str:
    params = [f"`{name}`" for name in document.params]
    listed = " and ".join(part for part in (", ".join(params[:-1]), *params[-1:]) if part) or "nothing"
    opening = f"The {kind} `{document.name}` shall take {listed}{purpose}."
    return " ".join((opening, *(_statement(statement) for statement in document.statements)))


def _statement(statement: Statement) -> str:
    match statement:
        case When(condition, outcome):
            return f"When {_condition(condition)}, it shall {_outcome(outcome)}."
        case Otherwise(outcome):
            return f"Otherwise it shall {_outcome(outcome)}."
        case Always(outcome):
            return f"It shall {_outcome(outcome)}."
        case Start(value):
            return f"It shall start the total at {_atom(value)}."
        case Each(None, _, op, amount):
            return f"For each other item, it shall {op} {_chain(amount)}."
        case Each(Name(name), tests, op, amount):
            return f"For each item of `{name}`{_that(tests)}, it shall {op} {_chain(amount)}."
        case Keep(side, limit):
            return f"After each item, it shall keep the total {side} {_atom(limit)}."
        case Do(action):
            return f"It shall {_action(action)}."
        case WhenDo(condition, action):
            return f"When {_condition(condition)}, it shall {_action(action)}."
    raise AssertionError(statement)


def _action(action: Action) -> str:
    if isinstance(action, Append):
        return f"append {_chain(action.value)} to {_atom(action.target)}"
    return f"set {_atom(action.target)} to {_expression(action.value)}"


def _outcome(outcome: Outcome) -> str:
    return f"raise {outcome.error}" if isinstance(outcome, Raise) else f"return {_expression(outcome.value)}"


def _expression(expression: Expression) -> str:
    match expression:
        case Chain():
            return _chain(expression)
        case Edited(Name(name), edits):
            return f"`{name}` " + ", then ".join(_text_edit(edit) for edit in edits)
        case Items(source, tests, steps, edits):
            changes = [f", then {step.op} {_atom(step.operand)}" for step in steps]
            changes += [f", then {_list_edit(edit)}" for edit in edits]
            return f"each item of {_atom(source)}{_that(tests)}{''.join(changes)}"
        case Aggregate(kind, items, default):
            rest = "" if default is None else f" or {_atom(default)} if there is none"
            return f"the {kind} of {_expression(items)}{rest}"
        case Whether(condition):
            return f"whether {_condition(condition)}"
        case Limited(value, low, high):
            ends = [f"at least {_atom(low)}"] if low else []
            ends += [f"at most {_atom(high)}"] if high else []
            return f"{_chain(value)}, {' and '.join(ends)}"
        case EndItem(end, source, taken):
            return f"the {end} item {'taken from' if taken else 'of'} {_atom(source)}"
        case EmptyList():
            return "an empty list"
    raise AssertionError(expression)


def _condition(condition: Condition) -> str:
    return f" {condition.joiner} ".join(f"{_chain(test.left)} {_predicate(test)}" for test in condition.tests)


def _that(tests: tuple[Test, ...]) -> str:
    return " that " + " and ".join(_predicate(test) for test in tests) if tests else ""


def _predicate(test: Test) -> str:
    match test:
        case Empty():
            return "is empty"
        case Between(_, low, high):
            return f"is between {_atom(low)} and {_atom(high)}"
        case Compare(_, op, right):
            return f"{op} {_atom(right)}"


def _chain(chain: Chain) -> str:
    return " ".join((_atom(chain.base), *(f"{step.op} {_atom(step.operand)}" for step in chain.steps)))


def _atom(atom: Atom) -> str:
    match atom:
        case Number(value):
            return (
                f"{value:f}".rstrip("0") + "0" * (value == int(value))
                if isinstance(value, float)
                else str(value)
            )
        case Text(value):
            return f"'{value}'"
        case Truth(value):
            return "true" if value else "false"
        case Name(name):
            return f"`{name}`"
        case Item():
            return "the item"
        case Total():
            return "the total"
        case Own(name):
            return f"its `{name}`"
        case Size(of):
            return f"the size of {_atom(of)}"


def _text_edit(edit: Edit) -> str:
    args = [_atom(arg) for arg in edit.args]
    match edit.kind:
        case "replaced":
            return f"with {args[0]} replaced by {args[1]}"
        case "cut":
            return f"cut to {args[0]} characters"
        case "in front" | "at the end":
            return f"with {args[0]} {edit.kind}"
    return edit.kind


def _list_edit(edit: Edit) -> str:
    return f"cut to {_atom(edit.args[0])} items" if edit.kind == "cut" else edit.kind

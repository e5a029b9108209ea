"""The requirements language: ``parse`` a text into a document, ``render`` a document as text.

``parse(render(d)) == d`` for every document; a property test asserts it. The grammar is
``language.lark``; it covers one sentence, so that a reconstructor can continue after one it cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError

from iccm_assets.errors import InputError
from iccm_assets.simulation.language import ast

GRAMMAR = Path(__file__).with_name("language.lark")
_SENTENCE = re.compile(r"(?:[^.'\n]|'[^'\n]*'|\.(?=\d))+\.?")
_TESTS: dict[str, Callable[..., ast.Test]] = {"is empty": ast.IsEmpty, "is between": ast.IsBetween}


class RequirementsError(InputError):
    """The requirements text does not follow the requirements language."""


@dataclass(frozen=True)
class Signature:
    """The opening sentence of a function, class or method: name, parameters, purpose."""

    name: str
    params: tuple[str, ...]
    purpose: str | None = None
    kind: Literal["function", "class", "method"] = "function"


def _edit(kind: ast.EditKind) -> Callable[..., ast.Edit]:
    return lambda _self, *constants: ast.Edit(kind, constants)


@v_args(inline=True)
class _TreeBuilder(Transformer[Token, Any]):
    """Builds the nodes: a method per rule and, in capitals, per token whose text is not used as it is."""

    MOVE = OP = COMPARE = PLAIN = LIST_EDIT = ERROR = WORD = str

    def NAME(self, token: Token) -> str:
        return str(token)[1:-1]

    def NUMBER(self, token: Token) -> ast.NumberLiteral:
        return ast.NumberLiteral(float(token) if "." in token else int(token))

    def STRING(self, token: Token) -> ast.TextLiteral:
        return ast.TextLiteral(str(token)[1:-1])

    def TRUTH(self, token: Token) -> ast.BoolLiteral:
        return ast.BoolLiteral(token == "true")

    def KIND(self, token: Token) -> str:
        return token.split()[1]

    def KEEP_TOTAL(self, token: Token) -> str:
        return " ".join(token.split()[-2:])

    def names(self, *parts: Any) -> tuple[Any, ...]:
        return parts

    predicate = names

    def purpose(self, *words: str) -> str:
        return " ".join(words)

    def signature(
        self, opening: Token, name: str, params: tuple[str, ...], purpose: str | None = None
    ) -> Signature:
        return Signature(name, params, purpose, cast("Any", opening.split()[1]))

    do = ast.ActionStatement
    when_do = ast.ConditionalAction
    set_ = ast.SetAttribute
    append = ast.Append
    when = ast.When
    otherwise = ast.Otherwise
    always = ast.Always
    begin = ast.InitTotal
    each = ast.ForEach
    other = partial(ast.ForEach, None, ())
    keep = ast.ClampTotal
    return_ = ast.Return
    raise_ = ast.Raise
    empty_list = ast.EmptyList
    limited = ast.Clamp
    whether = ast.ConditionValue
    items_plain = ast.ListComp
    aggregate = ast.Aggregate
    step = ast.Step
    item = ast.CurrentItem
    total = ast.RunningTotal
    size = ast.Length
    own = ast.Attribute
    name = ast.Parameter
    plain_edit = ast.Edit
    replaced = _edit("replaced")
    cut = _edit("cut")
    front = _edit("in front")
    back = _edit("at the end")

    def end_item(self, phrase: Token, source: ast.Parameter | ast.Attribute) -> ast.EndItem:
        return ast.EndItem(cast("Any", phrase.split()[1]), source, phrase.endswith("from"))

    def limited_high(self, chain: ast.Chain, high: ast.NumberLiteral) -> ast.Clamp:
        return ast.Clamp(chain, None, high)

    def edited(self, base: ast.Parameter, *edits: ast.Edit) -> ast.EditedText:
        return ast.EditedText(base, edits)

    def items(
        self,
        source: ast.Parameter | ast.Attribute,
        tests: tuple[ast.Test, ...],
        *changes: ast.Step | ast.Edit,
    ) -> ast.ListComp:
        steps = tuple(change for change in changes if isinstance(change, ast.Step))
        edits = tuple(change for change in changes if isinstance(change, ast.Edit))
        if changes != steps + edits:
            raise RequirementsError("arithmetic on the items comes before changes to the list")
        return ast.ListComp(source, tests, steps, edits)

    def condition(self, *tests: ast.Test) -> ast.Condition:
        return ast.Condition(tests)

    def any_of(self, *tests: ast.Test) -> ast.Condition:
        return ast.Condition(tests, "or")

    def that(self, *predicates: Any) -> tuple[ast.Test, ...]:
        return tuple(self.test(ast.Chain(ast.CurrentItem()), predicate) for predicate in predicates)

    def test(self, left: ast.Chain, predicate: tuple[Any, ...]) -> ast.Test:
        op, *operands = predicate
        return _TESTS[op](left, *operands) if op in _TESTS else ast.Compare(left, op, *operands)

    def chain(self, base: ast.Atom, *steps: ast.Step) -> ast.Chain:
        return ast.Chain(base, steps)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(GRAMMAR.read_text(encoding="utf-8"), parser="lalr", transformer=_TreeBuilder())


@lru_cache(maxsize=4096)
def parse_sentence(sentence: str) -> Signature | ast.Statement:
    """Parse one sentence; raises ``RequirementsError``."""
    try:
        return cast("Signature | ast.Statement", _parser().parse(sentence))
    except (LarkError, RecursionError, ValueError) as error:
        raise RequirementsError(f"{sentence[:80]!r}") from error


def sentences(text: str) -> tuple[str, ...]:
    """Split a text into sentences and normalize white space; a full stop inside quotes does not end one."""
    plain = " ".join(text.split())
    return tuple(match.group().strip() for match in _SENTENCE.finditer(plain) if match.group().strip())


def parse(text: str) -> ast.FunctionDocument | ast.ClassDocument:
    """Parse a whole text; raises ``RequirementsError`` for anything outside the grammar."""
    parts = [parse_sentence(sentence) for sentence in sentences(text)]
    if not parts or getattr(parts[0], "kind", "method") == "method":
        raise RequirementsError("the first sentence must be `The function/class `name` shall take ...`")
    first, *methods = _split_documents(parts)
    kinds = [part.kind for part in parts if isinstance(part, Signature)]
    if kinds == ["function"] and first.statements:
        return first
    if kinds[0] == "class" and {*kinds[1:]} == {"method"} and all(method.statements for method in methods):
        return ast.ClassDocument(first.name, first.params, first.statements, tuple(methods), first.purpose)
    raise RequirementsError("one function, or one class with its methods, each with a statement, is expected")


def _split_documents(parts: Sequence[Signature | ast.Statement]) -> Iterator[ast.FunctionDocument]:
    """Yield one document per signature, with the statements after it."""
    starts = [index for index, part in enumerate(parts) if isinstance(part, Signature)]
    for start, end in pairwise((*starts, len(parts))):
        signature, *body = cast("list[Any]", parts[start:end])
        yield ast.FunctionDocument(signature.name, signature.params, tuple(body), signature.purpose)


# The text of each node; {0}, {1}, ... are its fields. A test is written without its left side, field 0.
_TEMPLATES: dict[type[ast.Node], str] = {
    ast.When: "When {}, it shall {}.",
    ast.Otherwise: "Otherwise it shall {}.",
    ast.Always: "It shall {}.",
    ast.InitTotal: "It shall start the total at {}.",
    ast.ClampTotal: "After each item, it shall keep the total {} {}.",
    ast.ActionStatement: "It shall {}.",
    ast.ConditionalAction: "When {}, it shall {}.",
    ast.Append: "append {} to {}",
    ast.SetAttribute: "set {} to {}",
    ast.Raise: "raise {}",
    ast.Return: "return {}",
    ast.ConditionValue: "whether {}",
    ast.EmptyList: "an empty list",
    ast.IsEmpty: "is empty",
    ast.IsBetween: "is between {1} and {2}",
    ast.Compare: "{1} {2}",
    ast.Step: "{} {}",
    ast.TextLiteral: "'{}'",
    ast.Parameter: "`{}`",
    ast.CurrentItem: "the item",
    ast.RunningTotal: "the total",
    ast.Attribute: "its `{}`",
    ast.Length: "the size of {}",
}
_EDITS = {
    "replaced": "with {} replaced by {}",
    "cut": "cut to {} {unit}",
    "in front": "with {} in front",
    "at the end": "with {} at the end",
}


def render(document: ast.FunctionDocument | ast.ClassDocument) -> str:
    """Write the document as text, on one line."""
    if isinstance(document, ast.FunctionDocument):
        return _section("function", document, f" and return the {document.purpose}")
    methods = (_section("method", method) for method in document.methods)
    return " ".join((_section("class", document, f" and keep the {document.purpose}"), *methods))


def _section(kind: str, document: ast.FunctionDocument | ast.ClassDocument, purpose: str = "") -> str:
    params = [f"`{name}`" for name in document.params]
    listed = " and ".join(part for part in (", ".join(params[:-1]), *params[-1:]) if part) or "nothing"
    opening = f"The {kind} `{document.name}` shall take {listed}{purpose if document.purpose else ''}."
    return " ".join((opening, *map(_render, document.statements)))


def _render(node: Any) -> str:
    if template := _TEMPLATES.get(type(node)):
        return template.format(*(_render(getattr(node, name)) for name in node.__match_args__))
    match node:
        case ast.Chain(base, steps):
            return " ".join(map(_render, (base, *steps)))
        case ast.NumberLiteral(value):
            return (
                f"{value:f}".rstrip("0") + "0" * (value == int(value)) if type(value) is float else str(value)
            )
        case ast.Condition(tests, joiner):
            return f" {joiner} ".join(f"{_render(test.left)} {_render(test)}" for test in tests)
        case ast.ForEach(source, tests, op, amount):
            items = f"item of {_render(source)}{_that(tests)}" if source else "other item"
            return f"For each {items}, it shall {op} {_render(amount)}."
        case ast.BoolLiteral(value):
            return str(value).lower()
    return _render_list_or_text(node)


def _render_list_or_text(node: Any) -> str:
    match node:
        case ast.EditedText(base, edits):
            return f"{_render(base)} " + ", then ".join(_render_edit(edit, "characters") for edit in edits)
        case ast.ListComp(source, tests, steps, edits):
            changes = [*map(_render, steps), *(_render_edit(edit, "items") for edit in edits)]
            return ", then ".join((f"each item of {_render(source)}{_that(tests)}", *changes))
        case ast.Aggregate(kind, items, default):
            rest = f" or {_render(default)} if there is none" if default else ""
            return f"the {kind} of {_render(items)}{rest}"
        case ast.Clamp(value, low, high):
            limits = [f"at least {_render(low)}"] if low else []
            limits += [f"at most {_render(high)}"] if high else []
            return f"{_render(value)}, {' and '.join(limits)}"
        case ast.EndItem(end, source, removed):
            return f"the {end} item {'taken from' if removed else 'of'} {_render(source)}"
    return str(node)


def _render_edit(edit: ast.Edit, unit: str) -> str:
    return _EDITS.get(edit.kind, edit.kind).format(*map(_render, edit.args), unit=unit)


def _that(tests: tuple[ast.Test, ...]) -> str:
    return " that " + " and ".join(map(_render, tests)) if tests else ""

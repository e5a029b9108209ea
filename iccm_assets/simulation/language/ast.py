"""The syntax tree of the requirements language (X1).

A ``FunctionDocument`` is one function: its name, parameters, an optional purpose, and statements that apply
in the order they are written. A ``ClassDocument`` is a small class: its constructor and its methods.
``grammar`` parses and renders both, ``interpreter`` runs them, ``reconstructors`` write Python from them.
Import the module as ``ast`` and name its nodes ``ast.NumberLiteral``.
"""

from __future__ import annotations

from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, dataclass_transform

ArithmeticOp = Literal["plus", "minus", "times", "divided by", "modulo"]
CompareOp = Literal[
    "is less than",
    "is at most",
    "is more than",
    "is at least",
    "is not",
    "is",
    "is longer than",
    "is shorter than",
    "starts with",
    "ends with",
    "contains",
]
AggregateKind = Literal["count", "sum", "largest", "smallest"]
EditKind = Literal[
    "stripped", "in lower case", "in upper case", "capitalised", "replaced", "cut", "in front", "at the end",
    "sorted", "reversed", "without repeats",
]  # fmt: skip


@dataclass_transform(frozen_default=True)
class Node:
    """Base of every node: each subclass is a frozen dataclass, compared by value."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)


class NumberLiteral(Node):
    """A numeric constant; an integer stays an integer."""

    value: int | float


class TextLiteral(Node):
    """A text constant; it contains no quotes."""

    value: str


class BoolLiteral(Node):
    """``true`` or ``false``."""

    value: bool


class Parameter(Node):
    """A parameter, by its name in the code."""

    name: str


class CurrentItem(Node):
    """The current element of a loop."""


class RunningTotal(Node):
    """The running total of a function."""


class Attribute(Node):
    """An attribute of the object, by its name in the code."""

    name: str


class Length(Node):
    """The number of elements of a list, or of characters of a text."""

    operand: Parameter | Attribute


Constant = NumberLiteral | TextLiteral | BoolLiteral
Atom = NumberLiteral | TextLiteral | BoolLiteral | Parameter | CurrentItem | RunningTotal | Attribute | Length


class Step(Node):
    """One operation of a chain."""

    op: ArithmeticOp
    operand: Atom


class Chain(Node):
    """Arithmetic applied strictly from left to right: ``a plus b times 2`` is ``(a + b) * 2``."""

    base: Atom
    steps: tuple[Step, ...] = ()


class Compare(Node):
    """Test by comparison."""

    left: Chain
    op: CompareOp
    right: Atom


class IsEmpty(Node):
    """Test whether a text or list is empty."""

    left: Chain


class IsBetween(Node):
    """``low <= left <= high``, both ends included."""

    left: Chain
    low: Atom
    high: Atom


Test = Compare | IsEmpty | IsBetween


class Condition(Node):
    """One or more tests, of which all (``and``) or any (``or``) must hold."""

    tests: tuple[Test, ...]
    joiner: Literal["and", "or"] = "and"


class Edit(Node):
    """One change to a text or a list, with its constants in ``args``."""

    kind: EditKind
    args: tuple[Constant, ...] = ()


class EditedText(Node):
    """A text parameter with edits applied in order."""

    base: Parameter
    edits: tuple[Edit, ...]


class ListComp(Node):
    """The elements of a list that pass every test, mapped by ``steps``, then edited as a list."""

    source: Parameter | Attribute
    tests: tuple[Test, ...] = ()
    steps: tuple[Step, ...] = ()
    edits: tuple[Edit, ...] = ()


class Aggregate(Node):
    """One value computed from a list; ``default`` is the value for an empty one."""

    kind: AggregateKind
    items: ListComp
    default: Constant | None = None


class ConditionValue(Node):
    """A condition as a boolean value."""

    condition: Condition


class Clamp(Node):
    """A number clamped to limits; the lower limit wins if they cross."""

    value: Chain
    low: NumberLiteral | None
    high: NumberLiteral | None


class EndItem(Node):
    """The first or last element of a list; ``removed`` also removes it."""

    end: Literal["first", "last"]
    source: Parameter | Attribute
    removed: bool = False


class EmptyList(Node):
    """A new, empty list."""


Expression = Chain | EditedText | ListComp | Aggregate | ConditionValue | Clamp | EndItem | EmptyList


class Return(Node):
    """Return this value."""

    value: Expression


class Raise(Node):
    """Raise this exception."""

    error: str


Outcome = Return | Raise


class When(Node):
    """End with the outcome if the condition holds."""

    condition: Condition
    outcome: Outcome


class Otherwise(Node):
    """End with the outcome if no ``When`` before it applied."""

    outcome: Outcome


class Always(Node):
    """End with the outcome."""

    outcome: Outcome


class InitTotal(Node):
    """Initialize the running total."""

    value: NumberLiteral


class ForEach(Node):
    """Change the total for each element that passes the tests.

    Without a ``source`` it applies to the elements that no ``ForEach`` before it matched.
    """

    source: Parameter | None
    tests: tuple[Test, ...]
    op: Literal["add", "subtract"]
    amount: Chain


class ClampTotal(Node):
    """Clamp the total to this limit after each element."""

    side: Literal["at least", "at most"]
    limit: NumberLiteral


class SetAttribute(Node):
    """Assign a value to an attribute."""

    target: Attribute
    value: Expression


class Append(Node):
    """Append a value to a list."""

    value: Chain
    target: Attribute


Action = SetAttribute | Append


class ActionStatement(Node):
    """Perform the action."""

    action: Action


class ConditionalAction(Node):
    """Perform the action if the condition holds."""

    condition: Condition
    action: Action


Statement = When | Otherwise | Always | InitTotal | ForEach | ClampTotal | ActionStatement | ConditionalAction


class FunctionDocument(Node):
    """One function, method or constructor."""

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    purpose: str | None = None


class ClassDocument(Node):
    """A class; ``params`` and ``statements`` are those of its constructor.

    A method that ends without an outcome returns None.
    """

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    methods: tuple[FunctionDocument, ...]
    purpose: str | None = None

"""The typed form of a requirements text: what a text says, free of how it says it (X1).

A ``Document`` is one function: its name, parameters, an optional purpose, and statements that hold in
the order they are written. A ``ClassDocument`` is a small class: what its creation does, and its methods.
``language`` turns texts into either and back, ``oracle`` runs them, ``readers`` write Python from them.
Every class here is a frozen value.
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


class Number(Node):
    """A numeric constant; integers stay integers."""

    value: int | float


class Text(Node):
    """A text constant, without quotes inside."""

    value: str


class Truth(Node):
    """``true`` or ``false``."""

    value: bool


class Name(Node):
    """A parameter, by its name in the code."""

    name: str


class Item(Node):
    """The element a loop is at."""


class Total(Node):
    """The running total a document keeps."""


class Own(Node):
    """An attribute of the object, by its name in the code."""

    name: str


class Size(Node):
    """The number of elements of a list or characters of a text."""

    of: Name | Own


Constant = Number | Text | Truth
Atom = Number | Text | Truth | Name | Item | Total | Own | Size


class Step(Node):
    """One arithmetic step of a chain."""

    op: ArithmeticOp
    operand: Atom


class Chain(Node):
    """Arithmetic applied strictly from left to right: ``a plus b times 2`` is ``(a + b) * 2``."""

    base: Atom
    steps: tuple[Step, ...] = ()


class Compare(Node):
    """One comparison."""

    left: Chain
    op: CompareOp
    right: Atom


class Empty(Node):
    """The value is an empty text or list."""

    left: Chain


class Between(Node):
    """``low <= left <= high``, both ends included."""

    left: Chain
    low: Atom
    high: Atom


Test = Compare | Empty | Between


class Condition(Node):
    """One or more tests, all of them (``and``) or any of them (``or``) needed."""

    tests: tuple[Test, ...]
    joiner: Literal["and", "or"] = "and"


class Edit(Node):
    """One change to a text or a list; ``args`` are the change's constants."""

    kind: EditKind
    args: tuple[Constant, ...] = ()


class Edited(Node):
    """A text parameter with changes applied in order."""

    base: Name
    edits: tuple[Edit, ...]


class Items(Node):
    """The elements of a list that meet every test, in order, then changed."""

    source: Name | Own
    tests: tuple[Test, ...] = ()
    steps: tuple[Step, ...] = ()
    edits: tuple[Edit, ...] = ()


class Aggregate(Node):
    """One value out of a list; ``default`` is used when no element is left."""

    kind: AggregateKind
    items: Items
    default: Constant | None = None


class Whether(Node):
    """The truth of a condition."""

    condition: Condition


class Limited(Node):
    """A number kept inside limits; the lower limit wins when they cross."""

    value: Chain
    low: Number | None
    high: Number | None


class EndItem(Node):
    """The first or last element of a list; ``taken``: it is removed from the list as well."""

    end: Literal["first", "last"]
    source: Name | Own
    taken: bool = False


class EmptyList(Node):
    """A new list without elements."""


Expression = Chain | Edited | Items | Aggregate | Whether | Limited | EndItem | EmptyList


class Return(Node):
    """Give this value back."""

    value: Expression


class Raise(Node):
    """Raise this exception."""

    error: str


Outcome = Return | Raise


class When(Node):
    """When the condition holds, this is the outcome and nothing after it matters."""

    condition: Condition
    outcome: Outcome


class Otherwise(Node):
    """The outcome when no ``When`` before it held."""

    outcome: Outcome


class Always(Node):
    """The outcome, unconditionally."""

    outcome: Outcome


class Start(Node):
    """The running total begins here."""

    value: Number


class Each(Node):
    """What every element that meets the tests does to the total; ``source`` None: every other element."""

    source: Name | None
    tests: tuple[Test, ...]
    op: Literal["add", "subtract"]
    amount: Chain


class Keep(Node):
    """After every element the total is kept inside this limit."""

    side: Literal["at least", "at most"]
    limit: Number


class Set(Node):
    """Give an attribute a value."""

    target: Own
    value: Expression


class Append(Node):
    """Put a value at the end of a list."""

    value: Chain
    target: Own


Action = Set | Append


class Do(Node):
    """Change the object, then go on."""

    action: Action


class WhenDo(Node):
    """When the condition holds, change the object; go on either way."""

    condition: Condition
    action: Action


Statement = When | Otherwise | Always | Start | Each | Keep | Do | WhenDo


class Document(Node):
    """What one function, method or creation of an object shall do."""

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    purpose: str | None = None


class ClassDocument(Node):
    """What a class shall do: ``params`` and ``statements`` are its creation's.

    A method that comes to its end without an outcome returns nothing.
    """

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    methods: tuple[Document, ...]
    purpose: str | None = None

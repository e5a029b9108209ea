"""The typed form of a requirements text: what a text says, free of how it says it (X1).

A ``Document`` is one function: its name, parameters, an optional purpose, and statements that hold in
the order they are written. A ``ClassDocument`` is a small class: what its creation does, and its methods.
``language`` turns texts into either and back, ``oracle`` runs them, ``readers`` write Python from them.
Every class here is a frozen value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Number:
    """A numeric constant; integers stay integers."""

    value: int | float


@dataclass(frozen=True)
class Text:
    """A text constant, without quotes inside."""

    value: str


@dataclass(frozen=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True)
class Name:
    """A parameter, by its name in the code."""

    name: str


@dataclass(frozen=True)
class Item:
    """The element a loop is at."""


@dataclass(frozen=True)
class Total:
    """The running total a document keeps."""


@dataclass(frozen=True)
class Own:
    """An attribute of the object, by its name in the code."""

    name: str


@dataclass(frozen=True)
class Size:
    """The number of elements of a list or characters of a text."""

    of: Name | Own


Constant = Number | Text | Truth
Atom = Number | Text | Truth | Name | Item | Total | Own | Size


@dataclass(frozen=True)
class Step:
    """One arithmetic step of a chain."""

    op: ArithmeticOp
    operand: Atom


@dataclass(frozen=True)
class Chain:
    """Arithmetic applied strictly from left to right: ``a plus b times 2`` is ``(a + b) * 2``."""

    base: Atom
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Compare:
    """One comparison."""

    left: Chain
    op: CompareOp
    right: Atom


@dataclass(frozen=True)
class Empty:
    """The value is an empty text or list."""

    left: Chain


@dataclass(frozen=True)
class Between:
    """``low <= left <= high``, both ends included."""

    left: Chain
    low: Atom
    high: Atom


Test = Compare | Empty | Between


@dataclass(frozen=True)
class Condition:
    """One or more tests, all of them (``and``) or any of them (``or``) needed."""

    tests: tuple[Test, ...]
    joiner: Literal["and", "or"] = "and"


@dataclass(frozen=True)
class Edit:
    """One change to a text or a list; ``args`` are the change's constants."""

    kind: EditKind
    args: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class Edited:
    """A text parameter with changes applied in order."""

    base: Name
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Items:
    """The elements of a list that meet every test, in order, then changed."""

    source: Name | Own
    tests: tuple[Test, ...] = ()
    steps: tuple[Step, ...] = ()
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Aggregate:
    """One value out of a list; ``default`` is used when no element is left."""

    kind: AggregateKind
    items: Items
    default: Constant | None = None


@dataclass(frozen=True)
class Whether:
    """The truth of a condition."""

    condition: Condition


@dataclass(frozen=True)
class Limited:
    """A number kept inside limits; the lower limit wins when they cross."""

    value: Chain
    low: Number | None
    high: Number | None


@dataclass(frozen=True)
class EndItem:
    """The first or last element of a list; ``taken``: it is removed from the list as well."""

    end: Literal["first", "last"]
    source: Name | Own
    taken: bool = False


@dataclass(frozen=True)
class EmptyList:
    """A new list without elements."""


Expression = Chain | Edited | Items | Aggregate | Whether | Limited | EndItem | EmptyList


@dataclass(frozen=True)
class Return:
    """Give this value back."""

    value: Expression


@dataclass(frozen=True)
class Raise:
    """Raise this exception."""

    error: str


Outcome = Return | Raise


@dataclass(frozen=True)
class When:
    """When the condition holds, this is the outcome and nothing after it matters."""

    condition: Condition
    outcome: Outcome


@dataclass(frozen=True)
class Otherwise:
    """The outcome when no ``When`` before it held."""

    outcome: Outcome


@dataclass(frozen=True)
class Always:
    """The outcome, unconditionally."""

    outcome: Outcome


@dataclass(frozen=True)
class Start:
    """The running total begins here."""

    value: Number


@dataclass(frozen=True)
class Each:
    """What every element that meets the tests does to the total; ``source`` None: every other element."""

    source: Name | None
    tests: tuple[Test, ...]
    op: Literal["add", "subtract"]
    amount: Chain


@dataclass(frozen=True)
class Keep:
    """After every element the total is kept inside this limit."""

    side: Literal["at least", "at most"]
    limit: Number


@dataclass(frozen=True)
class Set:
    """Give an attribute a value."""

    target: Own
    value: Expression


@dataclass(frozen=True)
class Append:
    """Put a value at the end of a list."""

    value: Chain
    target: Own


Action = Set | Append


@dataclass(frozen=True)
class Do:
    """Change the object, then go on."""

    action: Action


@dataclass(frozen=True)
class WhenDo:
    """When the condition holds, change the object; go on either way."""

    condition: Condition
    action: Action


Statement = When | Otherwise | Always | Start | Each | Keep | Do | WhenDo


@dataclass(frozen=True)
class Document:
    """What one function, method or creation of an object shall do."""

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    purpose: str | None = None


@dataclass(frozen=True)
class ClassDocument:
    """What a class shall do: ``params`` and ``statements`` are its creation's.

    A method that comes to its end without an outcome returns nothing.
    """

    name: str
    params: tuple[str, ...]
    statements: tuple[Statement, ...]
    methods: tuple[Document, ...]
    purpose: str | None = None

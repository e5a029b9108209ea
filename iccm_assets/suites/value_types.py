"""Types of values: what a type hint says, as far as a value can be drawn from it. (D2)"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 3  # of a drawn value


@dataclass(frozen=True)
class ValueType:
    """A type of values; ``parts`` are those of elements, ``values`` those of a literal, or a class's name.

    Of a ``record``, an object without a class, ``values`` are the names of its attributes; of ``fields``, a
    dict that always has the same ones, its keys.
    """

    kind: str
    parts: tuple[ValueType, ...] = ()
    values: tuple[Any, ...] = ()


ANY, INT, FLOAT, COMPLEX, TEXT, BOOL, BYTES, NONE = map(
    ValueType, ("any", "int", "float", "complex", "str", "bool", "bytes", "none")
)
# Functions that arguments may be, by what they take and how many.
FUNCTIONS = {
    ("number", 1): ("operator.neg", "abs", "math.sin", "math.cos", "float", "math.floor", "math.atan"),
    ("test", 1): ("bool", "operator.not_", "math.isfinite"),
    ("text", 1): ("str.upper", "str.lower", "str.strip", "len", "str.isdigit", "str.isalpha"),
    ("number", 2): ("operator.add", "operator.sub", "operator.mul", "max", "min"),
    ("test", 2): ("operator.lt", "operator.gt", "operator.le", "operator.eq", "operator.ne"),
    ("number", 3): ("max", "min"),
    ("nothing", 0): ("int", "list", "dict", "str"),
}
_SCALARS = {
    "int": INT, "float": FLOAT, "str": TEXT, "bool": BOOL, "bytes": BYTES, "bytearray": BYTES, "None": NONE,
    "complex": COMPLEX, "Complex": COMPLEX, "Number": INT, "Real": FLOAT, "SupportsInt": INT,
    "SupportsFloat": FLOAT, "AnyStr": TEXT, "LiteralString": TEXT, "Any": ANY, "object": ANY, "Hashable": INT,
}  # fmt: skip
_CONTAINERS = {
    "list": "list", "List": "list", "Sequence": "list", "Iterable": "list", "Collection": "list",
    "MutableSequence": "list", "Iterator": "list", "Reversible": "list", "tuple": "tuple", "Tuple": "tuple",
    "set": "set", "Set": "set", "AbstractSet": "set", "MutableSet": "set", "frozenset": "frozenset",
    "FrozenSet": "frozenset", "dict": "dict", "Dict": "dict", "Mapping": "dict", "MutableMapping": "dict",
    "DefaultDict": "dict", "defaultdict": "dict", "OrderedDict": "dict", "Counter": "dict",
}  # fmt: skip
_WRAPPERS = frozenset({"Final", "Annotated", "ClassVar", "Required", "NotRequired", "ReadOnly"})


def parse_annotation(node: ast.expr | None, classes: frozenset[str] = frozenset()) -> ValueType:
    """Parse a type hint; ``ANY`` where it says nothing that a value can be drawn from.

    ``classes`` are those of the source itself; a ``callable`` has the number of its arguments, if known.
    """
    return _AnnotationParser(classes).parse(node, 0)


class _AnnotationParser:
    def __init__(self, classes: frozenset[str]) -> None:
        self.classes = classes

    def parse(self, node: ast.expr | None, depth: int) -> ValueType:
        if depth > 2 * MAX_DEPTH:
            return ANY
        if isinstance(node, ast.Constant):
            return self._parse_constant(node.value, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return ValueType("union", (self.parse(node.left, depth + 1), self.parse(node.right, depth + 1)))
        if isinstance(node, ast.Subscript):
            return self._parse_subscript(node, depth)
        name = _last_name(node)
        if name in self.classes:
            return ValueType("object", values=(name,))
        if name in ("Callable", "Type", "type"):
            return ValueType("callable", values=(0,) if name != "Callable" else ())
        return _SCALARS.get(name) or self._make_container(_CONTAINERS.get(name, ""), [])

    def _parse_constant(self, value: object, depth: int) -> ValueType:
        if value is None:
            return NONE
        try:
            return self.parse(ast.parse(str(value), mode="eval").body, depth + 1)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ANY

    def _parse_subscript(self, node: ast.Subscript, depth: int) -> ValueType:
        name = _last_name(node.value)
        items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            return ValueType(
                "literal", values=tuple(item.value for item in items if isinstance(item, ast.Constant))
            )
        if name in ("Callable", "Type", "type"):
            counted = items[0].elts if name == "Callable" and isinstance(items[0], ast.List) else None
            return ValueType("callable", values=() if counted is None else (len(counted),))
        if name in _WRAPPERS:
            return self.parse(items[0], depth + 1)
        is_open = len(items) == 2 and isinstance(items[1], ast.Constant) and items[1].value is ...
        if is_open and _CONTAINERS.get(name) == "tuple":
            return ValueType("sequence", (self.parse(items[0], depth + 1),))
        parts = [self.parse(item, depth + 1) for item in items]
        if name in ("Optional", "Union"):
            return ValueType("union", (*parts, *([NONE] if name == "Optional" else [])))
        return self._make_container(_CONTAINERS.get(name, ""), parts, is_count=name == "Counter")

    def _make_container(self, kind: str, parts: list[ValueType], is_count: bool = False) -> ValueType:
        if not kind:
            return ANY
        if kind == "dict":
            key, value = [*parts, TEXT, INT][:2] if len(parts) != 1 else [parts[0], INT]
            return ValueType(kind, (key, INT if is_count else value))
        if kind == "tuple" and not parts:
            return ValueType("sequence", (INT,))
        return ValueType(kind, tuple(parts) or (INT,))


def list_functions(count: int | None) -> list[ValueType]:
    """List the types of functions that take ``count`` arguments; of one or two where that is not known."""
    counts = (1, 2) if count is None else (min(count, 3),)
    return [ValueType("callable", values=key) for key in FUNCTIONS if key[1] in counts]


def is_open(kind: ValueType) -> bool:
    """Whether a type leaves open what a value is."""
    return kind == ANY or (kind.kind == "union" and any(map(is_open, kind.parts)))


def _last_name(node: ast.expr | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")

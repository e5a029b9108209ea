"""Values that programs are called with: drawn by type, or changed from values that are known.

Seeded and reproducible on every Python: the same source and seed give the same values. A library's
strategies are not, since they mix in constants of whatever modules the process has loaded. (D2, D5)
"""

from __future__ import annotations

import ast
import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any, ClassVar

from iccm_assets.suites.signatures import NODE_TYPE
from iccm_assets.suites.source_edits import list_nodes
from iccm_assets.suites.suite_values import FUNCTION, is_reference, new_object
from iccm_assets.suites.value_types import (
    ANY,
    BOOL,
    FLOAT,
    FUNCTIONS,
    INT,
    MAX_DEPTH,
    TEXT,
    ValueType,
    list_functions,
)

MAX_CONSTANTS = 200
MAX_MUTATION_DEPTH = 5
MAX_COMBINED = 6  # constants of which sums and differences are drawn, too
MAX_LENGTH = 60
GRIDS = range(3, 11)  # sizes of square matrices
SIZES = (0, 1, 2, 3, 3, 4, 5, 6)  # of a list
MAX_DOCSTRING, MAX_QUOTED = 5000, 12  # characters that are read, and texts that are taken from one
_QUOTED = re.compile(r"(?<![\w'])'([^'\n]{1,12})'(?![\w'])|(?<![\w\"])\"([^\"\n]{1,12})\"(?![\w\"])")
MANY_TEXTS = 3  # constants: what is compared with them is often one of them
WORDS = ("ab", "hello world", "level", "a1b2", "Apple,Bob;cat")
PARTNERS = {"(": ")", "[": "]", "{": "}", "<": ">", ")": "(", "]": "[", "}": "{", ">": "<"}
SCALES = ((-3, 20), (-2, 3), (0, 5), (-3, 12), (0, 100))
MAX_SIZE = 40  # numbers up to it may say how much an object holds
GRID_SHARE = 0.2  # of the matrices of a source that counts to the size of one
WHOLE_SHARE = 0.9  # of the dicts that have all keys which the source reads
SHAPE_SHARE = 0.5  # of pairs of matrices of one shape
CIRCLE_SHARE = 0.5  # of these dicts
GRAPH_SHARE = 0.7  # of the dicts with pairs as keys
EXPRESSION_SHARE = 0.5  # of the lists of values and signs
VARIED_SHARE = 0.25  # of pairs of the same type
MAX_EDITS = 3
MIXED = (INT, TEXT, ValueType("list", (INT,)))  # elements of a list of anything
LETTERS = "abcxyzAB09 _-.,é"


class QuickRandom(Random):
    """Draws like ``Random``, in a third of its time: that a choice is not quite even does no harm."""

    def choice(self, seq: Any) -> Any:
        return seq[int(self.random() * len(seq))]

    def randint(self, a: int, b: int) -> int:
        return a + int(self.random() * (b - a + 1))

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return super().randrange(start, stop, step) if stop is not None else int(self.random() * start)


class ValueFactory:
    """Draws values by type and changes known ones; ``objects`` says how to make one of a class by name."""

    def __init__(self, rng: Random, trees: Sequence[ast.AST]) -> None:
        self.rng = rng
        self.objects: dict[str, Callable[[int], Any]] = {}
        self.draw_nodes: Callable[[str], list[Any] | None] = lambda name: None  # that a plan shares
        self.draw_weights: Callable[[str], dict[Any, Any] | None] = lambda name: None  # of their edges
        self.references: list[Any] = []  # to values that a plan shares
        constants = [node.value for tree in trees for node in _list_constants(tree)][:MAX_CONSTANTS]
        self.numbers = [value for value in constants if type(value) is int and abs(value) < 1 << 40] or [1]
        few = list(dict.fromkeys(self.numbers))[:MAX_COMBINED]
        self.derived = [value for a, b in itertools.permutations(few, 2) for value in (a - b, a + b)] or few
        texts = [value for value in constants if type(value) is str and len(value) < 60]
        self.texts = [*texts, *itertools.chain(*map(_list_quoted, trees))] or ["ab"]
        own = "".join(dict.fromkeys("".join(text for text in self.texts if len(text) < 30)))[:60]
        self.letters = LETTERS + own
        own += "".join(PARTNERS.get(letter, "") for letter in own if PARTNERS.get(letter, "") not in own)
        self.alphabets = [self.letters, "ab", "abc", own or "01", own if len(own) > 1 else own + "aB1"]
        self.alphabets.append(own[:12] + "bcdx")
        self.marks = [text for text in self.texts if len(text) == 1 and text.isalnum()]
        own_separators = [text for text in self.texts if len(text) == 1 and not text.isalnum()]
        self.separators = own_separators or [" ", "-", ",", ":", "/"]
        attributes = {
            node.attr for tree in trees for node in list_nodes(tree) if isinstance(node, ast.Attribute)
        }
        self.is_splitting = bool(own_separators and attributes & {"split", "partition", "rsplit"})
        self.part_counts = [*map(len, _find_split_targets(trees))] or [2, 2, 3, 3, 4]
        self.scale = SCALES[0]
        self.grids = [size for tree in trees for size in _list_counted(tree)]

    def draw_least(self, kind: ValueType) -> Any:
        """Return the least value of a type, such as 0, or a list of nothing; drawn where there is none."""
        least = {"int": 0, "float": 0.0, "str": "", "bool": False, "list": [], "sequence": (), "dict": {}}
        if kind.kind in least:
            value = least[kind.kind]
            return type(value)() if isinstance(value, list | dict) else value
        if kind.kind in ("set", "frozenset"):
            return set() if kind.kind == "set" else frozenset()
        return self.draw(kind)

    def draw(self, kind: ValueType, depth: int = 0) -> Any:
        """Draw a value of a type."""
        return self._DRAWS[kind.kind](self, kind, depth)

    def mutate(self, value: Any, depth: int = 0) -> Any:
        """Return the value or a neighbour of the same type."""
        if depth > MAX_MUTATION_DEPTH or self.rng.random() < 0.25:
            return value
        change = self._CHANGES.get(type(value))
        return value if change is None else change(self, value, depth)

    def mutate_arguments(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Change the arguments of a call."""
        return [self.mutate(value) for value in args], {key: self.mutate(kwargs[key]) for key in kwargs}

    def relate(self, args: list[Any]) -> list[Any]:
        """Let some arguments be parts of others: an element, a key, an index, a part of a text."""
        if len(args) > 1 and (roll := self.rng.random()) < VARIED_SHARE:
            first, other = self.rng.sample(range(len(args)), 2)
            if _is_matrix(args[first]) and _is_matrix(args[other]) and self.rng.random() < SHAPE_SHARE:
                args[other] = [[self.mutate(item) for item in row] for row in args[first]]
                return args
            if type(args[first]) is type(args[other]):
                is_equal = roll < 0.08 or is_reference(args[first])
                args[other] = copy.deepcopy(args[first]) if is_equal else self._edit(args[first])
                return args
        owners = list(itertools.chain.from_iterable(map(_list_contents, args)))
        if not owners or len(args) < 2 or self.rng.random() < 0.5:
            return args
        related = self._make_equally_long(args) if self.rng.random() < 0.5 else list(args)
        for index, value in enumerate(args):
            others = [owner for owner in owners if owner is not value]
            if type(value) in (int, str) and others and self.rng.random() < 0.6:
                options = self._list_parts(self.rng.choice(others), type(value))
                related[index] = self.rng.choice(options) if options else value
        return related

    def choose_parts(self, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Let some arguments be parts of what their object was ``given``, or be below a number of these."""
        owners = list(itertools.chain.from_iterable(map(_list_contents, given)))
        sizes = [value for value in given if type(value) is int and 1 < value <= MAX_SIZE]
        if not (owners or sizes) or self.rng.random() < 0.4:
            return args
        chosen = list(args)
        for index, value in enumerate(args):
            if type(value) not in (int, str) or self.rng.random() < 0.3:
                continue
            options = self._list_parts(self.rng.choice(owners), type(value)) if owners else []
            if sizes and type(value) is int:
                options.append(self.rng.randrange(self.rng.choice(sizes)))
            chosen[index] = self.rng.choice(options) if options else value
        return chosen

    def _edit(self, value: Any) -> Any:
        """Return a text or list that has most parts of another one, in its order: some twice, some not."""
        if type(value) not in (str, list):
            return value
        items = list(value)
        for _ in range(self.rng.randint(1, MAX_EDITS)):
            place, roll = self.rng.randint(0, len(items)), self.rng.random()
            if items and roll < 0.4:
                items.insert(place, self.rng.choice(items))
            elif items and roll < 0.8:
                items.pop(self.rng.randrange(len(items)))
            else:
                items.insert(place, self.rng.choice(self.letters if type(value) is str else self.numbers))
        return "".join(items) if type(value) is str else items

    def _make_equally_long(self, args: list[Any]) -> list[Any]:
        """Give all lists the length of the shortest one that has elements."""
        lengths = [len(value) for value in args if isinstance(value, list) and value]
        shortest = min(lengths, default=0)
        return [value[:shortest] if isinstance(value, list) else value for value in args]

    def _list_parts(self, owner: Any, kind: type) -> list[Any]:
        if isinstance(owner, str):
            start = self.rng.randrange(len(owner))
            text = owner[start : start + self.rng.randint(1, 3)]
            return [text] if kind is str else [len(owner), start]
        inner = [part for item in owner if isinstance(item, tuple) for part in item]
        parts = [part for part in (*owner, *inner) if type(part) is kind and part is not ...]
        return parts + (
            [0, len(owner) - 1, len(owner)] if kind is int and not isinstance(owner, dict) else []
        )

    # ---- by type ---------------------------------------------------------------------------------

    def choose_scale(self) -> None:
        """Choose how large numbers are from now on: close ones meet each other's boundaries."""
        self.scale = self.rng.choice(SCALES)

    def _draw_int(self, kind: ValueType, depth: int) -> int:
        roll = self.rng.random()
        if roll < 0.38:
            numbers = self.numbers if roll < 0.3 else self.derived
            return int(self.rng.choice(numbers)) + self.rng.choice((-1, 0, 0, 1))
        if roll < 0.92:
            return self.rng.randint(*self.scale)
        return self.rng.randint(-20, 120) if roll < 0.98 else self.rng.randint(100, 2000)

    def _draw_float(self, kind: ValueType, depth: int) -> float:
        number = float(self._draw_int(INT, depth))
        # Eighths are added without rounding: Python 3.12 rounds the sum of floats otherwise than 3.11.
        return self.rng.choice((number, number, number + 0.5, number / 4, number * 1.125))

    def _draw_text(self, kind: ValueType, depth: int) -> str:
        roll = self.rng.random()
        if self.is_splitting and roll < 0.5:
            return self._draw_joined(depth)
        roll = self.rng.random()
        if roll < 0.3 or (roll < 0.5 and len(self.texts) >= MANY_TEXTS):
            text = self.rng.choice(self.texts)
            return self._change_text(text, 0) if roll < 0.12 else text
        if roll < 0.38:
            return self.rng.choice(WORDS)
        if roll < 0.48:
            return str(self._draw_int(INT, depth))
        if roll < 0.6:
            return self._draw_joined(depth)
        letters = self.rng.choice(self.alphabets)
        size = self.rng.randint(0, 8)
        if self.rng.random() < 0.08:  # lengths that the source may compare with
            size = max(0, min(MAX_LENGTH, self.rng.choice(self.numbers) + self.rng.randint(-1, 3)))
        text = "".join(self.rng.choice(letters) for _ in range(size))
        if self.rng.random() < 0.15:
            text += self.rng.choice(self.texts)
        if self.marks and self.rng.random() < 0.25:  # ends are often looked at
            mark = self.rng.choice(self.marks)
            text = text + mark if self.rng.random() < 0.6 else mark + text
        return text + text[::-1] if roll > 0.92 else text

    def _draw_joined(self, depth: int) -> str:
        """Draw numbers, or words, with a separator of the source between them, such as a date or a path."""
        separator = self.rng.choice(self.separators)
        count = self.rng.choice(self.part_counts) if self.rng.random() < 0.9 else self.rng.randint(1, 5)
        is_number = self.rng.random() < 0.7
        parts = []
        for _ in range(count):
            number = abs(self._draw_int(INT, depth))
            width = self.rng.choice((1, 1, 2))
            parts.append(f"{number:0{width}d}" if is_number else self.rng.choice((*WORDS[2:4], *self.texts)))
        return separator.join(parts)

    def _draw_items(self, kind: ValueType, depth: int) -> list[Any]:
        element = kind.parts[0]
        nodes = self.draw_nodes(str(element.values[0])) if element.kind == "object" else None
        if nodes is not None:
            return nodes
        sizes = SIZES if element.kind != "object" else SIZES[:4]  # an object's answer is long
        size = self.rng.choice(sizes) if depth < MAX_DEPTH else 0
        if _is_expression(element) and self.rng.random() < EXPRESSION_SHARE:
            return self._draw_expression(element, depth)
        is_mixed = element == ANY and self.rng.random() < 0.2
        items = [self.draw(self.rng.choice(MIXED) if is_mixed else element, depth + 1) for _ in range(size)]
        roll = self.rng.random()
        if items and roll < 0.25:
            items[self.rng.randrange(len(items))] = self.rng.choice(items)  # a repetition
        if 0.25 < roll < 0.35:
            items += items[::-1]  # the same from both ends
        if roll > 0.75 and element.kind in ("int", "float", "str"):
            items.sort(reverse=roll > 0.9)
        return items

    def _draw_expression(self, kind: ValueType, depth: int) -> list[Any]:
        """Draw operands with signs after, between or before them, as expressions are written."""
        operand, sign = kind.parts
        order = self.rng.choice(("postfix", "postfix", "postfix", "infix", "prefix"))
        items = [self.draw(operand, depth + 1)]
        for _ in range(self.rng.randint(0, 3)):
            further, mark = [self.draw(operand, depth + 1)], self.draw(sign, depth + 1)
            sides = [items, further] if self.rng.random() < 0.6 else [further, items]
            items = {
                "postfix": [*sides[0], *sides[1], mark],
                "infix": [*sides[0], mark, *sides[1]],
                "prefix": [mark, *sides[0], *sides[1]],
            }[order]
        return items

    def _draw_square(self, kind: ValueType, depth: int) -> list[list[Any]]:
        rows = self.rng.choice((1, 2, 2, 3, 3))
        columns = rows if self.rng.random() < 0.6 else self.rng.randint(1, 4)
        if self.grids and self.rng.random() < GRID_SHARE:
            rows = columns = self.rng.choice(self.grids)
        return [[self.draw(kind.parts[0], depth + 2) for _ in range(columns)] for _ in range(rows)]

    def _draw_list(self, kind: ValueType, depth: int) -> list[Any]:
        element = kind.parts[0]
        if element.kind == "list" and self.rng.random() < 0.6:
            return self._draw_square(element, depth)
        return self._draw_items(kind, depth)

    def _draw_dict(self, kind: ValueType, depth: int) -> dict[Any, Any]:
        key, value = kind.parts
        if key.kind == "tuple" and key.parts[0].kind == "object":
            return self.draw_weights(str(key.parts[0].values[0])) or {}
        if key.kind == "tuple" and key.parts[0] == key.parts[-1] and self.rng.random() < GRAPH_SHARE:
            return self._draw_edges(key, value, depth)
        inner = value.parts[0] if value.kind in ("list", "set", "dict") else None
        inner = inner.parts[0] if inner and inner.kind == "tuple" else inner
        if inner == key and self.rng.random() < 0.7:
            return self._draw_graph(key, value, depth)
        keys = [item for item in self._draw_items(ValueType("list", (key,)), depth) if _is_hashable(item)]
        return {item: self.draw(value, depth + 1) for item in keys}

    def _draw_edges(self, key: ValueType, value: ValueType, depth: int) -> dict[Any, Any]:
        """Draw what is known of pairs of a few values, such as the lengths of a graph's edges."""
        count = self.rng.randint(2, 5)
        nodes = (
            list(range(count))
            if key.parts[0] == INT
            else [self.draw(key.parts[0], depth + 2) for _ in range(count)]
        )
        size = self.rng.randint(1, 2 * count)
        keys = [tuple(self.rng.choice(nodes) for _ in key.parts) for _ in range(size)]
        if self.rng.random() < CIRCLE_SHARE:  # then every node can be reached from every other one
            keys = [*pairwise([*nodes, nodes[0]]), *keys[: size // 2]]
        return {item: self.draw(value, depth + 1) for item in keys if _is_hashable(item)}

    def _draw_graph(self, key: ValueType, value: ValueType, depth: int) -> dict[Any, Any]:
        """Draw a graph: what it refers to are its own keys."""
        count = self.rng.randint(1, 5)
        drawn = [self.draw(key, depth + 1) for _ in range(count)] if key.kind not in ("int", "str") else []
        nodes = drawn or list(range(count)) if key.kind != "str" else list("ABCDEF"[:count])
        graph: dict[Any, Any] = {}
        for node in nodes:
            others = self.rng.sample(nodes, self.rng.randint(0, min(3, len(nodes))))
            if value.kind == "list" and value.parts[0].kind == "tuple":
                rest = value.parts[0].parts[1:]
                graph[node] = [(other, *(self.draw(part, depth + 2) for part in rest)) for other in others]
            elif value.kind == "dict":
                graph[node] = {other: self.draw(value.parts[1], depth + 1) for other in others}
            else:
                graph[node] = set(others) if value.kind == "set" else others
        return graph

    def _draw_set(self, kind: ValueType, depth: int) -> Any:
        items = [item for item in self._draw_items(kind, depth) if _is_hashable(item)]
        return frozenset(items) if kind.kind == "frozenset" else set(items)

    def _draw_any(self, kind: ValueType, depth: int) -> Any:
        others = (TEXT, FLOAT, ValueType("list", (INT,)), ValueType("list", (TEXT,)), BOOL)
        return self.draw(INT if depth or self.rng.random() < 0.5 else self.rng.choice(others), depth)

    def _draw_object(self, kind: ValueType, depth: int) -> Any:
        make = self.objects.get(str(kind.values[0]))
        return make(depth) if make and depth <= MAX_DEPTH else None

    def _draw_record(self, kind: ValueType, depth: int) -> Any:
        parts = zip(kind.values, kind.parts, strict=True)
        return new_object(NODE_TYPE, [], {}, {name: self.draw(part, depth + 1) for name, part in parts})

    def _draw_fields(self, kind: ValueType, depth: int) -> dict[Any, Any]:
        parts = zip(kind.values, kind.parts, strict=True)
        is_whole = self.rng.random() < WHOLE_SHARE
        return {
            name: self.draw(part, depth + 1) for name, part in parts if is_whole or self.rng.random() < 0.8
        }

    def _draw_complex(self, kind: ValueType, depth: int) -> complex:
        return complex(self._draw_float(FLOAT, depth), self._draw_float(FLOAT, depth))

    def _draw_function(self, kind: ValueType, depth: int) -> Any:
        if len(kind.values) < 2:  # in a container, where nothing says which
            kind = self.rng.choice(list_functions(int(str(kind.values[0])) if kind.values else None))
        return new_object(FUNCTION, [self.rng.choice(FUNCTIONS[kind.values])])

    _DRAWS: ClassVar[dict[str, Any]] = {
        "any": _draw_any,
        "int": _draw_int,
        "float": _draw_float,
        "str": _draw_text,
        "bool": lambda self, kind, depth: self.rng.random() < 0.5,
        "bytes": lambda self, kind, depth: self._draw_text(kind, depth).encode(),
        "none": lambda self, kind, depth: None,
        "callable": _draw_function,
        "complex": _draw_complex,
        "list": _draw_list,
        "sequence": lambda self, kind, depth: tuple(self._draw_items(kind, depth)),
        "tuple": lambda self, kind, depth: tuple(self.draw(part, depth + 1) for part in kind.parts),
        "set": _draw_set,
        "frozenset": _draw_set,
        "dict": _draw_dict,
        "union": lambda self, kind, depth: self.draw(self.rng.choice(kind.parts), depth),
        "literal": lambda self, kind, depth: self.rng.choice(kind.values or (None,)),
        "object": _draw_object,
        "record": _draw_record,
        "fields": _draw_fields,
    }

    # ---- neighbours ------------------------------------------------------------------------------

    def _change_int(self, value: int, depth: int) -> int:
        roll = self.rng.random()
        if roll < 0.45:
            return int(self.rng.choice(self.numbers)) + self.rng.choice((-1, 0, 1))
        if roll < 0.75:
            return value + self.rng.choice((-2, -1, 1, 2, 10, -10))
        return self.rng.choice((0, 1, -1, -value, 2 * value, self.rng.randint(-100, 1000)))

    def _change_float(self, value: float, depth: int) -> float:
        return self.rng.choice((0.0, -value, value + 1, value / 2, value * 10, float(self._change_int(1, 0))))

    def _change_text(self, value: str, depth: int) -> str:
        constant, place = self.rng.choice(self.texts), self.rng.randint(0, len(value))
        letter = self.rng.choice(self.letters)
        return str(
            self.rng.choice(
                (
                    "", constant, constant + value, value + constant, value[:place] + letter + value[place:],
                    value[:place], value[place:], value + letter, value[:-1] + letter, value.upper(),
                    value.lower(), value[::-1], f" {value} ",
                )
            )
        )  # fmt: skip

    def _change_list(self, value: list[Any], depth: int) -> list[Any]:
        if value and self.rng.random() < 0.35:  # one part, so that what is right of the others stays
            place = self.rng.randrange(len(value))
            return [*value[:place], self.mutate(value[place], depth + 1), *value[place + 1 :]]
        items = [self.mutate(item, depth + 1) for item in value]
        roll = self.rng.random()
        if roll < 0.2 and items:
            items.pop(self.rng.randrange(len(items)))
        elif roll < 0.4 and items:
            items.insert(self.rng.randint(0, len(items)), self.mutate(self.rng.choice(items), depth + 1))
        elif roll < 0.55:
            self.rng.shuffle(items)
        return [] if roll > 0.97 else items

    def _change_tuple(self, value: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
        if is_reference(value):
            return tuple(self.rng.choice(self.references or [value]))
        return tuple(self.mutate(item, depth + 1) for item in value)

    def _change_dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        if ... in value:
            name, args, kwargs, attributes, *calls = value[...]
            if name == FUNCTION:
                same = [names for names in FUNCTIONS.values() if args[0] in names]
                return new_object(FUNCTION, [self.rng.choice(same[0])])
            changed = {key: self.mutate(attributes[key], depth + 1) for key in attributes}
            filled = [self._change_calls(own, depth + 1) for own in calls]
            return {...: (name, [self.mutate(item, depth + 1) for item in args], kwargs, changed, *filled)}
        items = {key: self.mutate(item, depth + 1) for key, item in value.items()}
        if items and self.rng.random() < 0.2:
            items.pop(self.rng.choice(list(items)))
        return items

    def _change_calls(self, calls: list[Any], depth: int) -> list[Any]:
        """Change the calls that fill an object: what they are given, their order, or how many they are."""
        changed = [
            (name, [self.mutate(item, depth) for item in args], kwargs) for name, args, kwargs in calls
        ]
        roll, place = self.rng.random(), self.rng.randrange(len(changed))
        if roll < 0.2 and len(changed) > 1:
            changed.pop(place)
        elif roll < 0.4 and len(changed) < MAX_LENGTH:
            changed.insert(place, changed[self.rng.randrange(len(changed))])
        elif roll < 0.5:
            self.rng.shuffle(changed)
        return changed

    def _change_set(self, value: Any, depth: int) -> Any:
        return type(value)(self._change_list(sorted(value, key=repr), depth))

    _CHANGES: ClassVar[dict[type, Any]] = {
        bool: lambda self, value, depth: not value,
        int: _change_int,
        float: _change_float,
        complex: lambda self, value, depth: self.rng.choice(
            (value.conjugate(), -value, value + 1, value * 1j)
        ),
        str: _change_text,
        bytes: lambda self, value, depth: self.rng.choice((b"", value[1:], value + b"x", value[::-1])),
        list: _change_list,
        tuple: _change_tuple,
        dict: _change_dict,
        set: _change_set,
        frozenset: _change_set,
    }


def _list_counted(tree: ast.AST) -> Iterator[int]:
    """List the constants that the source counts to, as far as they may be the size of a matrix."""
    sizes = (
        node.args[0].value
        for node in list_nodes(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "range" and len(node.args) == 1
        if isinstance(node.args[0], ast.Constant)
    )
    yield from dict.fromkeys(size for size in sizes if type(size) is int and size in GRIDS)


def _is_matrix(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(row) is list for row in value)


def _list_contents(value: Any) -> list[Any]:
    """List what other arguments may be parts of: a container, or those that an object is given."""
    parts = value[...][3].values() if isinstance(value, dict) and ... in value else [value]
    containers = [part for part in parts if isinstance(part, list | tuple | dict | str) and part]
    return [part for part in containers if not is_reference(part)]


def _is_expression(element: ValueType) -> bool:
    """Whether elements are of some type or one of the signs that the source knows."""
    return element.kind == "union" and len(element.parts) == 2 and element.parts[1].kind == "literal"


def _list_quoted(tree: ast.AST) -> Iterator[str]:
    """List the short texts that docstrings quote."""
    for node in list_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                quoted = (match[1] or match[2] for match in _QUOTED.finditer(text[:MAX_DOCSTRING]))
                yield from dict.fromkeys(itertools.islice(quoted, MAX_QUOTED))


def _list_constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """List the constants of a source but its texts for people: docstrings and the messages of errors."""
    left_out: set[int] = set()
    for node in list_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(id(node.value))
        elif isinstance(node, ast.Raise):
            left_out.update(map(id, ast.walk(node)))
        elif isinstance(node, ast.Constant) and id(node) not in left_out:
            yield node


def _find_split_targets(trees: Sequence[ast.AST]) -> Iterator[list[ast.expr]]:
    """Find the names that the parts of a divided text get, as in ``day, month = text.split("-")``."""
    for node in (node for tree in trees for node in list_nodes(tree)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
            continue
        if any(getattr(part, "attr", "") == "split" for part in ast.walk(node.value)):
            yield node.targets[0].elts


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True

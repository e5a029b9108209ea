"""A pool of further inputs, on which a mutant that a suite does not refuse may differ from the source.

Inputs are seeded mutations of the suite's own, which keep their types, with constants of the source and of
the tests; functions and methods that the suite never calls get typical values. Deterministic: the same
source and suite give the same pool. (D5)
"""

from __future__ import annotations

import ast
import hashlib
import marshal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from iccm_assets.suites.source_edits import FunctionNode, SourceText, walk
from iccm_assets.suites.test_suites import Suite

POOL_SIZE = 240
INPUTS_PER_UNTESTED = 60  # of a function or class that the suite never calls
MAX_POOL_SIZE = 480
MAX_STEPS = 10
MAX_CONSTANTS = 200
MAX_ANNOTATION_DEPTH = 3
MAX_POOL_BYTES = 2 << 20

Arguments = tuple[list[Any], dict[str, Any]]
Plan = tuple[Any, ...]


@dataclass
class _Calls:
    """The arguments that the suite calls something with; for a class also those of its methods."""

    arguments: list[Arguments] = field(default_factory=list)
    methods: dict[str, list[Arguments]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Signature:
    """A function's parameters with their annotations, and for a class those of each method."""

    parameters: tuple[tuple[str, str], ...]
    methods: dict[str, tuple[tuple[str, str], ...]] | None = None


def build_pool(source: SourceText, suite: Suite, seed: str) -> list[Plan]:
    """Build a pool of distinct inputs, as plans of the judge's runner."""
    rng = Random(hashlib.sha256(seed.encode() + source.data).hexdigest())
    signatures = _find_signatures(source.tree)
    texts = [SourceText.parse(text) for name, text in sorted(suite.files.items()) if name.endswith(".py")]
    tests = [text.tree for text in texts if text]
    values = _Values(rng, [source.tree, *tests])
    calls = _collect_calls(suite, tests, signatures)
    for name in calls:
        signatures.setdefault(name.partition(".")[0], _Signature(()))
    plans: dict[bytes, Plan] = {}
    drawn = 0
    for name, size in _choose_sizes(calls, signatures).items():
        target = min(MAX_POOL_SIZE, len(plans) + size)
        for _ in range(3 * size):
            if len(plans) >= target or drawn > MAX_POOL_BYTES:
                break
            plan = _draw_plan(name, calls.get(name, _Calls()), signatures.get(name), values)
            written = marshal.dumps(plan, 2)  # no repr: an integer may be too long for it
            drawn += len(written)
            plans.setdefault(written, plan)
    return list(plans.values())


def _choose_sizes(calls: dict[str, _Calls], signatures: dict[str, _Signature]) -> dict[str, int]:
    """Return the number of inputs by name: what the suite calls shares the pool, the rest gets a few."""
    tested = [name for name in calls if calls[name].arguments or calls[name].methods]
    untested = [name for name in signatures if name not in calls and not name.startswith("_")]
    share = max(1, POOL_SIZE // max(1, len(tested)))
    return {**dict.fromkeys(tested, share), **dict.fromkeys(untested, INPUTS_PER_UNTESTED)}


def _draw_plan(name: str, calls: _Calls, signature: _Signature | None, values: _Values) -> Plan:
    parameters = signature.parameters if signature else ()
    args, kwargs = values.draw_arguments(calls.arguments, parameters)
    declared = (signature.methods if signature else None) or {}
    methods = sorted({*calls.methods, *declared})
    if not methods:
        return ("call", name, args, kwargs)
    steps = []
    for method in values.rng.choices(methods, k=values.rng.randint(1, MAX_STEPS)):
        steps.append(
            (method, *values.draw_arguments(calls.methods.get(method, []), declared.get(method, ())))
        )
    return ("new", name, args, kwargs, steps)


# ---- values --------------------------------------------------------------------------------------


class _Values:
    """Draws values: mutations of known ones, constants of the source, typical ones by annotation."""

    def __init__(self, rng: Random, trees: list[ast.Module]) -> None:
        self.rng = rng
        constants = [
            node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)
        ][:MAX_CONSTANTS]
        self.numbers = [value for value in constants if type(value) is int and abs(value) < 1 << 40] or [1]
        self.texts = [value for value in constants if type(value) is str and len(value) < 60] or ["ab"]

    def draw_arguments(self, known: list[Arguments], parameters: tuple[tuple[str, str], ...]) -> Arguments:
        if not known:
            return [self.draw_typical(annotation) for _, annotation in parameters], {}
        args, kwargs = self.rng.choice(known)
        if self.rng.random() < 0.3:  # parts of two known inputs together
            other = self.rng.choice(known)[0]
            if len(other) == len(args):
                args = [self.rng.choice(pair) for pair in zip(args, other, strict=True)]
        return [self.mutate(value) for value in args], {key: self.mutate(kwargs[key]) for key in kwargs}

    def mutate(self, value: Any, depth: int = 0) -> Any:
        """Return the value or a neighbour of the same type."""
        if depth > 5 or self.rng.random() < 0.25:
            return value
        for kind, change in self._CHANGES.items():
            if type(value) is kind:
                return change(self, value, depth)
        return value

    def draw_typical(self, annotation: str, depth: int = 0) -> Any:
        """Draw a typical value of an annotation, of any common type where there is none."""
        kinds: dict[str, Callable[[], Any]] = {
            "int": lambda: self._change_int(self.rng.choice(self.numbers), 0),
            "float": lambda: self._change_float(float(self.rng.choice(self.numbers)), 0),
            "str": lambda: self._change_text(self.rng.choice(self.texts), 0),
            "bool": lambda: self.rng.random() < 0.5,
            "bytes": lambda: self._change_text(self.rng.choice(self.texts), 0).encode(),
        }
        outer, _, inner = annotation.lower().replace("typing.", "").partition("[")
        if outer in kinds:
            return kinds[outer]()
        element = inner.rstrip("]").partition(",")[0].strip() or "int"
        if outer in ("list", "sequence", "iterable", "collection"):
            length = self.rng.randint(0, 5) if depth < MAX_ANNOTATION_DEPTH else 0
            return [self.draw_typical(element, depth + 1) for _ in range(length)]
        if outer in ("dict", "mapping"):
            keys = element if element in kinds else "str"
            return {self.draw_typical(keys): self.rng.choice(self.numbers) for _ in range(3)}
        others = ("str", "float", "list[int]", "list[str]", "bool", "dict[str]")
        return self.draw_typical("int" if self.rng.random() < 0.5 else self.rng.choice(others))

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
        letter = self.rng.choice("abcxyzAB09 _-.,é")
        return str(
            self.rng.choice(
                (
                    "", constant, constant + value, value + constant, value[:place] + letter + value[place:],
                    value[:place], value[place:], value.upper(), value.lower(), value[::-1], f" {value} ",
                )
            )
        )  # fmt: skip

    def _change_list(self, value: list[Any], depth: int) -> list[Any]:
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
        return tuple(self.mutate(item, depth + 1) for item in value)

    def _change_dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        items = {key: self.mutate(item, depth + 1) for key, item in value.items()}
        if items and self.rng.random() < 0.2:
            items.pop(self.rng.choice(list(items)))
        return items

    def _change_set(self, value: Any, depth: int) -> Any:
        return type(value)(self._change_list(sorted(value, key=repr), depth))

    _CHANGES: ClassVar[dict[type, Any]] = {
        bool: lambda self, value, depth: not value,
        int: _change_int,
        float: _change_float,
        str: _change_text,
        bytes: lambda self, value, depth: self.rng.choice((b"", value[1:], value + b"x", value[::-1])),
        list: _change_list,
        tuple: _change_tuple,
        dict: _change_dict,
        set: _change_set,
        frozenset: _change_set,
    }


# ---- what can be called, and with what -----------------------------------------------------------


def _find_signatures(tree: ast.Module) -> dict[str, _Signature]:
    """Find the functions and classes of the module."""
    signatures = {}
    for statement in tree.body:
        if isinstance(statement, FunctionNode):
            signatures[statement.name] = _Signature(_list_parameters(statement, skipped=0))
        elif isinstance(statement, ast.ClassDef):
            functions = [part for part in statement.body if isinstance(part, FunctionNode)]
            methods = {part.name: _list_parameters(part, skipped=1) for part in functions}
            constructor = methods.get("__init__", ())
            public = {name: methods[name] for name in methods if not name.startswith("_")}
            signatures[statement.name] = _Signature(constructor, public)
    return signatures


def _list_parameters(function: FunctionNode, skipped: int) -> tuple[tuple[str, str], ...]:
    parameters = [*function.args.posonlyargs, *function.args.args][skipped:]
    return tuple(
        (parameter.arg, ast.unparse(parameter.annotation).strip("'\"") if parameter.annotation else "")
        for parameter in parameters
    )


def _collect_calls(
    suite: Suite, tests: list[ast.Module], signatures: dict[str, _Signature]
) -> dict[str, _Calls]:
    calls: dict[str, _Calls] = {}
    for case in suite.cases if suite.kind == "cases" else ():
        own = calls.setdefault(case.call.name, _Calls())
        own.arguments.append((case.call.args, case.call.kwargs))
        for call, _ in case.steps or ():
            own.methods.setdefault(call.name, []).append((call.args, call.kwargs))
    literal: dict[str, list[Arguments]] = {}
    for name, arguments in _find_literal_calls(tests):
        literal.setdefault(name, []).append(arguments)
    for name, signature in signatures.items():
        methods = {method: literal[method] for method in signature.methods or {} if method in literal}
        if methods or name in literal:
            calls[name] = _Calls(literal.get(name, []), methods)
    return calls


def _find_literal_calls(tests: list[ast.Module]) -> Iterator[tuple[str, Arguments]]:
    """Find calls whose arguments are literals in the tests of a suite."""
    for node in (node for tree in tests for node in walk(tree) if isinstance(node, ast.Call)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        try:
            args = [ast.literal_eval(argument) for argument in node.args]
            kwargs = {item.arg or "": ast.literal_eval(item.value) for item in node.keywords}
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if "" not in kwargs:
            yield name, (args, kwargs)

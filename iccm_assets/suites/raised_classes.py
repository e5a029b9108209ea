"""Check the classes of a raised exception, as an untrusted process describes them.

The description is a list of ``[name, is it Python's own]`` in method resolution order. Whoever writes it
can claim anything, so it may gain nothing that a real class could not: a list that no class can have is no
answer, and an exception that meets several unrelated expectations of its suite must be defined like that, in
the source or in the standard library. (J1)
"""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

from iccm_assets.sandbox.python_source import parse_python
from iccm_assets.suites.suite_values import InvalidValueError
from iccm_assets.suites.test_suites import Case

MAX_CLASSES = 200
MAX_UNRELATED_CLASSES = 2  # honest ones combine two at most: class NotFound(KeyError, ValueError)
ANY_EXCEPTION = frozenset(("BaseException", "Exception"))
# Loaded only for a suite that expects several names of one exception.
_STANDARD_MODULES = """
    argparse asyncio binascii bz2 concurrent.futures configparser copy csv dataclasses decimal email.errors
    enum getopt graphlib http.client io ipaddress json lzma multiprocessing pickle queue re select shutil
    socket sqlite3 ssl statistics string struct subprocess tarfile threading tomllib types urllib.error uuid
    wave xml.etree.ElementTree zipfile zlib zoneinfo
    """

BUILTIN: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}


class RaisedClasses:
    """What the cases of one implementation expect to be raised, and which names it and its suite define."""

    def __init__(self, cases: Sequence[Case] = (), source: str = "", files: Iterable[str] = ()) -> None:
        expectations = [case.expected for case in cases]
        expectations += [expected for case in cases for _, expected in case.steps or ()]
        self.expected = frozenset(expected.raises for expected in expectations if expected.raises)
        self.source = source
        self.cases = cases
        self.files = files

    @cached_property
    def defined_names(self) -> frozenset[str]:
        """The names that are no packages: of the suite's files, and words of its inputs.

        A function that imports what its caller names does so on purpose.
        """
        inputs = repr([case.inputs()[2:] for case in self.cases if not case.test])
        modules = {part.removesuffix(".py") for name in self.files for part in name.split("/")}
        return frozenset(modules | set(re.findall(r"\w+", inputs)))

    @cached_property
    def bases(self) -> dict[str, set[str]]:
        """The bases of each class that the source defines, by name."""
        return _find_bases(self.source)

    def is_of_many_kinds(self, classes: list[Any]) -> bool:
        """Whether one class stands for any exception that is expected, like an object equal to everything."""
        own = [BUILTIN[name] for name, is_own in classes if is_own]
        if len(_most_specific(own)) > MAX_UNRELATED_CLASSES:
            return True
        met = [name for name in self.expected - ANY_EXCEPTION if is_raised(name, classes)]
        if len(met) < 2 or classes[0][1]:
            return False
        kinds = self._drop_ancestors(met)
        if len(kinds) < 2:
            return False
        return len(kinds) > MAX_UNRELATED_CLASSES or not self._find_ancestors(classes[0][0]).issuperset(kinds)

    def _drop_ancestors(self, names: list[str]) -> list[str]:
        """Return the names of the classes that no other one derives from."""
        ancestors = {name: self._find_ancestors(name) for name in names}
        return [
            name for name in names if not any(name in ancestors[other] for other in names if other != name)
        ]

    def _find_ancestors(self, name: str) -> set[str]:
        """Return the names of a class and of everything that it derives from, as far as its source says."""
        ancestors, pending = set[str](), [name]
        while pending:
            current = pending.pop()
            if current in ancestors:
                continue
            ancestors.add(current)
            pending += self.bases.get(current, ())
            if current not in self.bases:
                known = BUILTIN.get(current)
                ancestors |= (
                    {kind.__name__ for kind in known.__mro__} if known else _standard_ancestors(current)
                )
        return ancestors


def is_raised(name: str, classes: list[Any]) -> bool:
    """Compare Python's own exceptions and their subclasses by identity, others by class name."""
    return any(raised == name and (own or name not in BUILTIN) for raised, own in classes)


NOTHING_EXPECTED = RaisedClasses()


def check_classes(classes: Any) -> None:
    """Raise ``InvalidValueError`` unless some class can have this method resolution order."""
    if not isinstance(classes, list) or not 1 < len(classes) <= MAX_CLASSES:
        raise InvalidValueError("not an answer")
    for entry in classes:
        if not isinstance(entry, list) or len(entry) != 2 or not _is_class(*entry):
            raise InvalidValueError("not an answer")
    if classes[-1] != ["object", 0] or not _is_possible(classes):
        raise InvalidValueError("not an answer")


def _is_class(name: Any, own: Any) -> bool:
    """Whether an entry is a class name with 0, or the name of one of Python's own exceptions with 1."""
    return isinstance(name, str) and type(own) is int and (own == 0 or (own == 1 and name in BUILTIN))


def _is_possible(classes: list[Any]) -> bool:
    own = [BUILTIN[name] for name, is_own in classes if is_own]
    if len(set(own)) != len(own) or BaseException not in own:
        return False
    if any([kind for kind in own if kind in parent.__mro__] != list(parent.__mro__[:-1]) for parent in own):
        return False
    if classes[0][1]:  # one of Python's own has only these
        return len(own) == len(classes) - 1 == len(own[0].__mro__) - 1
    try:
        type("Raised", tuple(_most_specific(own)), {})
    except TypeError:  # their memory layouts exclude each other
        return False
    return True


def _most_specific(kinds: list[type[BaseException]]) -> list[type[BaseException]]:
    return [kind for kind in kinds if sum(issubclass(other, kind) for other in set(kinds)) == 1]


def _find_bases(source: str) -> dict[str, set[str]]:
    """Find the names of the bases of each class and alias; nothing in what is not Python."""
    bases: dict[str, set[str]] = {}
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return bases
    for node in ast.walk(tree):
        for name, parents in _definitions(node):
            bases.setdefault(name, set()).update(parents)
    return bases


def _definitions(node: ast.AST) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the names that a statement defines, each with its bases."""
    if isinstance(node, ast.ClassDef):
        yield node.name, _names(node.bases)
    elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Attribute)):
        yield from ((name, _names([node.value])) for name in _names(node.targets))
    elif isinstance(node, ast.Call) and _names([node.func]) == ["type"] and len(node.args) == 3:
        match node.args[:2]:
            case [ast.Constant(value=str(name)), ast.Tuple(elts=parents)]:
                yield name, _names(parents)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname, [alias.name]) for alias in node.names if alias.asname)


def _names(nodes: Iterable[ast.expr]) -> list[str]:
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in nodes)
    return [name for name in names if name]


def _standard_ancestors(name: str) -> set[str]:
    return _standard_exceptions().get(name, set())


@cache
def _standard_exceptions() -> dict[str, set[str]]:
    """Return the standard library's exceptions by name, each with the names that it derives from."""
    exceptions: dict[str, set[str]] = {}
    for module in _STANDARD_MODULES.split():
        try:
            items = list(vars(importlib.import_module(module)).values())
        except ImportError:  # built without it
            continue
        for kind in items:
            if isinstance(kind, type) and issubclass(kind, BaseException):
                exceptions.setdefault(kind.__name__, set()).update(base.__name__ for base in kind.__mro__)
    return exceptions

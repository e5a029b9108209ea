"""API compatibility: the share of the original's public interface that a re-implementation retains.

`griffe` parses and compares both sources; neither is run. The public interface is the functions, classes,
methods and properties (by `__all__` where there is one, else by a leading underscore). An object is retained
if a caller of the original can use the re-implementation's in the same way: the same kind, compatible
parameters, the same defaults, and `async`, `staticmethod`, `classmethod` and `property` as before. An
additional parameter with a default breaks no caller; annotations are not compared. (E2)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from iccm_assets.sandbox.python_source import BYTE_ORDER_MARK, parse_python

if TYPE_CHECKING:
    import griffe

# Parsing the worst text of this size takes some seconds; typical sources are a tenth of it.
MAX_CHARACTERS = 64 * 1024
_BINDING = {"async", "staticmethod", "classmethod", "property"}
_BREAKING_CHANGES = {
    "PARAMETER_MOVED",
    "PARAMETER_REMOVED",
    "PARAMETER_CHANGED_KIND",
    "PARAMETER_CHANGED_DEFAULT",
    "PARAMETER_CHANGED_REQUIRED",
    "PARAMETER_ADDED_REQUIRED",
    "OBJECT_REMOVED",
    "OBJECT_CHANGED_KIND",
    "CLASS_REMOVED_BASE",
}


def api_compatibility(original: str, implementation: str) -> float | None:
    """Return the fraction (0-1) of the original's public interface that is retained.

    None when the original has none or cannot be parsed; 0 when the implementation cannot be parsed.
    """
    original_module = _parse_original(original)
    paths = [path for path, _ in _public_members(original_module)] if original_module else []
    if original_module is None or not paths:
        return None
    module = _parse(implementation)
    if module is None:
        return 0.0
    broken = _find_broken(original_module, module)
    # A missing class takes its methods with it.
    return sum(broken.isdisjoint(accumulate(path.split("."), "{}.{}".format)) for path in paths) / len(paths)


def _parse(code: str) -> griffe.Module | None:
    """Parse a module with `griffe`; None for what is not Python, or too large for a person to write."""
    import griffe  # ~0.2 s: only where it is used

    if len(code) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd escapes in foreign code
            parse_python(code)  # refuses what takes too long
            extensions = griffe.load_extensions()
            visitor = _visitor_class()("module", None, code.removeprefix(BYTE_ORDER_MARK), extensions)
            module: griffe.Module = visitor.get_module()
            _construct_dataclasses(module)
            return module
    # The source may be hostile, and the parser is not written for that: any failure means unreadable.
    except (Exception, RecursionError, MemoryError):
        return None


@cache
def _visitor_class() -> Any:
    """Build griffe's visitor without its search for the docstring of each attribute.

    That takes quadratic time, and no docstring is compared.
    """
    import griffe

    class InterfaceVisitor(griffe.Visitor):
        def handle_attribute(self, node: Any, annotation: Any = None) -> None:
            parent = node.parent
            node.parent = type(parent)()  # of the same kind, without other children to search
            try:
                super().handle_attribute(node, annotation)
            finally:
                node.parent = parent

    return InterfaceVisitor


_parse_original = lru_cache(maxsize=256)(_parse)  # compared with the re-implementation of every member


def _construct_dataclasses(parent: griffe.Module | griffe.Class) -> None:
    """Give each dataclass the constructor that its fields define, so that it is compared like any other.

    Griffe's own extension does this, too, but keeps every class in memory.
    """
    for member in list(parent.members.values()):
        if member.is_alias or not member.is_class:
            continue
        decorators = {decorator.callable_path for decorator in member.decorators}  # type: ignore[union-attr]
        if "dataclasses.dataclass" in decorators and "__init__" not in member.members:
            member.set_member("__init__", _constructor(member))  # type: ignore[arg-type]
        _construct_dataclasses(member)  # type: ignore[arg-type]


def _constructor(dataclass: griffe.Class) -> griffe.Function:
    import griffe

    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter("self", kind=kind)]
    for name, field in dataclass.members.items():
        assigned = getattr(field, "value", None)
        value = "" if assigned is None else str(assigned)
        if "instance-attribute" not in field.labels or "property" in field.labels or "init=False" in value:
            continue
        default = None if not value or value.startswith("field()") else value
        parameters.append(griffe.Parameter(name, kind=kind, default=default))
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=dataclass)


def _find_broken(original: griffe.Module, module: griffe.Module) -> set[str]:
    """Return the paths of public objects that a caller of the original can no longer use."""
    import griffe

    try:
        changes = list(griffe.find_breaking_changes(original, module))
        members = dict(_members(module))
    except (Exception, RecursionError):  # as above
        return {original.path}
    broken = {change.obj.path for change in changes if change.kind.name in _BREAKING_CHANGES}
    for path, member in _public_members(original):
        if path not in members or (member.labels & _BINDING) != (members[path].labels & _BINDING):
            broken.add(path)
    return broken


def _public_members(module: griffe.Module) -> Iterator[tuple[str, griffe.Object]]:
    for path, member in _members(module):
        if member.is_public or member.name == "__init__":
            yield path, member


def _members(parent: griffe.Module | griffe.Class) -> Iterator[tuple[str, griffe.Object]]:
    """Yield (path, object) of functions, classes, methods and properties, including nested ones."""
    for member in parent.members.values():
        if member.is_alias:
            continue
        if member.is_function or member.is_class or "property" in member.labels:
            yield member.path, member  # type: ignore[misc]
        if member.is_class:
            yield from _members(member)  # type: ignore[arg-type]

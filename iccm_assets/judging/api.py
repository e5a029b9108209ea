"""API compatibility: how much of the original's public interface a re-implementation kept (E2).

Read and compared by `griffe`: nothing of either source is ever run. The public interface is its functions,
classes, methods and properties (`__all__` decides where there is one, else a leading underscore). One of
them is kept when whoever used the original's can use the re-implementation's the same way: the same kind,
parameters that still fit, the same defaults, and `async`, `staticmethod`, `classmethod` and `property` as
before. A parameter more that has a default breaks nobody; annotations are not compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import griffe

# Reading the worst of this size takes some seconds; what a model is asked about is a tenth of it.
MAX_CHARACTERS = 64 * 1024
_BINDING = {"async", "staticmethod", "classmethod", "property"}
_PROMISES = {
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
    """Share (0-1) of the original's public interface that was kept.

    None when the original has none or cannot be read; 0 when the implementation cannot be read.
    """
    wanted = _of_original(original)
    if wanted is None:
        return None
    promised = dict(_public(wanted))
    if not promised:
        return None
    got = _read(implementation)
    if got is None:
        return 0.0
    broken = _broken(wanted, got)
    kept = [path for path in promised if broken.isdisjoint(_enclosing(path))]
    return len(kept) / len(promised)


@lru_cache(maxsize=256)
def _of_original(code: str) -> griffe.Module | None:
    """Each original is compared with every member's re-implementation."""
    return _read(code)


def _read(code: str) -> griffe.Module | None:
    """A module as `griffe` sees it; None for what is no Python, or none that a person would write."""
    import griffe  # ~0.2 s: only where it is measured

    if len(code) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd escapes in code that is not ours
            module = griffe.visit("module", filepath=None, code=code)  # type: ignore[arg-type]
            _construct_dataclasses(module)
            return module
    # The source may be hostile, and the reader is a guest here: whatever it stumbles over is unreadable.
    except (Exception, RecursionError, MemoryError):
        return None


def _construct_dataclasses(parent: griffe.Module | griffe.Class) -> None:
    """Give each dataclass the constructor its fields make, so that it is compared like any other.

    Griffe's own extension does so too, but keeps every class it has ever seen in memory.
    """
    for member in list(parent.members.values()):
        if member.is_alias or not member.is_class:
            continue
        made_by = {one.callable_path for one in member.decorators}  # type: ignore[union-attr]
        if "dataclasses.dataclass" in made_by and "__init__" not in member.members:
            member.set_member("__init__", _constructor(member))  # type: ignore[arg-type]
        _construct_dataclasses(member)  # type: ignore[arg-type]


def _constructor(dataclass: griffe.Class) -> griffe.Function:
    import griffe

    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, field in dataclass.members.items():
        written = getattr(field, "value", None)
        value = None if written is None else str(written)
        of_instance = "instance-attribute" in field.labels and "property" not in field.labels
        if not of_instance or (value and "init=False" in value):
            continue
        default = None if value and value.startswith("field()") else value
        parameters.append(
            griffe.Parameter(name, kind=griffe.ParameterKind.positional_or_keyword, default=default)
        )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=dataclass)


def _broken(wanted: griffe.Module, got: griffe.Module) -> set[str]:
    """Paths of public objects a caller of the original would miss."""
    import griffe

    try:
        found = {
            one.obj.path for one in griffe.find_breaking_changes(wanted, got) if one.kind.name in _PROMISES
        }
        now = dict(_members(got))
    except (Exception, RecursionError):  # as above
        return {wanted.path}
    rebound = {
        path
        for path, member in _public(wanted)
        if path not in now or (member.labels & _BINDING) != (now[path].labels & _BINDING)
    }
    return found | rebound


def _public(module: griffe.Module) -> Iterator[tuple[str, griffe.Object]]:
    for path, member in _members(module):
        if member.is_public or member.name == "__init__":
            yield path, member


def _members(parent: griffe.Module | griffe.Class) -> Iterator[tuple[str, griffe.Object]]:
    """Functions, classes, methods and properties, nested ones too, each with its path."""
    for member in parent.members.values():
        if member.is_alias:
            continue
        if member.is_function or "property" in member.labels:
            yield member.path, member  # type: ignore[misc]
        elif member.is_class:
            yield member.path, member  # type: ignore[misc]
            yield from _members(member)  # type: ignore[arg-type]


def _enclosing(path: str) -> Iterator[str]:
    """The path and those of everything it lies in: a lost class takes its methods with it."""
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))

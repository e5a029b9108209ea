"""API compatibility: how much of the original's public interface a re-implementation kept (E2)."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class PublicApi:
    """Public functions and methods of a module, by dotted name, with their parameters in order."""

    signatures: dict[str, tuple[str, ...]]


def public_api(code: str) -> PublicApi | None:
    """The public interface of a module as `griffe` reads it; None when the code does not parse."""
    import griffe  # ~0.2 s: only where it is measured

    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return None
    del tree
    module = griffe.visit("module", filepath=None, code=code)  # type: ignore[arg-type]
    found: dict[str, tuple[str, ...]] = {}
    for name, member in module.members.items():
        if name.startswith("_"):
            continue
        if member.is_function:
            found[name] = _parameters(member)
        elif member.is_class:
            for method, inner in member.members.items():
                if inner.is_function and (method == "__init__" or not method.startswith("_")):
                    found[f"{name}.{method}"] = _parameters(inner)
    return PublicApi(found)


def api_compatibility(original: str, implementation: str) -> float | None:
    """Share (0-1) of the original's public signatures kept; None when the original has none."""
    wanted, got = public_api(original), public_api(implementation)
    if wanted is None or not wanted.signatures:
        return None
    if got is None:
        return 0.0
    kept = sum(got.signatures.get(name) == signature for name, signature in wanted.signatures.items())
    return kept / len(wanted.signatures)


def _parameters(function: object) -> tuple[str, ...]:
    return tuple(
        f"{parameter.kind.name if parameter.kind else ''}:{parameter.name}"
        for parameter in function.parameters  # type: ignore[attr-defined]
        if parameter.name != "self"
    )

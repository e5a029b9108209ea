"""Every setting: its variable, type, bounds, unit, default and description, and the profiles' overrides."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from iccm_assets.cli.config import find_unit
from iccm_assets.settings import PACKAGE, Settings, SettingsGroup, profile_overrides
from scripts.reference.markdown import code, codes, page, prose, section, table

HEAD = ("variable", "type", "unit", "default", "local profile", "description")
TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    date: "date",
}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
INTRODUCTION = """
Every setting is an environment variable. Highest precedence first: the environment, the profile, the
default below, which is the production value. The profile is `local` while `ICCM_BASE_MODEL` is unset, else
`production`, which overrides nothing; `ICCM_PROFILE` names another one. An unknown `ICCM_*` variable or a
value out of range is an error. `iccm config show` prints the values in force and where each comes from.
"""


def render() -> str:
    """Return the page."""
    overrides = profile_overrides("local")
    groups = {name: kind for name, field in Settings.model_fields.items() if (kind := _group(field))}
    top = [_row((name,), field, overrides) for name, field in _fields(Settings) if name not in groups]
    sections = [section("General", table(HEAD, top))]
    for name, kind in groups.items():
        rows = [_row((name, member), field, overrides) for member, field in _fields(kind)]
        sections.append(section(name.capitalize(), prose(inspect.getdoc(kind)), table(HEAD, rows)))
    return page("Settings", INTRODUCTION, *sections)


def _fields(kind: type[Settings | SettingsGroup]) -> Iterator[tuple[str, FieldInfo]]:
    yield from kind.model_fields.items()


def _group(field: FieldInfo) -> type[SettingsGroup] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


def _row(path: tuple[str, ...], field: FieldInfo, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    local: Any = overrides
    for name in path:
        local = local.get(name, {})
    return (
        code("ICCM_" + "__".join(path).upper()),
        _type(field),
        find_unit(path[-1]),
        _default(field),
        "" if local == {} else code(local),
        prose(field.description),
    )


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(part, name)}"
        for part in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return codes(typing.get_args(annotation), " or ")
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not types.NoneType]
        return " or ".join(map(_type_name, options))
    if typing.get_origin(annotation) is dict:
        return "JSON object"
    return TYPES[annotation]


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "number of cores"
    value = field.default
    if isinstance(value, bool):
        return code(str(value).lower())
    if value is None or value in ("", {}):
        return ""
    return code(str(value).replace(str(PACKAGE.parent), "").lstrip("/") if isinstance(value, str) else value)

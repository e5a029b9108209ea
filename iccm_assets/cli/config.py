"""`iccm config`: show every setting, its value and where it comes from."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.endpoint_urls import parse_alert_urls
from iccm_assets.errors import UsageError
from iccm_assets.settings import Settings, SettingsGroup, get_settings, profile_overrides

Source = Literal["default", "profile", "environment"]

MASK = "***"
# user:password@ in any URL, even where the URL is part of a longer value.
_USERINFO = re.compile(r"(?<=://)([^/@\s:]*)(:[^/@\s]*)?@")
# Query parameters that carry a secret.
_SECRET_QUERY = re.compile(r"(?i)([?&](?:password|passwd|token|secret|key|sslpassword)=)[^&\s]*")
_SECRET_NAME = re.compile(r"(?i)token|secret|password|api_?key")

# By the last word of a setting's name.
UNITS = {
    "seconds": "s",
    "ms": "ms",
    "minutes": "min",
    "minute": "1/min",
    "hours": "h",
    "days": "days",
    "mib": "MiB",
    "kib": "KiB",
    "tokens": "tokens",
    "sessions": "sessions",
    "requests": "requests",
    "examples": "examples",
    "items": "items",
    "steps": "steps",
    "epochs": "epochs",
}

group = typer.Typer(help="Show the platform's settings.", no_args_is_help=True)
# Typer merges a group with a single command into its parent unless the group has a callback.
group.callback()(lambda: None)


@dataclass(frozen=True)
class Setting:
    """One setting in force; secrets are masked in ``value``."""

    name: str
    variable: str
    value: Any
    unit: str
    source: Source
    description: str


@group.command()
def show(
    name: Annotated[
        str | None, typer.Argument(help="Part of a name, such as `rollout` or `ICCM_ROLLOUT__ALPHA`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every setting with its value, unit, description and source: default, profile or environment.

    Exits 1 after the list if it shows an orchestra that cannot be loaded.
    """
    settings = get_settings()
    rows = _find_settings(settings, (name or "").strip().lower())
    if not rows:
        raise UsageError(f"no setting is named like {name!r}", hint="`iccm config show` lists all.")
    if as_json:
        echo_json({"profile": settings.profile, "settings": [asdict(row) for row in rows]})
    else:
        _print(rows)
    # The default members can be loaded; their grammars would double the time of this command.
    if any(row.name.startswith("orchestra") and row.source != "default" for row in rows):
        from iccm_assets.scoring.orchestra import load_orchestra_from_settings

        load_orchestra_from_settings(settings)


def _find_settings(settings: Settings, part: str) -> list[Setting]:
    """List the settings with this part in the name or the variable."""
    rows = describe_settings(settings, os.environ)
    return [row for row in rows if part in row.name or part in row.variable.lower()]


def _print(rows: list[Setting]) -> None:
    for row in rows:
        value = "-" if row.value is None or row.value == "" else row.value
        typer.echo(f"{row.variable} = {value}{row.unit and ' ' + row.unit}  ({row.source})")
        typer.echo(textwrap.indent(textwrap.fill(row.description, max(out.width - 4, 20)), " " * 4))


def describe_settings(settings: Settings, environment: Mapping[str, str]) -> Iterator[Setting]:
    """List every setting in the order of the tree, secrets masked."""
    variables = {name.upper() for name, value in environment.items() if value}
    return _walk(settings, profile_overrides(settings.profile), variables)


def _walk(
    tree: Settings | SettingsGroup,
    overrides: Mapping[str, Any],
    variables: set[str],
    path: tuple[str, ...] = (),
) -> Iterator[Setting]:
    for name, field in type(tree).model_fields.items():
        value, variable = getattr(tree, name), "ICCM_" + "__".join((*path, name)).upper()
        if isinstance(value, SettingsGroup):
            yield from _walk(value, overrides.get(name, {}), variables, (*path, name))
            continue
        source: Source = "profile" if name in overrides else "default"
        if variable in variables:
            source = "environment"
        yield Setting(
            ".".join((*path, name)),
            variable,
            mask_secrets(name, value),
            find_unit(name),
            source,
            field.description or "",
        )


def find_unit(name: str) -> str:
    """Return the unit that the last word of a setting's name stands for; empty if it has none."""
    return UNITS.get(name.rsplit("_", 1)[-1], "")


def mask_secrets(name: str, value: Any) -> Any:
    """Mask the secrets of a value: passwords in URLs, and all of it if its name marks it as secret.

    Groups inside of a value become dicts of the fields that are set.
    """
    if isinstance(value, SettingsGroup):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, dict):
        return {key: mask_secrets(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(name, item) for item in value]
    # "max_source_tokens" counts tokens; only texts can be secrets.
    return _mask_text(name, value) if isinstance(value, str) and value else value


def _mask_text(name: str, value: str) -> str:
    if _SECRET_NAME.search(name):
        return MASK
    if name == "alert_urls":  # apprise puts tokens anywhere behind the scheme
        urls = (url.partition("://") for url in parse_alert_urls(value))
        return ",".join(f"{scheme}://{MASK}" if separator else MASK for scheme, separator, _ in urls)
    value = _USERINFO.sub(lambda match: f"{match[1]}{':' + MASK if match[2] else ''}@", value)
    return _SECRET_QUERY.sub(rf"\g<1>{MASK}", value)

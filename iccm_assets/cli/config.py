"""`iccm config`: every setting, its value, and where the value came from (S3)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import typer

from iccm_assets.addresses import alert_urls
from iccm_assets.cli.console import AsJson, echo_json
from iccm_assets.settings import Group, Settings, get_settings, profile_overrides

Source = Literal["default", "profile", "environment"]

MASK = "***"
# user:password@ in any URL, even where the URL is part of a longer value.
_USERINFO = re.compile(r"(?<=://)([^/@\s:]*)(:[^/@\s]*)?@")
# Query parameters that carry a secret.
_SECRET_QUERY = re.compile(r"(?i)([?&](?:password|passwd|token|secret|key|sslpassword)=)[^&\s]*")
_SECRET_NAME = re.compile(r"(?i)token|secret|password|api_?key")


@dataclass(frozen=True)
class Setting:
    """One setting as it is in force; secrets are masked in ``value``."""

    name: str
    variable: str
    value: Any
    source: Source
    description: str


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="The platform's settings.", no_args_is_help=True)
    group.command("show")(show)
    # A second command keeps `show` a word of its own: Typer folds a group of one into its parent.
    group.callback()(lambda: None)
    app.add_typer(group, name="config")


def show(as_json: AsJson = False) -> None:
    """List every setting with its value and its source: default, profile or environment.

    Exits 1 after the list when the orchestra it names cannot be had.
    """
    from iccm_assets.judging.orchestra import orchestra_of

    settings = get_settings()
    found = list(describe(settings, os.environ))
    if as_json:
        echo_json({"profile": settings.profile, "settings": [asdict(one) for one in found]})
    else:
        width = max(len(one.variable) for one in found)
        for one in found:
            typer.echo(f"{one.variable:{width}} = {_shown(one.value)}  ({one.source})")
    orchestra_of(settings)


def describe(settings: Settings, environment: Mapping[str, str]) -> Iterator[Setting]:
    """Every setting in the order of the tree, secrets masked."""
    given = {name.upper() for name, value in environment.items() if value}
    overrides = profile_overrides(settings.profile)
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not isinstance(value, Group):
            yield _setting((name,), value, field.description, given, overrides)
            continue
        inside = overrides.get(name, {})
        for inner, inner_field in type(value).model_fields.items():
            yield _setting((name, inner), getattr(value, inner), inner_field.description, given, inside)


def masked(name: str, value: Any) -> Any:
    """The value without its secrets: passwords in URLs, and everything whose name says it is one."""
    if isinstance(value, list | tuple):
        return [masked(name, one) for one in value]
    if not isinstance(value, str) or not value:
        return value if value is None or isinstance(value, bool | int | float | str) else str(value)
    if _SECRET_NAME.search(name):
        return MASK
    if name == "alert_urls":  # apprise puts tokens anywhere behind the scheme
        return ",".join(
            url.split("://")[0] + "://" + MASK if "://" in url else MASK for url in alert_urls(value)
        )
    kept = _USERINFO.sub(lambda found: f"{found[1]}{':' + MASK if found[2] else ''}@", value)
    return _SECRET_QUERY.sub(rf"\g<1>{MASK}", kept)


def _setting(
    path: tuple[str, ...], value: Any, text: str | None, given: set[str], overrides: Mapping[str, Any]
) -> Setting:
    variable = "ICCM_" + "__".join(path).upper()
    source: Source = "default"
    if variable in given:
        source = "environment"
    elif path[-1] in overrides:
        source = "profile"
    plain = (
        value if isinstance(value, bool | int | float | str | list | tuple) or value is None else str(value)
    )
    # "max_source_tokens" counts tokens; only texts can be secrets.
    return Setting(".".join(path), variable, masked(path[-1], plain), source, text or "")


def _shown(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)

"""`iccm token`: tokens of the gateway's clients."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, err, make_table, out, print_line

group = typer.Typer(help="Manage the tokens of the gateway's clients.", no_args_is_help=True)

TokenName = Annotated[str, typer.Argument(help="Name of the token; sessions and ratings carry it.")]
DEFAULT_SCOPES = ["requirements", "conversations", "feedback"]


@group.command()
def create(
    name: TokenName,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: requirements, conversations, feedback, metrics, review, admin. Repeatable;"
            " the first three by default."
        ),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.001, max=3650, help="Days until it expires; never by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print it: this is the only time that it can be read."""
    from iccm_assets.cli.context import open_platform
    from iccm_assets.gateway.tokens import create_token

    _, engine = open_platform()
    _show(name, create_token(engine, name, scope or DEFAULT_SCOPES, expires_in_days), as_json)


@group.command()
def rotate(
    name: TokenName,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=8760, help="Hours for which the old secret is valid, too.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Give a token a new secret and print it; name, scopes and sessions stay."""
    from iccm_assets.cli.context import open_platform
    from iccm_assets.gateway.tokens import rotate_token

    _, engine = open_platform()
    _show(name, rotate_token(engine, name, grace_hours), as_json)


@group.command()
def revoke(name: TokenName, as_json: AsJson = False) -> None:
    """Revoke a token; every gateway refuses it within seconds."""
    from iccm_assets.cli.context import open_platform
    from iccm_assets.gateway.tokens import revoke_token

    _, engine = open_platform()
    revoke_token(engine, name)
    if as_json:
        echo_json({"revoked": name})
    else:
        print_line(f"{name} is revoked.")


@group.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tokens with their scopes and uses."""
    from iccm_assets.cli.context import open_platform
    from iccm_assets.gateway.tokens import list_tokens

    _, engine = open_platform()
    tokens = [_document(item) for item in list_tokens(engine)]
    if as_json:
        echo_json(tokens)
        return
    shown = ("name", "state", "scopes", "use_count", "last_used_at", "expires_at")
    rows = [{key: item[key] for key in shown} | {"scopes": " ".join(item["scopes"])} for item in tokens]
    out.print(make_table("Tokens", rows) if rows else "There is no token.")


def _show(name: str, token: str, as_json: bool) -> None:
    if as_json:
        echo_json({"name": name, "token": token})
        return
    err.print("This is the only time that the token is shown:", markup=False)
    print_line(token)


def _document(item: dict[str, Any]) -> dict[str, Any]:
    """Build the JSON document of a token; its keys are promised to other programs."""
    return {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in item.items()}

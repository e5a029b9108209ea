"""`iccm alerts`: list alerts, deliver them, test the channels."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, make_table, out, pluralize
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import AlertError, SettingsError

group = typer.Typer(help="List and deliver alerts, test the channels.", no_args_is_help=True)


@group.command("list")
def show(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of alerts.")] = 20,
    pending: Annotated[bool, typer.Option("--pending", help="Only alerts not delivered yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first; --json names the channels that an alert has not reached."""
    from iccm_assets.alerts.dispatcher import list_alerts

    _, engine = open_platform()
    with engine.connect() as conn:
        rows = list_alerts(conn, limit, pending_only=pending)
    if as_json:
        echo_json(rows)
    elif rows:
        out.print(make_table("Alerts", [_to_row(row) for row in rows]))
    else:
        out.print("All alerts have been delivered." if pending else "No alerts.")


def _to_row(alert: Mapping[str, Any]) -> dict[str, object]:
    """The columns that fit into a terminal; `--json` has all of an alert."""
    error = f"pending: {alert['last_error']}" if alert["last_error"] else "pending"
    return {
        "created": alert["created_at"],
        "severity": alert["severity"],
        "title": alert["title"],
        "delivered": error if alert["delivered_at"] is None else f"{alert['delivered_at']:%Y-%m-%d %H:%M}",
    }


@group.command()
def deliver(as_json: AsJson = False) -> None:
    """Deliver due alerts, as the daemon does every 30 seconds. Exits 1 if a channel failed."""
    from iccm_assets.alerts.dispatcher import dispatch_alerts

    settings, engine = open_platform()
    report = dispatch_alerts(engine, settings)
    if as_json:
        echo_json(vars(report))
    else:
        out.print(report.summary(), markup=False)
    if report.errors:
        raise typer.Exit(1)


@group.command()
def test(as_json: AsJson = False) -> None:
    """Send a test alert to every channel. Exits 1 unless all channels received it."""
    from iccm_assets.alerts import channels, dispatcher, outbox

    settings, engine = open_platform()
    n_channels = len(channels.parse_channels(settings.alert_urls))
    if not n_channels:
        raise SettingsError(
            "ICCM_ALERT_URLS names no channel",
            hint="For example ICCM_ALERT_URLS=slack://TokenA/TokenB/TokenC",
        )
    key = f"test:{secrets.token_hex(4)}"
    with engine.begin() as conn:
        outbox.raise_alert(
            conn, key, "info", "ICCM test alert", "Sent by `iccm alerts test`; no action needed."
        )
    report = dispatcher.dispatch_alerts(engine, settings)
    delivered = report.delivered_keys.count(key)
    if as_json:
        echo_json({"key": key, "channels": n_channels, "delivered": delivered, "errors": report.errors})
    else:
        out.print(f"{key} delivered to {delivered} of {pluralize(n_channels, 'channel')}", markup=False)
    if delivered < n_channels:
        raise AlertError(
            "; ".join(f"{name}: {error}" for name, error in report.errors.items())
            or "older alerts are delivered first",
            hint="`iccm alerts list` shows them.",
        )

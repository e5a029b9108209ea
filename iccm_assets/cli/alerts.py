"""`iccm alerts`: what was raised, whether it arrived, and a test of the channels (A1)."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, out, table
from iccm_assets.errors import AlertError, SettingsError
from iccm_assets.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Alerts: the outbox and its channels.", no_args_is_help=True)
    group.command("list")(show)
    group.command("deliver")(deliver)
    group.command("test")(test)
    app.add_typer(group, name="alerts")


def show(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, newest first.")] = 20,
    undelivered: Annotated[bool, typer.Option("--undelivered", help="Only what has not arrived.")] = False,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first, with the channels that still lack them."""
    from iccm_assets.alerts.delivery import newest
    from iccm_assets.store.database import connect

    with connect(get_settings()).connect() as conn:
        rows = newest(conn, limit, undelivered=undelivered)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        out.print("No alert." if not undelivered else "Every alert has arrived.")
        return
    out.print(table("Alerts", [_short(row) for row in rows]))


def deliver(as_json: AsJson = False) -> None:
    """Send what is due now, as the daemon does every 30 seconds. Exits 1 when a channel failed."""
    from iccm_assets.alerts.delivery import deliver_alerts
    from iccm_assets.store.database import connect

    settings = get_settings()
    report = deliver_alerts(connect(settings), settings)
    if as_json:
        echo_json(vars(report))
    else:
        out.print(report.sentence(), markup=False)
    if report.errors:
        raise typer.Exit(1)


def test(as_json: AsJson = False) -> None:
    """Raise a test alert and send it to every channel; fails unless it arrived everywhere."""
    from iccm_assets.alerts.channels import channels_of
    from iccm_assets.alerts.delivery import deliver_alerts
    from iccm_assets.alerts.outbox import raise_alert
    from iccm_assets.store.database import connect

    settings = get_settings()
    channels = channels_of(settings.alert_urls)
    if not channels:
        raise SettingsError(
            "ICCM_ALERT_URLS names no channel",
            hint="For example ICCM_ALERT_URLS=slack://TokenA/TokenB/TokenC",
        )
    engine, key = connect(settings), f"test:{secrets.token_hex(4)}"
    with engine.begin() as conn:
        raise_alert(conn, key, "info", "ICCM test alert", "Sent by `iccm alerts test`; nothing has happened.")
    report = deliver_alerts(engine, settings)
    arrived = report.arrived.count(key)
    if as_json:
        echo_json({"key": key, "channels": len(channels), "arrived": arrived, "errors": report.errors})
    else:
        out.print(f"{key} arrived on {arrived} of {len(channels)} channels", markup=False)
    if arrived < len(channels):
        why = "; ".join(f"{name}: {error}" for name, error in report.errors.items())
        raise AlertError(why or "older alerts are being sent first", hint="`iccm alerts list` shows them.")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "created_at": row["created_at"],
        "severity": row["severity"],
        "title": row["title"],
        "key": row["key"],
        "delivered_at": row["delivered_at"],
        "last_error": (row["last_error"] or "")[:60] or None,
    }

"""`iccm status`: what is in production, what was learned lately, what came in."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, out, table
from iccm_assets.settings import get_settings
from iccm_assets.store.arms import ArmFigures, shown

if TYPE_CHECKING:
    from iccm_assets.store.live import Live
    from iccm_assets.store.overview import Overview

WINDOW = timedelta(days=1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(as_json: AsJson = False) -> None:
    """Show the production version, the last retrains, the live rollout and the days' funnels."""
    from iccm_assets.learning.proposal import propose
    from iccm_assets.store.database import connect
    from iccm_assets.store.live import live
    from iccm_assets.store.overview import overview

    settings = get_settings()
    with connect(settings).connect() as conn:
        found = overview(conn)
        proposal = propose(conn, found.now, settings.selection)
        traffic = live(conn, WINDOW)
    asked = settings.triggers.weekly_min_examples
    if as_json:
        selectable = {"examples": proposal.selectable, "asked": asked, "reason": proposal.reason}
        arms = [one.row() for one in traffic.arms]
        told = {"arms": arms, "replicas": traffic.replicas, "ready": dict(traffic.ready)}
        state = {
            "rollout": asdict(traffic.rollout) if traffic.rollout else None,
            "undelivered_alerts": traffic.undelivered_alerts,
        }
        echo_json({**asdict(found), **state, "selectable": selectable, "live": told})
        return
    _show(found, traffic)
    out.print(f"{proposal.selectable} of {asked} new examples for the weekly retrain: {proposal.reason}")


def _show(found: Overview, traffic: Live) -> None:
    serving = found.production
    if serving is None:
        out.print("[bold]No version in production yet.[/] The first retrain starts from the base model.")
    else:
        since = f" since {serving['deployed_at']:%Y-%m-%d %H:%M} UTC" if serving["deployed_at"] else ""
        out.print(f"[bold]{serving['version']}[/] is in production{since}")
    live = traffic.rollout
    if live is not None:
        weight = f"{live.weight:.0%} of traffic to {live.candidate}, the rest to {live.production}"
        out.print(f"rollout {live.id} {live.state}, stage {live.stage}: {weight}")
    else:
        out.print("No rollout is live.")
    out.print(f"{traffic.replicas} gateway processes are running.")
    if traffic.arms:
        out.print(table("Arms, last 24 hours", [_arm(one) for one in traffic.arms]))
    if found.versions:
        out.print(table("Versions", found.versions))
    if found.retrains:
        out.print(table("Retrains", [_short(one) for one in found.retrains]))
    if found.days:
        out.print(table("Conversations by day (UTC)", found.days))
    out.print(table("Rows", [{"table": name, "rows": count} for name, count in found.rows.items()]))
    if traffic.undelivered_alerts:
        out.print(f"{traffic.undelivered_alerts} alerts are not delivered yet (iccm alerts list).")


def _arm(one: ArmFigures) -> dict[str, object]:
    """One arm as a line of the table; `--json` has all figures."""
    latency = (one.latency_p50_ms, one.latency_p95_ms, one.latency_p99_ms)
    return {
        "arm": one.arm,
        "version": one.version,
        "sessions": one.scored_sessions,
        "pass rate": one.pass_rate,
        "variance": one.implementation_variance,
        "API": one.api_compatibility,
        "requests": one.requests,
        "error rate": one.error_rate,
        "p50/p95/p99 ms": "/".join(shown(ms, 0) for ms in latency),
        "+/-": f"{one.thumbs_up}/{one.thumbs_down}",
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """The row with only the beginning of its newest note; `--json` has the whole."""
    notes = str(row["notes"] or "").strip().splitlines()
    return {**row, "notes": textwrap.shorten(notes[-1], 60, placeholder=" …") if notes else None}

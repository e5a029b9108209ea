"""`iccm status`: the production version, the latest retrains, the live rollout, the days' traffic."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from datetime import timedelta

from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, make_table, out
from iccm_assets.cli.context import open_platform
from iccm_assets.reporting.arm_metrics import ArmMetrics
from iccm_assets.reporting.formatting import format_number
from iccm_assets.reporting.live_traffic import LiveTraffic, load_live_traffic
from iccm_assets.reporting.real_traffic import find_builtin_notice
from iccm_assets.reporting.status import PlatformStatus, load_platform_status
from iccm_assets.retraining.example_queries import propose_selection

WINDOW = timedelta(days=1)


def status(as_json: AsJson = False) -> None:
    """Show the production version, the latest retrains, the live rollout and the daily funnels."""
    settings, engine = open_platform()
    with engine.connect() as conn:
        platform = load_platform_status(conn)
        proposal = propose_selection(conn, platform.now, settings.selection)
        traffic = load_live_traffic(conn, WINDOW)
        notice = find_builtin_notice(conn, settings.orchestra)
    required = settings.triggers.weekly_min_examples
    if as_json:
        echo_json(
            asdict(platform)
            | {
                "rollout": asdict(traffic.rollout) if traffic.rollout else None,
                "undelivered_alerts": traffic.undelivered_alerts,
                "notice": notice,
                "selectable": {
                    "examples": proposal.selectable,
                    "required": required,
                    "reason": proposal.reason,
                },
                "live": {
                    "arms": [arm.to_dict() for arm in traffic.arms],
                    "replicas": traffic.replicas,
                    "ready": dict(traffic.ready),
                },
            }
        )
        return
    _print(platform, traffic)
    if notice:
        out.print(f"[yellow]{escape(notice)}[/]")
    out.print(f"{proposal.selectable} of {required} new examples for the weekly retrain: {proposal.reason}")


def _print(platform: PlatformStatus, traffic: LiveTraffic) -> None:
    production, rollout = platform.production, traffic.rollout
    if production is None:
        out.print("[bold]No version in production yet.[/] The first retrain starts from the base model.")
    else:
        deployed_at = production["deployed_at"]
        since = f" since {deployed_at:%Y-%m-%d %H:%M} UTC" if deployed_at else ""
        out.print(f"[bold]{production['version']}[/] is in production{since}")
    if rollout is None:
        out.print("No rollout is live.")
    else:
        weight = f"{rollout.weight:.0%} of traffic to {rollout.candidate}, the rest to {rollout.production}"
        out.print(f"rollout {rollout.id} {rollout.state}, stage {rollout.stage}: {weight}")
    out.print(f"{traffic.replicas} gateway processes are running.")
    tables = {
        "Arms, last 24 hours": [_arm_row(arm) for arm in traffic.arms],
        "Versions": platform.versions,
        "Retrains": [_shorten_notes(retrain) for retrain in platform.retrains],
        "Conversations by day (UTC)": platform.days,
        "Test suites, measured in 7 days": platform.suites,
        "Rows": [{"table": name, "rows": count} for name, count in platform.rows.items()],
    }
    for title, rows in tables.items():
        if rows:
            out.print(make_table(title, rows))
    if traffic.undelivered_alerts:
        out.print(f"{traffic.undelivered_alerts} alerts are not delivered yet (iccm alerts list).")


def _arm_row(arm: ArmMetrics) -> dict[str, object]:
    """The columns that fit into a terminal; `--json` has all metrics."""
    weaker = f" ({arm.pytest_sessions} by pytest)" if arm.pytest_sessions else ""
    latency = (arm.latency_p50_ms, arm.latency_p95_ms, arm.latency_p99_ms)
    return {
        "arm": arm.arm,
        "version": arm.version,
        "sessions": f"{arm.scored_sessions}{weaker}",
        "pass rate": arm.pass_rate,
        "variance": arm.implementation_variance,
        "API": arm.api_compatibility,
        "requests": arm.requests,
        "error rate": arm.error_rate,
        "p50/p95/p99 ms": "/".join(format_number(ms, 0) for ms in latency),
        "feedback +/−": f"{arm.thumbs_up}/{arm.thumbs_down}",
    }


def _shorten_notes(row: dict[str, object]) -> dict[str, object]:
    """Cut the notes to the start of the last line; `--json` has all of them."""
    notes = str(row["notes"] or "").strip().splitlines()
    return {**row, "notes": textwrap.shorten(notes[-1], 60, placeholder=" …") if notes else None}

"""`iccm status`: show production, retrains, the live rollout and traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, make_table, out, pluralize
from iccm_assets.cli.context import open_platform
from iccm_assets.reporting.formatting import format_number

if TYPE_CHECKING:
    from iccm_assets.reporting.arm_metrics import ArmMetrics
    from iccm_assets.reporting.live_traffic import LiveTraffic
    from iccm_assets.reporting.status import PlatformStatus

WINDOW = timedelta(days=1)


def status(as_json: AsJson = False) -> None:
    """Show the production version, the latest retrains, the live rollout and the daily funnels."""
    from iccm_assets.registry.base_difference import find_base_difference
    from iccm_assets.reporting.live_traffic import load_live_traffic
    from iccm_assets.reporting.real_traffic import find_builtin_notice
    from iccm_assets.reporting.status import load_platform_status
    from iccm_assets.retraining.example_queries import propose_selection

    settings, engine = open_platform()
    with engine.connect() as conn:
        platform = load_platform_status(conn)
        proposal = propose_selection(conn, platform.now, settings.selection)
        traffic = load_live_traffic(conn, WINDOW)
        notice = find_builtin_notice(conn, settings.orchestra)
        difference = find_base_difference(conn, settings)
    required = settings.triggers.weekly_min_examples
    if as_json:
        echo_json(
            asdict(platform)
            | {
                "rollout": asdict(traffic.rollout) if traffic.rollout else None,
                "undelivered_alerts": traffic.undelivered_alerts,
                "notice": notice,
                "base_difference": None if difference is None else str(difference),
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
    for text in (notice, difference):
        if text is not None:
            out.print(f"[yellow]{escape(str(text))}[/]")
    out.print(f"{proposal.selectable} of {required} new examples for the weekly retrain: {proposal.reason}")


def _print(platform: PlatformStatus, traffic: LiveTraffic) -> None:
    production, rollout = platform.production, traffic.rollout
    if production is None:
        out.print("[bold]No version in production yet.[/] The first retrain starts from the base model.")
    else:
        deployed_at = production["deployed_at"]
        first = f", first deployed {deployed_at:%Y-%m-%d %H:%M} UTC" if deployed_at else ""
        out.print(f"[bold]{production['version']}[/] is in production{first}")
    if rollout is None:
        out.print("No rollout is live.")
    else:
        weight = f"{rollout.weight:.0%} of traffic to {rollout.candidate}, the rest to {rollout.production}"
        out.print(f"rollout {rollout.id} {rollout.state}, stage {rollout.stage}: {weight}")
    processes = pluralize(traffic.replicas, "gateway process is", "gateway processes are")
    out.print(f"{processes} running.")
    _print_tables(platform, traffic)
    if traffic.undelivered_alerts:
        alerts = pluralize(traffic.undelivered_alerts, "alert is", "alerts are")
        out.print(f"{alerts} not delivered yet (iccm alerts list --pending).")


def _print_tables(platform: PlatformStatus, traffic: LiveTraffic) -> None:
    tables = {
        "Arms, last 24 hours": [_arm_row(arm) for arm in traffic.arms],
        "Versions": [_version_row(version) for version in platform.versions],
        "Retrains": [_retrain_row(retrain) for retrain in platform.retrains],
        "Conversations by day (UTC)": platform.days,
        "Test suites, measured in 7 days": platform.suites,
        "Rows": [{"table": name, "rows": count} for name, count in platform.rows.items()],
    }
    for title, rows in tables.items():
        if rows:
            out.print(make_table(title, rows))
    for retrain in platform.retrains[:1]:
        for line in str(retrain["notes"] or "").strip().splitlines()[-1:]:
            out.print(f"retrain {retrain['id']}: {line}", markup=False)
        _print_sampling(retrain)
        if too_long := retrain["too_long"]:
            examples = pluralize(too_long, "example was longer", "examples were longer")
            out.print(f"retrain {retrain['id']}: {examples} than a token limit, and left out")


def _print_sampling(retrain: Mapping[str, Any]) -> None:
    """Print what the model answered itself for a retrain, if anything."""
    if (sampling := retrain["sampling"]) is None:
        return
    shares = {
        "not right greedily": sampling.get("wrong_greedy_share"),
        "of these with an answer to learn from": sampling.get("accepted_share"),
    }
    parts = [pluralize(sampling["tried"], "source was answered", "sources were answered")]
    parts += [f"{share:.0%} {name}" for name, share in shares.items() if share is not None]
    parts.append(
        pluralize(retrain["own_examples"] or 0, "own answer is an example", "own answers are examples")
    )
    out.print(f"retrain {retrain['id']}: {'; '.join(parts)}")


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


def _version_row(version: Mapping[str, object]) -> dict[str, object]:
    return {
        "version": version["version"],
        "status": version["status"],
        "parent": version["parent_version"],
        "created": version["created_at"],
        "deployed": version["deployed_at"],
    }


def _retrain_row(retrain: Mapping[str, object]) -> dict[str, object]:
    names = (
        "id",
        "trigger",
        "objective",
        "status",
        "attempt",
        "timestamp",
        "candidate_version",
        "improvement",
    )
    row = {name: retrain[name] for name in names}
    return {"candidate" if name == "candidate_version" else name: value for name, value in row.items()}

"""The demo's report on its rollouts: splits, timelines, the rollback, alerts, and the story's checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iccm_assets.cli.console import table
from iccm_assets.cli.rollout_facts import Check, Facts
from iccm_assets.reference.http_traffic import Replies


@dataclass(frozen=True)
class Told:
    """What happened after the retrain; ``rollout`` is None when nothing was rolled out."""

    rollout: Facts | None
    rollback: Facts | None
    checks: tuple[Check, ...]
    replies: dict[str, Replies]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """The checks that did not come true."""
        return [f"{one.name} ({one.told})" for one in self.checks if not one.ok]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "rollout": None if self.rollout is None else _facts_json(self.rollout),
            "rollback": None if self.rollback is None else _facts_json(self.rollback),
            "checks": [asdict(one) for one in self.checks],
            "gateway": {name: asdict(one) for name, one in self.replies.items()},
            "phase_seconds": self.seconds,
        }


def show(told: Told, console: Console) -> None:
    """Print the whole of it."""
    if told.rollout is not None:
        _show_splits(told.rollout, console)
        _show_timeline("Rollout", told.rollout, console)
    if told.rollback is not None:
        _show_timeline("Rollback of a degraded candidate", told.rollback, console)
        _show_rollback(told.rollback, console)
    alerts = [one for found in (told.rollout, told.rollback) if found for one in found.alerts]
    _show_alerts(alerts, console)
    show_checks(told.checks, console)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in told.seconds.items())
    console.print(f"[dim]{spent}[/]", highlight=False)


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """Each sentence of the story, and whether it came true."""
    console.print("\n[bold]The story, checked[/]")
    drawn = Table.grid(padding=(0, 2))
    for one in checks:
        mark = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]unknown[/]"}[one.ok]
        drawn.add_row("", mark, one.name, f"[dim]{escape(one.told)}[/]")
    console.print(drawn)


def _show_splits(found: Facts, console: Console) -> None:
    rows = [
        {
            "weight": f"{split.weight:.0%}",
            "requests": split.requests,
            "canary arm": split.canary_requests,
            "share": f"{split.share:.1%}",
            "sessions": split.sessions,
            "scored canary": split.scored,
            "fallbacks": split.fallbacks,
            "failed": split.failed,
        }
        for split in found.splits
    ]
    console.print()
    console.print(table(f"Traffic of {found.candidate} beside {found.former}", rows))


def _show_timeline(title: str, found: Facts, console: Console) -> None:
    console.print(f"\n[bold]{title}[/]: {found.candidate} against {found.former} (platform clock)")
    drawn = Table.grid(padding=(0, 2))
    for event in found.events:
        weight = "" if event.weight is None else f"{event.weight:.0%}"
        # The gate's rules stand in the report already.
        notes = event.notes.split("; ")[0] if event.event_type == "opened" else event.notes
        drawn.add_row("", f"{event.timestamp:%H:%M:%S}", event.event_type, weight, escape(notes))
    console.print(drawn)


def _show_rollback(found: Facts, console: Console) -> None:
    for one in found.rollbacks:
        minutes = "?" if found.lasted is None else f"{found.lasted / timedelta(minutes=1):.0f}"
        hourly = found.sessions_per_hour
        pace = "" if hourly is None else f" ({hourly:.0f} an hour)"
        rate = "-" if found.canary_pass_rate is None else f"{found.canary_pass_rate:.3f}"
        console.print(
            f"  [bold red]{one.reason}[/]: taken back {minutes} minutes of the platform's clock after its"
            f" opening, after {found.sessions} sessions{pace}; {found.canary_sessions} of them met the"
            f" candidate, {found.scored_canary} were scored, pass rate {rate}. {found.production} serves.",
            highlight=False,
        )


def _show_alerts(alerts: Sequence[dict[str, Any]], console: Console) -> None:
    console.print(f"\n[bold]Alerts[/] ({len(alerts)})")
    drawn = Table.grid(padding=(0, 2))
    for one in alerts:
        drawn.add_row("", one["severity"], one["title"], escape(one["body"]))
    console.print(drawn)


def _facts_json(found: Facts) -> dict[str, Any]:
    lasted = found.lasted
    values = asdict(found)
    values["splits"] = [{**asdict(split), "share": round(split.share, 4)} for split in found.splits]
    values["lasted_seconds"] = None if lasted is None else lasted.total_seconds()
    values["sessions_per_hour"] = found.sessions_per_hour
    return {key: _plain(one) for key, one in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value

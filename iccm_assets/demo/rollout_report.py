"""The demo's report on its rollouts: traffic splits, events, the rollback, alerts, acceptance checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from iccm_assets.cli.console import make_grid, make_table
from iccm_assets.demo.acceptance_checks import MINUTE, AcceptanceCheck, RolloutRecord
from iccm_assets.demo.rollout_progress import TEST_LABELS, format_e_value, strongest_tests
from iccm_assets.reporting.formatting import format_number
from iccm_assets.simulation.developers.http_sessions import ResponseStats

_MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]unknown[/]"}


@dataclass
class RolloutReport:
    """Results of the rollout and of the rollback, each None if it did not come to its end.

    ``error`` ended the scenario early; the phases before it have their results and checks.
    """

    checks: list[AcceptanceCheck]
    rollout: RolloutRecord | None = None
    rollback: RolloutRecord | None = None
    replies: dict[str, ResponseStats] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def failures(self) -> list[str]:
        """The checks that failed."""
        return [f"{check.name} ({check.detail})" for check in self.checks if not check.ok]

    def to_json(self) -> dict[str, Any]:
        """The whole report as values for ``echo_json``."""
        return {
            "rollout": _record_to_json(self.rollout),
            "rollback": _record_to_json(self.rollback),
            "checks": [asdict(check) for check in self.checks],
            "gateway": {phase: asdict(replies) for phase, replies in self.replies.items()},
            "phase_seconds": self.seconds,
        }


def print_rollout_report(report: RolloutReport, console: Console) -> None:
    """Print the whole report."""
    if report.rollout is not None:
        _print_splits(report.rollout, console)
        _print_events("Rollout", report.rollout, console)
        console.print(f"  {escape(explain_evidence(report.rollout))}", highlight=False)
    if report.rollback is not None:
        _print_events("Rollback of a degraded candidate", report.rollback, console)
        _print_rollback(report.rollback, console)
    alerts = [alert for record in (report.rollout, report.rollback) if record for alert in record.alerts]
    console.print(f"\n[bold]Alerts[/] ({len(alerts)})")
    console.print(
        make_grid([("", alert["severity"], alert["title"], escape(alert["body"])) for alert in alerts])
    )
    console.print("\n[bold]Acceptance checks[/]")
    details = [(check, f"[dim]{escape(check.detail)}[/]") for check in report.checks]
    console.print(make_grid([("", _MARKS[check.ok], check.name, detail) for check, detail in details]))
    durations = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    console.print(f"[dim]{durations}[/]", highlight=False)


def _print_splits(record: RolloutRecord, console: Console) -> None:
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
        for split in record.splits
    ]
    console.print()
    console.print(make_table(f"Traffic of {record.candidate} and {record.previous}", rows))


def _print_events(title: str, record: RolloutRecord, console: Console) -> None:
    console.print(f"\n[bold]{title}[/]: {record.candidate} against {record.previous} (platform clock)")
    rows = []
    for event in record.events:
        weight = "" if event["weight"] is None else f"{event['weight']:.0%}"
        # The rules of the gate are in the report already.
        notes = event["notes"].split("; ")[0] if event["event_type"] == "opened" else event["notes"]
        rows.append(("", f"{event['timestamp']:%H:%M:%S}", event["event_type"], weight, escape(notes)))
    console.print(make_grid(rows))


def explain_evidence(record: RolloutRecord) -> str:
    """Explain the pass rates of both arms by the evidence of the rollout's tests."""
    scores = (
        f"Pass rate {format_number(record.canary_pass_rate)} on {record.scored_canary} scored sessions,"
        f" production {format_number(record.production_pass_rate)} on {record.scored_production}."
    )
    if not record.tests:
        return f"{scores} No test has evidence yet."
    name, value, threshold = strongest_tests(record.tests)[0]
    meaning = "violated" if value >= threshold else "not significant: chance explains it"
    return (
        f"{scores} Strongest evidence against the candidate: {TEST_LABELS[name]}, e-value"
        f" {format_e_value(value)}; a guardrail is violated from {threshold:.0f} on ({meaning})."
    )


def _print_rollback(record: RolloutRecord, console: Console) -> None:
    minutes = "?" if record.duration is None else f"{record.duration / MINUTE:.0f}"
    hourly = "" if record.sessions_per_hour is None else f" ({record.sessions_per_hour:.0f} an hour)"
    rate = format_number(record.canary_pass_rate)
    for rollback in record.rollbacks:
        console.print(
            f"  [bold red]{rollback['reason']}[/]: rolled back {minutes} minutes of the platform's clock"
            f" after its opening, after {record.sessions} sessions{hourly}; {record.canary_sessions} of them"
            f" on the candidate, {record.scored_canary} scored, pass rate {rate}."
            f" {record.production} serves.",
            highlight=False,
        )


def _record_to_json(record: RolloutRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    duration = record.duration
    return asdict(record) | {
        "splits": [{**asdict(split), "share": round(split.share, 4)} for split in record.splits],
        "explanation": explain_evidence(record),
        "duration_seconds": None if duration is None else duration.total_seconds(),
        "sessions_per_hour": record.sessions_per_hour,
    }
